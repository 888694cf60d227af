# SPDX-License-Identifier: MIT
"""The Triton back end: for all tensors of a call one launch, and no copies.

Gradients of several dtypes in one bucket take a launch for each dtype. Under TRITON_INTERPRET=1 it
serves CPU tensors, without it those of a GPU.
"""

import itertools
import operator

import torch

from ..backends import eager
from ..backends.guards import count_writes
from ..backends.layout import as_they_are, check_squares, flat, is_dense, scaled
from ..backends.per_tensor import joined
from ..rules import NORMS, PASSES, ROWS
from . import momentum, newton_schulz, passes
from .launch import TYPES, Launch, by_dtypes, prepare, prepared
from .plan import plan_ as plan_
from .rounding import INTERPRETED, rounded

DEVICES = ("cpu",) if INTERPRETED else ("cuda",)
# elements of a chunk, by dtype of the arithmetic: with 128 threads each has 8 of every tensor (4 in
# float64), which for AdamW with EMA-Nesterov are 10 loads of 128 bits in flight, in 72 registers.
# Measured on an H200: chunks and threads twice as many take 3 % longer
TILES = {torch.float32: 1024, torch.float64: 512}
# there is one tensor only, so more of it
NONFINITE_TILES = {torch.float32: 4096, torch.float64: 2048}
if INTERPRETED:
    # it takes its time for operations, not for elements
    TILES = NONFINITE_TILES = dict.fromkeys(TILES, 65536)
# rows of a chunk of a matrix, one for each warp, and columns that a program reads at once: 32 bytes
# or more of each lane
ROWS_TILE, ROWS_WIDTH = 4, 512


def apply_(
    name, rules, ys, inputs, state, numbers, dtype, skip=None, scales=(), squares=None, memo=None
):
    """As ``eager.apply_``; where squares are asked for, with a launch for the sums of each."""
    numbers, begins = joined(numbers, ys, dtype)
    pass_, block, own = PASSES[name], TILES[dtype], begins is not None
    squared = squares is not None
    key, given = (name, *rules, bool(scales), squared, own), [ys, inputs, *state, scales]
    # copies live until all is launched
    placed, written = given, []
    if squared:
        check_squares(squares, ys)

    def anew():
        nonlocal placed, written
        gs, factors = scaled(inputs, ys, scales, dtype)
        *placed, states, written = flat(ys, gs, state, dtype, "input" in pass_.writes)
        placed = [*placed, *states, factors]
        # what else kernels find at the end of a row
        more = [[*map(torch.Tensor.data_ptr, factors)], [*map(_run, ys, factors)]] if scales else []
        more = [[*range(len(ys))]] if squared else more
        more = [*more, begins] if own else more
        sizes, columns = [*map(torch.Tensor.numel, ys)], [each for each in placed[:-1] if each]
        about = sizes, columns, more, dtype, memo, pass_constants(name, rules, scales, own), block
        found = prepare(passes.pass_kernel, key, (ys, gs or ys), *about)
        return found, all(map(_same, given, placed))

    launches = []
    for each in prepared(memo, (*key, dtype), given, begins, anew):
        sums = squares.new_empty(len(each.tables.chunks)) if squared else None
        launches.append(each.launch(numbers, (skip, sums)))
        if squared:
            constants = {"COLUMNS": 2 + len(state), "OWN": own, "BLOCK": block}
            rows = launches[-1].arguments[1]
            kernel, others = momentum.squares_kernel, (rows, skip, sums, squares)
            launches.append(Launch(kernel, len(rows), squares.device, others, constants))
    # all are ready before the first runs: an error leaves everything as it was
    for launch in launches:
        launch()
    for tensor, copy in written:
        tensor.copy_(copy)
    count_writes([*ys, squares] if squared else ys)


def _run(y, scale):
    """How many elements share a scale."""
    return y.numel() // max(1, scale.numel())


def rows_(name, os, state, scales, factors, numbers, dtype, skip=None, memo=None):
    """As ``eager.rows_``: a launch for the rows, and one for the matrices."""
    columns, given = [os, *state, factors, scales], numbers
    numbers, begins = joined(numbers, os, dtype)
    own = begins is not None
    key = "rows", name, dtype, own

    def anew():
        if not as_they_are(columns, columns[1:], dtype):
            return None, False
        more = [[o.shape[1] for o in os], *([begins] if own else [])]
        about = [*map(len, os)], columns, more, dtype, memo, rows_constants(name, own), ROWS_TILE
        return prepare(momentum.rows_kernel, key, (os,), *about), True

    found = prepared(memo, key, columns, begins, anew)
    if found is None:
        # of one value for each row, and in an odd format: not worth a kernel of its own
        eager.rows_(name, os, state, scales, factors, given, dtype, skip=skip)
        return
    row, launches = ROWS[name], []
    norm = NORMS[row.norm]
    first, count = len(row.numbers) - len(norm.numbers), len(norm.numbers)
    second = {"RULE": rounded(norm.function), "FIRST": first, "NUMBERS": count}
    for each in found:
        sums = os[0].new_empty(len(each.tables.chunks) * ROWS_TILE, dtype=torch.float64)
        launch = each.launch(numbers, (skip, sums))
        shared = {k: launch.constants[k] for k in ("STATES", "OWN", "LOADED", "DTYPE", "BLOCK")}
        kernel, constants = momentum.norms_kernel, {**second, **shared}
        rows, *others = launch.arguments[1:]
        launches += launch, Launch(kernel, len(rows), sums.device, (rows, *others), constants)
    for launch in launches:
        launch()
    count_writes([t for column in (factors, *state) for t in column])


def products(device_type):
    """The namespace of matrix products."""
    return newton_schulz


def nonfinite(gs, memo=None):
    """As ``eager.nonfinite``."""
    flag = torch.zeros(1, dtype=torch.float32, device=gs[0].device)
    placed = gs  # copies live until all is launched

    def anew():
        nonlocal placed
        placed = [g if g.dtype in TYPES else g.float() for g in gs]
        # of any order: only whether a value is there matters
        placed = [g if is_dense(g) else g.contiguous() for g in placed]
        found = []
        for (its,), same in by_dtypes(placed).items():
            some, wide = [placed[i] for i in same], torch.promote_types(its, torch.float32)
            sizes, block = [*map(torch.Tensor.numel, some)], NONFINITE_TILES[wide]
            about = sizes, [some], [], wide, memo, {}, block
            found += prepare(passes.nonfinite_kernel, ("nonfinite",), (some,), *about)
        return found, _same(gs, placed)

    found = prepared(memo, ("nonfinite",), [gs], None, anew)
    for each in found:
        each.launch(None, (flag,))()
    return flag


def _same(tensors, others):
    """Whether two lists hold the same tensors."""
    return tensors is others or all(map(operator.is_, tensors, others))


def pass_constants(name, rules, scales=(), own=False):
    """What the kernel is compiled for.

    Args:
        name, rules: of the pass.
        scales: whether there are any.
        own: whether tensors have numbers of their own.
    """
    pass_ = PASSES[name]
    rows = pass_.rows(rules)
    columns = len({*pass_.reads, *pass_.writes})
    return {
        "SCALED": bool(scales),
        "PASS": rounded(pass_.function, *(row.function for row in rows)),
        "STATES": _parts(columns, [row.state for row in rows]),
        "NUMBERS": _parts(int(pass_.factor), [row.numbers for row in rows]),
        "COLUMNS": (columns - len(pass_.reads), columns),
        "WRITES": len(pass_.writes),
        "FACTOR": pass_.factor,
        "STEPS": pass_.steps,
        "OWN": own,
    }


def _parts(first, names):
    """Of lists that follow each other where each begins, and how long it is."""
    begins = itertools.accumulate(map(len, names), initial=first)
    return tuple(zip(begins, map(len, names), strict=False))


def rows_constants(name, own=False):
    """What the kernel is compiled for, of the rule; ``own`` as in ``pass_constants``."""
    row = ROWS[name]
    counts = {"STATES": len(row.state), "NUMBERS": len(row.numbers), "OWN": own}
    return {"RULE": rounded(row.function), **counts, "WIDTH": ROWS_WIDTH}
