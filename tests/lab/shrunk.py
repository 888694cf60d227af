# SPDX-License-Identifier: MIT
"""Runs of the lab in a form that takes moments: few steps of small models on made-up data."""

import torch

from examples.lab.data.images import Images
from examples.lab.data.text import Text
from examples.lab.models import MODELS

CONTEXT = 8


def text(vocabulary=32):
    """Text in which a value says much about the next."""
    draw = torch.Generator().manual_seed(0)
    steps = torch.randint(3, (3000,), generator=draw)
    row = (steps.cumsum(0) % vocabulary).to(torch.uint8)
    return Text("made up", "0" * 16, vocabulary, "byte", (1, 1), row[:2500], row[2500:])


def images(shape=(1, 12, 12), classes=4):
    """Images whose brightness says their class."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (64,), generator=draw)
    noise = torch.randint(60, (64, *shape), generator=draw)
    pixels = (noise + 48 * labels[:, None, None, None]).to(torch.uint8)
    halves = (pixels[:48], labels[:48]), (pixels[48:], labels[48:])
    return Images("made up", "1" * 16, classes, *halves)


def small(settings, steps=2, batch=4, **changes):
    """The settings of a run with a small model, few steps and small batches.

    Their data is ``text`` or ``images``: see the fixture ``made_up``.
    """
    row = MODELS[settings["model"]["name"]]
    result = {**settings, "seed": 0, "steps": steps, "evaluations": 2}
    result["model"] = {"name": settings["model"]["name"], **row.small}
    sees_images = "classes" in row.small
    context = {} if sees_images else {"context": CONTEXT}
    result["feed"] = {"batch": batch, **context}
    if sees_images:
        result["feed"]["augment"] = settings["feed"].get("augment", [])
    result["validation"] = {"count": 2, "batch": batch, **context}
    result["data"] = {"name": "made up images" if sees_images else "made up text"}
    for name in ("micro", "autocast"):
        if name in settings:
            result[name] = {"micro": 2, "autocast": "bfloat16"}[name]
    if settings.get("lookahead"):
        result["lookahead"] = within(settings["lookahead"], steps)
    if "probe" in settings:
        result["probe"] = {"every": 1, "stepsizes": [-0.5, 0.0, 1.0]}
    return {**result, **changes}


def within(lookahead, steps):
    """The method with a window that lies in so many steps."""
    if "rest" not in lookahead:
        return lookahead
    return {**lookahead, "warmup": steps // 4, "rest": steps - steps // 4}


def corpus(folder):
    """Settings of data that other processes find as well: files in ``text`` of a folder."""
    (folder / "text").mkdir(parents=True)
    for k in range(3):
        (folder / "text" / f"{k}.txt").write_text(f"{k} is a number. " * 60)
    return {"name": "folder", "path": str(folder / "text")}
