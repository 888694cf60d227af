"""The Triton back end: for all tensors of a bucket one launch, and no copies.

Gradients of several dtypes in one bucket take a launch for each dtype. Under TRITON_INTERPRET=1 it
serves CPU tensors, without it those of a GPU.
"""

import torch
from torch.autograd.graph import increment_version

from .. import eager
from ..layout import check_squares, is_dense, scaled
from ..rules import BASES, LOOKAHEADS, MOMENTA, POINTS, ROWS
from . import momentum, newton_schulz, passes
from .launch import TYPES, Launch, by_dtype, laid_out, prepare
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


def step_(
    base, look, ys, gs, base_state, look_state, numbers, dtype, skip=None, scales=(), memo=None
):
    """As ``eager.step_``."""
    gs, scales = scaled(gs, ys, scales, dtype)
    # in the rows: where a parameter's scales are, and how many elements share one
    more = [[*map(torch.Tensor.data_ptr, scales)], [*map(_run, ys, scales)]] if scales else []
    with laid_out(ys, gs, [*base_state, *look_state], dtype) as (ys_, gs_, states):
        key, constants = ("step", base, look, bool(scales)), step_constants(base, look, scales)
        tail = numbers, (skip,), dtype, memo, constants, TILES[dtype], None
        # all are prepared before the first runs: an error leaves everything as it was
        launches = [
            prepare(passes.step_kernel, (*key, grad_dtype), columns, *tail, rest)
            for grad_dtype, columns, rest in by_dtype(gs_, [ys_, gs_, *states], more)
        ]
        for launch in launches:
            launch()
    increment_version(ys)


def _run(y, scale):
    """How many elements share a scale."""
    return y.numel() // max(1, scale.numel())


def follow_(look, ys, snapshots, look_state, numbers, dtype, skip=None, memo=None):
    """As ``eager.follow_``."""
    key, constants = ("follow", look), follow_constants(look)
    tail = numbers, (skip,), dtype, memo, constants, TILES[dtype]
    with laid_out(ys, snapshots, look_state, dtype, True) as (ys_, snapshots_, states):
        prepare(passes.follow_kernel, key, [ys_, snapshots_, *states], *tail)()
    increment_version(ys)


def move_(point, ys, state, numbers, dtype, memo=None):
    """As ``eager.move_``."""
    key, constants = ("move", point), move_constants(point)
    tail = numbers, (), dtype, memo, constants, TILES[dtype]
    with laid_out(ys, [], state, dtype) as (ys_, _, states):
        prepare(passes.move_kernel, key, [ys_, *states], *tail)()
    increment_version(ys)


def momentum_(name, us, gs, state, squares, numbers, dtype, skip=None, memo=None):
    """As ``eager.momentum_``: a launch for each dtype of gradients, and one for its sums."""
    check_squares(squares, us)
    constants, block, launches = momentum_constants(name), TILES[dtype], []
    with laid_out(us, gs, state, dtype) as (us_, gs_, states):
        each = by_dtype(gs_, [us_, gs_, *states], [[*range(len(us))]])
        for grad_dtype, columns, positions in each:
            key = "momentum", name, grad_dtype
            first = firsts(map(torch.Tensor.numel, columns[0]), block)
            sums = squares.new_empty(first[-1])
            tail = numbers, (skip, sums), dtype, memo, constants, block
            more = [first[:-1], *positions]
            launch = prepare(momentum.momentum_kernel, key, columns, *tail, None, more)
            others = launch.table.rows, skip, sums, squares
            second = {"COLUMNS": len(columns), "BLOCK": block}
            kernel, count = momentum.squares_kernel, len(columns[0])
            launches += launch, Launch(kernel, count, squares.device, others, second)
        for launch in launches:
            launch()
    increment_version([*us, squares])


def rows_(name, os, state, scales, factors, numbers, dtype, skip=None, memo=None):
    """As ``eager.rows_``: a launch for the rows, and one for the matrices."""
    columns = [os, *state, factors, scales]
    usual = all(t.is_contiguous() for column in columns for t in column)
    if not usual or not all(t.dtype == dtype for column in columns[1:] for t in column):
        # of one value for each row, and in an odd format: not worth a kernel of its own
        eager.rows_(name, os, state, scales, factors, numbers, dtype, skip, memo)
        return
    constants, launches = rows_constants(name), []
    for o_dtype, some, _ in by_dtype(os, columns):
        key, sizes = ("rows", name, o_dtype), tuple(map(len, some[0]))
        first = firsts(sizes, 1)
        sums = torch.empty(first[-1], dtype=torch.float64, device=os[0].device)
        tail = numbers, (skip, sums), dtype, memo, constants, ROWS_TILE
        more = [[o.shape[1] for o in some[0]], first[:-1]]
        launch = prepare(momentum.rows_kernel, key, some, *tail, sizes, more)
        _, _, given, *others = launch.arguments
        second = {k: launch.constants[k] for k in ("STATES", "NUMBERS", "LOADED", "DTYPE")}
        arguments = launch.table.rows, given, *others
        kernel, second = momentum.norms_kernel, {**second, "COLUMNS": len(some)}
        launches += launch, Launch(kernel, len(sizes), sums.device, arguments, second)
    for launch in launches:
        launch()
    increment_version([t for column in (factors, *state) for t in column])


def products(device_type):
    """The namespace of matrix products."""
    return newton_schulz


def nonfinite(gs, memo=None):
    """As ``eager.nonfinite``."""
    flag = torch.zeros(1, dtype=torch.float32, device=gs[0].device)
    gs = [g if g.dtype in TYPES else g.float() for g in gs]
    # of any order: only whether a value is there matters
    gs = [g if is_dense(g) else g.contiguous() for g in gs]
    for grad_dtype, columns, _ in by_dtype(gs, [gs]):
        key, dtype = ("nonfinite", grad_dtype), torch.promote_types(grad_dtype, torch.float32)
        tail = None, (flag,), dtype, memo, {}, NONFINITE_TILES[dtype]
        prepare(passes.nonfinite_kernel, key, columns, *tail)()
    return flag


def step_constants(base, look, scales=()):
    """What the kernel is compiled for, of the rules and of whether there are scales."""
    rules = BASES[base], LOOKAHEADS[look]
    return {
        "SCALED": bool(scales),
        "BASE": rounded(rules[0].function),
        "LOOK": rounded(rules[1].function),
        "STATES": tuple(len(r.state) for r in rules),
        "NUMBERS": tuple(len(r.numbers) for r in rules),
    }


def follow_constants(look):
    """What the kernel is compiled for, of the rule."""
    return {"LOOK": rounded(LOOKAHEADS[look].function), **_counts(LOOKAHEADS[look])}


def move_constants(point):
    """What the kernel is compiled for, of the rule."""
    return {"POINT": rounded(POINTS[point].function), **_counts(POINTS[point])}


def momentum_constants(name):
    """What the kernel is compiled for, of the rule."""
    return {"RULE": rounded(MOMENTA[name].function), **_counts(MOMENTA[name])}


def rows_constants(name):
    """What the kernel is compiled for, of the rule."""
    return {"RULE": rounded(ROWS[name].function), **_counts(ROWS[name]), "WIDTH": ROWS_WIDTH}


def _counts(rule):
    return {"STATES": len(rule.state), "NUMBERS": len(rule.numbers)}
