"""The Triton back end: for all tensors of a bucket one launch, and no copies.

Gradients of several dtypes in one bucket take a launch for each dtype. Under TRITON_INTERPRET=1 it
serves CPU tensors, without it those of a GPU.
"""

import operator

import torch

from ..backends import eager
from ..backends.guards import count_writes
from ..backends.layout import check_squares, is_dense
from ..rules import BASES, LOOKAHEADS, MOMENTA, NORMS, POINTS, ROWS
from . import momentum, newton_schulz, passes
from .known import prepared, recall, remember
from .launch import TYPES, Launch, as_they_are, by_dtype, prepare
from .plan import plan_ as plan_
from .rounding import INTERPRETED, rounded
from .table import firsts

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


def step_(base, lookahead, ys, gs, state, numbers, dtype, skip=None, scales=(), memo=None):
    """As ``eager.step_``."""
    key = "step", base, lookahead, bool(scales)

    def anew(ys, gs, states, scales):
        # in the rows: where a parameter's scales are, and how many elements share one
        more = [[*map(torch.Tensor.data_ptr, scales)], [*map(_run, ys, scales)]] if scales else []
        common = dtype, memo, step_constants(base, lookahead, scales), TILES[dtype], None
        return [
            prepare(passes.step_kernel, (*key, grad_dtype), columns, *common, rest)
            for grad_dtype, columns, rest in by_dtype(gs, [ys, gs, *states], more)
        ]

    with prepared(anew, memo, key, dtype, ys, gs, state, scales) as found:
        # all are ready before the first runs: an error leaves everything as it was
        for launch in [each.launch(numbers, (skip,)) for each in found]:
            launch()
    count_writes(ys)


def _run(y, scale):
    """How many elements share a scale."""
    return y.numel() // max(1, scale.numel())


def follow_(lookahead, ys, snapshots, state, numbers, dtype, skip=None, memo=None):
    """As ``eager.follow_``."""
    key = "follow", lookahead

    def anew(ys, snapshots, states, _):
        common = dtype, memo, follow_constants(lookahead), TILES[dtype]
        return [prepare(passes.follow_kernel, key, [ys, snapshots, *states], *common)]

    columns = ys, snapshots, state
    with prepared(anew, memo, key, dtype, *columns, writes_inputs=True) as (found,):
        found.launch(numbers, (skip,))()
    count_writes(ys)


def move_(point, ys, state, numbers, dtype, memo=None):
    """As ``eager.move_``."""
    key = "move", point

    def anew(ys, _, states, __):
        common = dtype, memo, move_constants(point), TILES[dtype]
        return [prepare(passes.move_kernel, key, [ys, *states], *common)]

    with prepared(anew, memo, key, dtype, ys, [], state) as (found,):
        found.launch(numbers, ())()
    count_writes(ys)


def momentum_(name, us, gs, state, squares, numbers, dtype, skip=None, memo=None):
    """As ``eager.momentum_``: a launch for each dtype of gradients, and one for its sums."""
    check_squares(squares, us)
    key, block = ("momentum", name), TILES[dtype]

    def anew(us, gs, states, _):
        each = by_dtype(gs, [us, gs, *states], [[*range(len(us))]])
        common = dtype, memo, momentum_constants(name), block, None
        return [
            prepare(
                momentum.momentum_kernel,
                (*key, grad_dtype),
                columns,
                *common,
                [firsts(map(torch.Tensor.numel, columns[0]), block)[:-1], *positions],
            )
            for grad_dtype, columns, positions in each
        ]

    launches = []
    with prepared(anew, memo, key, dtype, us, gs, state) as found:
        for each in found:
            sums = squares.new_empty(each.programs)
            others = each.table.rows, skip, sums, squares
            second = {"COLUMNS": 2 + len(state), "BLOCK": block}
            kernel, count = momentum.squares_kernel, len(each.table.rows)
            launches += (
                each.launch(numbers, (skip, sums)),
                Launch(kernel, count, squares.device, others, second),
            )
        for launch in launches:
            launch()
    count_writes([*us, squares])


def rows_(name, os, state, scales, factors, numbers, dtype, skip=None, memo=None):
    """As ``eager.rows_``: a launch for the rows, and one for the matrices."""
    key, columns = ("rows", name, dtype), [os, *state, factors, scales]
    found = recall(memo, key, columns)
    if found is None:
        if not as_they_are([os], columns[1:], dtype):
            # of one value for each row, and in an odd format: not worth a kernel of its own
            eager.rows_(name, os, state, scales, factors, numbers, dtype, skip, memo)
            return
        found = [
            _of_rows((*key, o_dtype), some, rows_constants(name), dtype, memo)
            for o_dtype, some, _ in by_dtype(os, columns)
        ]
        remember(memo, key, columns, found)
    launches = []
    for each in found:
        sums = torch.empty(sum(each.table.sizes), dtype=torch.float64, device=each.table.device)
        launch = each.launch(numbers, (skip, sums))
        _, _, given, *others = launch.arguments
        second = {k: launch.constants[k] for k in ("LOADED", "DTYPE")}
        arguments = each.table.rows, given, *others
        kernel, second = momentum.norms_kernel, {**norms_constants(name), **second}
        count = len(each.table.rows)
        launches += launch, Launch(kernel, count, sums.device, arguments, second)
    for launch in launches:
        launch()
    count_writes([t for column in (factors, *state) for t in column])


def _of_rows(key, columns, constants, dtype, memo):
    """The launch for the rows of matrices."""
    os = columns[0]
    sizes = tuple(map(len, os))
    more = [[o.shape[1] for o in os], firsts(sizes, 1)[:-1]]
    kernel = momentum.rows_kernel
    return prepare(kernel, key, columns, dtype, memo, constants, ROWS_TILE, sizes, more)


def products(device_type):
    """The namespace of matrix products."""
    return newton_schulz


def nonfinite(gs, memo=None):
    """As ``eager.nonfinite``."""
    flag = torch.zeros(1, dtype=torch.float32, device=gs[0].device)
    found = recall(memo, ("nonfinite",), [gs])
    if found is None:
        placed = [g if g.dtype in TYPES else g.float() for g in gs]
        # of any order: only whether a value is there matters
        placed = [g if is_dense(g) else g.contiguous() for g in placed]
        found = [_search(*each, memo) for each in by_dtype(placed, [placed])]
        if all(map(operator.is_, gs, placed)):
            remember(memo, ("nonfinite",), [gs], found)
    for each in found:
        each.launch(None, (flag,))()
    return flag


def _search(grad_dtype, columns, _, memo):
    """The launch for gradients of a dtype."""
    key, dtype = ("nonfinite", grad_dtype), torch.promote_types(grad_dtype, torch.float32)
    return prepare(passes.nonfinite_kernel, key, columns, dtype, memo, {}, NONFINITE_TILES[dtype])


def step_constants(base, lookahead, scales=()):
    """What the kernel is compiled for, of the rules and of whether there are scales."""
    rules = BASES[base], LOOKAHEADS[lookahead]
    return {
        "SCALED": bool(scales),
        "BASE": rounded(rules[0].function),
        "LOOKAHEAD": rounded(rules[1].function),
        "STATES": tuple(len(r.state) for r in rules),
        "NUMBERS": tuple(len(r.numbers) for r in rules),
    }


def follow_constants(lookahead):
    """What the kernel is compiled for, of the rule."""
    return {"LOOKAHEAD": rounded(LOOKAHEADS[lookahead].function), **_counts(LOOKAHEADS[lookahead])}


def move_constants(point):
    """What the kernel is compiled for, of the rule."""
    return {"POINT": rounded(POINTS[point].function), **_counts(POINTS[point])}


def momentum_constants(name):
    """What the kernel is compiled for, of the rule."""
    return {"RULE": rounded(MOMENTA[name].function), **_counts(MOMENTA[name])}


def rows_constants(name):
    """What the kernel is compiled for, of the rule."""
    return {"RULE": rounded(ROWS[name].function), **_counts(ROWS[name]), "WIDTH": ROWS_WIDTH}


def norms_constants(name):
    """What the kernel is compiled for, of the row rule."""
    row = ROWS[name]
    norm, states, numbers = NORMS[row.norm], len(row.state), len(row.numbers)
    return {
        "RULE": rounded(norm.function),
        "STATES": states,
        "FIRST": numbers - len(norm.numbers),
        "NUMBERS": len(norm.numbers),
        "COLUMNS": states + 3,  # the matrix, its factors and its scale
    }


def _counts(rule):
    return {"STATES": len(rule.state), "NUMBERS": len(rule.numbers)}
