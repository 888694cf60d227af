# SPDX-License-Identifier: MIT
"""The losses of a run: what they are of, and that every lookahead lowers them on every base."""

import math

import pytest
import torch
from shrunk import small

from examples.lab import models
from examples.lab.experiments.byte_lm import BASES, MOMENTUM_FREE, MORE, arm, lookaheads
from examples.lab.training import Run, loss_of

pytestmark = pytest.mark.usefixtures("made_up", "one_thread")

STEPS = 24
LOOKAHEADS = {None: None, **lookaheads(STEPS), **MORE}
# it syncs within so few steps
LOOKAHEADS["SNOO"] = {**LOOKAHEADS["SNOO"], "every": 8}
PLAIN = arm("AdamW", None, None).settings
WINDOW = {"warmup": 3, "rest": 9}
AHEAD = {**PLAIN, "lookahead": {"name": "ema_nesterov", "decay": 0.5, **WINDOW}}


def done(settings, **options):
    run = Run(settings, **options)
    while not run.done:
        run.advance()
    return run


def test_a_loss_is_in_nats():
    targets = torch.randint(256, (4, 8))
    assert loss_of(torch.zeros(4, 8, 256), targets).item() == pytest.approx(math.log(256))
    # of images as well
    assert loss_of(torch.zeros(4, 10), targets[:, 0] % 10).item() == pytest.approx(math.log(10))


def test_products_are_of_the_dtype_that_was_asked_for():
    run, seen = Run(small(PLAIN, autocast="bfloat16")), []
    run.model.blocks[0].up.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    loss = run.loss(*run.world.share(*run.feed(0)))
    assert (seen, loss.dtype) == ([torch.bfloat16], torch.float32)


def test_runs_are_alike_until_the_lookahead_starts():
    plain, ahead = (
        done(small(each, steps=12, evaluations=12, lookahead=each["lookahead"])).result()
        for each in (PLAIN, AHEAD)
    )
    same = [a == b for a, b in zip(plain["train"], ahead["train"], strict=True)]
    # the first step from y is the one after the window's first
    assert same[:4] == [True] * 4
    assert not any(same[4:])
    sizes = [result["state_bytes"] for result in (plain, ahead)]
    assert sizes == [8, 12]


def test_a_model_that_is_there_is_trained_in_the_place_of_a_new_one():
    settings = small(PLAIN, steps=4)
    model = models.make(settings["model"], settings["seed"])
    start = {name: t.clone() for name, t in model.state_dict().items()}
    expected = done(settings).result()
    for _ in range(2):
        model.load_state_dict(start)
        run = done(settings, model=model)
        assert run.model is model
        assert run.result() == expected


@pytest.mark.parametrize("base", BASES)
def test_every_lookahead_lowers_the_loss_of_every_base(base):
    for label, lookahead in LOOKAHEADS.items():
        if label == "Schedule-Free" and base not in MOMENTUM_FREE:
            continue
        settings = small(arm(base, label, lookahead, steps=STEPS).settings, STEPS, evaluations=1)
        first, last = done(settings).curves["loss"]
        assert last < first - 0.05, label
