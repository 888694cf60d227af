# SPDX-License-Identifier: MIT
"""Every kernel that a run needs but for its tests, as jobs that make Triton compile them.

A job is run on a GPU that is not there and launches nothing (``no_gpu.install(compute=False)``):
what memory holds is never looked at, so that matrices of any size cost nothing.
"""

import contextlib
import functools

import torch

from emanest.kernels import newton_schulz as newton_schulz_kernels
from emanest.matrix import newton_schulz
from emanest.matrix.coefficients import polynomials
from emanest.matrix.directions import at_once

from ..cases import CASES
from ..check import drawn, leaves
from ..models import shrunk
from ..no_gpu.driver import TARGET
from ..reference import NS_COEFFICIENTS, NS_STEPS
from ..table import VARIANTS
from . import blocks, smoke, tiles, tools

# of the iteration on a GPU; both forms are timed
DTYPES, FORMS = (torch.float16,), ("standard", "gram")


def steps(name, shapes, dtype, captured):
    """Steps of a variant of ours; what is compiled for the passes does not depend on sizes."""
    values = [drawn(shapes, "cuda", dtype, seed) for seed in (0, 1)]
    stepper = VARIANTS[name].make(leaves(*values), captured)
    for _ in range(2):
        stepper.step()


def iteration(n, m, batch, dtype, form):
    """Newton-Schulz on a batch of matrices without values."""
    rows, _ = polynomials(NS_COEFFICIENTS, NS_STEPS)
    x = torch.empty(batch, n, m, dtype=dtype)
    # as Muon takes it, and as ``orthogonalize`` returns it
    for out_dtype in (None, torch.float32):
        newton_schulz.iterate(x, rows, form, out_dtype=out_dtype)


def chunks(dtype, size, warps):
    """What ``blocks`` compares."""
    with blocks.configured(size, warps):
        blocks.measured(shrunk([(64, 64)]), dtype, 1)


def product(name, shape, tile):
    """What ``tiles`` compares."""
    batch, n, m = shape
    x, r = (torch.empty(batch, n, k, dtype=torch.float16) for k in (m, n))
    with tiles.forced(tile):
        tiles.PRODUCTS[name][1](newton_schulz_kernels, x, r)


def checked(name):
    """What ``smoke`` checks; nothing is computed, so that results are wrong."""
    with contextlib.suppress(AssertionError):
        smoke.CHECKS[name]()


def jobs(settings):
    """All of them, or few."""
    cases = [case for case in CASES if case.device == "cuda"]
    found = {
        ("steps", name, case.dtype, captured): functools.partial(
            steps, name, shrunk(case.shapes), case.dtype, captured
        )
        for case in cases
        for name in case.variants
        if name.startswith("emanest")
        for captured in (False, True)
    }
    for case in cases:
        for n, m in {shape for shape in case.shapes if len(shape) == 2 and min(shape) > 48}:
            batch = min(case.shapes.count((n, m)), at_once(n * m))
            for dtype in DTYPES:
                for form in FORMS:
                    key = "iteration", n, m, batch, dtype, form
                    found[key] = functools.partial(iteration, n, m, batch, dtype, form)
    for dtype in blocks.DTYPES:
        for size, warps in blocks.CONFIGURATIONS:
            key = "chunks", dtype, size, warps
            found[key] = functools.partial(chunks, dtype, size, warps)
    for name in smoke.CHECKS:
        found["smoke", name] = functools.partial(checked, name)
    for shape in tiles.SHAPES:
        for name, (kind, *_) in tiles.PRODUCTS.items():
            for tile in tiles.candidates(f"sm_{TARGET.arch}", kind):
                key = "product", name, shape, tile
                found[key] = functools.partial(product, name, shape, tiles.Tile(*tile[:6]))
    found["tools"] = functools.partial(exec, tools.PROGRAM.format(shapes=tools.SMALL), {})
    if settings.brief:
        return {key: found[key] for key in list(found)[:1]}
    return found
