# SPDX-License-Identifier: MIT
"""What each GPU case should come out at, before it is measured: ``python -m bench.predict``.

Prints the tables of ``bench/NOTES.md``. A time follows from the bytes or the operations of a case,
which its own formulas give, the rates of a machine, and what ``bench/assumed.py`` assumes.
"""

import math
from collections import Counter
from typing import NamedTuple

import torch

from emanest.matrix import forms
from emanest.matrix.coefficients import polynomials

from .assumed import FORMS, GAP, LAUNCH, MACHINES, MUONS, PASSES, UNITS
from .cuda_cases import CUDA
from .reference import NS_COEFFICIENTS, NS_STEPS
from .table import VARIANTS

ROWS, _ = polynomials(NS_COEFFICIENTS, NS_STEPS)


class Times(NamedTuple):
    """Seconds that a step takes, and the least that its bytes or operations allow."""

    amount: str
    floor: float
    queued: float
    idle: float  # host and device one after the other, or the longer of the two
    why: str


def times(case, name, machine):
    """``Times`` of a variant; None where nothing is assumed of it."""
    for table, predict in ((PASSES, _pass), (FORMS, _newton_schulz), (MUONS, _muon)):
        if name in table:
            return predict(case, table[name], name, machine)
    return None


def seconds(case, name, machine):
    """Timing -> seconds of a variant of a case; empty where nothing is known.

    Args:
        case: of a GPU.
        name: of the variant.
        machine: what torch calls the device.
    """
    known = [each for each in MACHINES if each.name in machine]
    found = times(case, name, known[0]) if known else None
    if found is None:
        return {}
    every = {"queued": found.queued, "idle": found.idle, "replayed": found.queued}
    return {timing: every[timing] for timing in case.timings}


def _size(shapes):
    return sum(math.prod(shape) for shape in shapes)


def _pass(case, how, name, machine):
    return _elementwise(case.shapes, case.dtype, how, name, machine)


def _elementwise(shapes, dtype, how, name, machine):
    count, moved = len(shapes), VARIANTS[name].traffic.bytes(dtype) * _size(shapes)
    # a tensor's last chunk is a program of its own, which costs what 16 KiB of it would
    ends = 16384 * count if how.last else 0
    device = (moved + ends) / machine.copy / how.share
    device += GAP * how.launches(count, _size(shapes))
    host = how.host(count)
    idle = host + device if how.last else max(host, device)
    why = f"{how.share:.0%} of the copy rate; host {_ms(host)}"
    return Times(f"{moved / 1e9:.3g} GB", moved / machine.copy, device, idle, why)


def _tiled(tiles, batch, rows, columns, depth, half, machine):
    """Seconds of the best of some tiles, by the busiest multiprocessor."""

    def seconds(height, width, share):
        down, across = math.ceil(rows / height), math.ceil(columns / width)
        # of a square those on and below the diagonal
        count = (down * across + max(down, across)) // 2 if half else down * across
        turns = math.ceil(batch * count / UNITS)
        return turns * 2 * height * width * depth * UNITS / (share * machine.dense)

    return min(seconds(*tile) for tile in tiles)


def _iteration(how, batch, shape, machine):
    """Seconds of symmetric products, of wide ones and of the rest of an iteration on a batch."""
    n, m = sorted(shape)
    form = how.form or _cheapest(n, m)
    wide, small = forms.costs(form, ROWS, torch.float16)

    def product(tiles, columns, depth, half, added):
        busy = _tiled(tiles, batch, n, columns, depth, half, machine)
        moved = 2 * batch * (n * depth + depth * columns + n * columns * (1 + added))
        copied = 4 * batch * n * columns / machine.copy + GAP if how.copies and added else 0.0
        return max(busy, moved / machine.copy) + GAP + copied

    symmetric = wide * product(how.symmetric, n, m, how.half, False)
    symmetric += small * product(how.symmetric, n, n, how.half, True)
    wide *= product(how.wide, m, n, False, form == "standard")
    return symmetric, wide, how.bytes * batch * n * m / machine.copy / 0.9 + GAP * how.launches


def _cheapest(n, m):
    return forms.cheapest(n, m, ROWS, torch.float16, 0.5)


def _floor(case, machine):
    """Operations of ours, half of a product where it is symmetric, at cuBLAS' rate."""
    work = VARIANTS[case.ours].work
    shapes = [sorted(case.shapes[i]) for i in work.matrices(case.shapes)]
    flops = sum(forms.flops(_cheapest(n, m), n, m, ROWS, torch.float16) for n, m in shapes)
    return f"{flops / 1e12:.3g} TFLOP", flops / machine.dense


def _newton_schulz(case, how, name, machine):
    parts = _iteration(how, len(case.shapes), case.shapes[0], machine)
    device = sum(parts)
    why = "symmetric {}, wide {}, rest {}".format(*map(_ms, parts))
    return Times(*_floor(case, machine), device, max(how.host, device), why)


def _muon(case, how, name, machine):
    shapes = case.shapes
    chosen = set(VARIANTS[case.ours].work.matrices(shapes))
    matrices = [shapes[i] for i in chosen]
    stacks = Counter(matrices).items() if how.stacked else [(shape, 1) for shape in matrices]
    iterated = sum(sum(_iteration(how.products, n, shape, machine)) for shape, n in stacks)
    device = iterated + how.bytes * _size(matrices) / machine.copy / 0.9
    host = how.host + how.each * len(matrices)
    if how.others is not None:
        others = [shape for i, shape in enumerate(shapes) if i not in chosen]
        rest = _elementwise(others, case.dtype, PASSES[how.others], how.others, machine)
        device, host = device + rest.queued, host + PASSES[how.others].host(len(others))
    device += how.lookahead * _size(shapes) / machine.copy / 0.84
    device += GAP * how.launches * len(shapes)
    host += LAUNCH * how.launches * len(shapes)
    why = f"iterations {_ms(iterated)}, passes {_ms(device - iterated)}; host {_ms(host)}"
    return Times(*_floor(case, machine), device, max(host, device), why)


def _ms(value):
    return f"{1e3 * value:.3g}"


COLUMNS = (
    *("case", "bytes or operations", "machine", "floor", "queued", "idle", "replayed"),
    *("why", "peer / ours"),
)


def table():
    """The lines of the predictions as Markdown, times in ms."""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for case in CUDA:
        for machine in MACHINES:
            found = times(case, case.ours, machine)
            each = seconds(case, case.ours, machine.name)
            cells = [case.name, found.amount, machine.name, _ms(found.floor)]
            cells += [_ms(each[t]) if t in each else "" for t in ("queued", "idle", "replayed")]
            yield "| " + " | ".join([*cells, found.why, _ratios(case, machine.name)]) + " |"


def _ratios(case, machine):
    """What the claims that ask for something of a peer come out at."""
    ours, found = seconds(case, case.ours, machine), []
    for claim in case.claims:
        if claim.quantity == "speedup" and claim.must is not None:
            ratio = seconds(case, claim.peer, machine)[claim.timing] / ours[claim.timing]
            met = "" if round(ratio, 2) >= claim.must else f", **must {claim.must:g}**"
            found.append(f"{claim.peer}, {claim.timing}: {ratio:.2f}{met}")
    return "; ".join(found)


def ceilings():
    """The lines of what the machines themselves should reach, as Markdown."""
    yield "| machine | copy of 1 GiB, ms | TB/s | product of 8192 x 8192, 16 bits, ms | TFLOP/s |"
    yield "|---|---|---|---|---|"
    for each in MACHINES:
        cells = [_ms(2**31 / each.copy), f"{each.copy / 1e12:g}"]
        cells += [_ms(2 * 8192**3 / each.dense), f"{each.dense / 1e12:g}"]
        yield "| " + " | ".join([each.name, *cells]) + " |"


if __name__ == "__main__":
    print("\n".join([*ceilings(), "", *table()]))
