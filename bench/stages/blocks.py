# SPDX-License-Identifier: MIT
"""How large the chunks of the one-pass kernels should be, and how many warps should share one."""

import contextlib
import itertools

import torch

import emanest
from emanest.kernels import backend, launch

from ..check import distance, drawn
from ..models import MODELS, shrunk
from . import Found
from .ceilings import seconds

# elements of a chunk, and warps
CONFIGURATIONS = list(itertools.product((512, 1024, 2048), (2, 4, 8)))
DTYPES = torch.float32, torch.bfloat16


def run(settings):
    shapes = MODELS["GPT-2 124M"]
    shapes = shrunk(shapes) if settings.small else shapes
    data, lines = {}, []
    usual = backend.TILES[torch.float32], launch.OPTIONS["num_warps"]
    for dtype in DTYPES[: 1 if settings.brief else None]:
        expected = None
        for size, warps in [usual, *(c for c in CONFIGURATIONS if c != usual)]:
            if settings.brief and (size, warps) != usual:
                continue
            with configured(size, warps):
                found, x = measured(shapes, dtype, 3 if settings.small else 20)
            expected = expected or x
            # not a bit may differ: elements do not know of chunks
            if distance(x, expected) != 0:
                raise AssertionError(f"chunks of {size}, {warps} warps: other results")
            data[f"{dtype} {size} {warps}"] = found
            print(dtype, size, warps, found, flush=True)
        times = {k: v for k, v in data.items() if k.startswith(str(dtype))}
        best, first = min(times, key=times.get), f"{dtype} {' '.join(map(str, usual))}"
        name = str(dtype).removeprefix("torch.")
        lines.append(
            f"{name}: {usual[0]} elements, {usual[1]} warps: {1e6 * times[first]:.0f} us; best "
            f"{' elements, '.join(best.split()[1:])} warps: {1e6 * times[best]:.0f} us"
        )
    return Found(lines, data)


@contextlib.contextmanager
def configured(size, warps):
    """Passes over float32 take chunks of this size, and as many warps each."""
    usual = backend.TILES, launch.OPTIONS
    backend.TILES = {**backend.TILES, torch.float32: size}
    launch.OPTIONS = {**launch.OPTIONS, "num_warps": warps}
    try:
        yield
    finally:
        backend.TILES, launch.OPTIONS = usual


def measured(shapes, dtype, repeats):
    """Seconds of a step of AdamW with EMA-Nesterov, and where the first two lead."""
    params = [p.requires_grad_() for p in drawn(shapes, "cuda", dtype, 0, 0.02)]
    for p, g in zip(params, drawn(shapes, "cuda", dtype, 1), strict=True):
        p.grad = g
    optimizer = emanest.AdamW(params, lookahead=emanest.EMANesterov(0.5, 0.99))
    for _ in range(2):
        optimizer.step()
    # now: how many steps are taken while they are timed depends on the time
    x = [p.detach().double() for p in params[:8]]
    return seconds(optimizer.step, repeats), x
