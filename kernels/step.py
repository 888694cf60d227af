"""The Triton back end: for all tensors of a bucket one launch, and no copies.

Gradients of several dtypes in one bucket take a launch for each dtype. Under TRITON_INTERPRET=1 it
serves CPU tensors, without it those of a GPU.
"""

import contextlib
import functools

import torch
import triton.language as tl
from torch.autograd.graph import increment_version

from ..layout import flat, is_dense
from ..rules import BASES, LOOKAHEADS, POINTS
from . import passes
from .plan import plan_ as plan_
from .rounding import INTERPRETED, rounded
from .table import lookup, place, upload

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
DEVICES = ("cpu",) if INTERPRETED else ("cuda",)
# elements of a chunk, by dtype of the arithmetic: with 256 threads each has 8 of every tensor (4 in
# float64), which for AdamW with EMA-Nesterov are 10 loads of 128 bits in flight, in 72 registers
TILES = {torch.float32: 2048, torch.float64: 1024}
# there is one tensor only, so more of it
NONFINITE_TILES = {torch.float32: 8192, torch.float64: 4096}
if INTERPRETED:
    # it takes its time for operations, not for elements
    TILES = NONFINITE_TILES = dict.fromkeys(TILES, 65536)
# without contraction to fused multiply-adds rules round as in the other back ends, and a base has
# the same bits whatever lookahead it is paired with; memory, not arithmetic, takes the time
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


def step_(base, look, ys, gs, base_state, look_state, numbers, dtype, skip=None, memo=None):
    """As ``eager.step_``."""
    with _laid_out(ys, gs, [*base_state, *look_state], dtype) as (ys_, gs_, states):
        key = "step", base, look
        tail = numbers, (skip,), dtype, memo, step_constants(base, look)
        # all are prepared before the first runs: an error leaves everything as it was
        launches = [
            _prepare(passes.step_kernel, (*key, grad_dtype), columns, *tail)
            for grad_dtype, columns in _by_dtype(gs_, [ys_, gs_, *states])
        ]
        for launch in launches:
            launch()
    increment_version(ys)


def follow_(look, ys, snapshots, look_state, numbers, dtype, skip=None, memo=None):
    """As ``eager.follow_``."""
    key, tail = ("follow", look), (numbers, (skip,), dtype, memo, follow_constants(look))
    with _laid_out(ys, snapshots, look_state, dtype, True) as (ys_, snapshots_, states):
        _prepare(passes.follow_kernel, key, [ys_, snapshots_, *states], *tail)()
    increment_version(ys)


def move_(point, ys, state, numbers, dtype, memo=None):
    """As ``eager.move_``."""
    key, tail = ("move", point), (numbers, (), dtype, memo, move_constants(point))
    with _laid_out(ys, [], state, dtype) as (ys_, _, states):
        _prepare(passes.move_kernel, key, [ys_, *states], *tail)()
    increment_version(ys)


def nonfinite(gs, memo=None):
    """As ``eager.nonfinite``."""
    flag = torch.zeros(1, dtype=torch.float32, device=gs[0].device)
    gs = [g if g.dtype in TYPES else g.float() for g in gs]
    # of any order: only whether a value is there matters
    gs = [g if is_dense(g) else g.contiguous() for g in gs]
    for grad_dtype, columns in _by_dtype(gs, [gs]):
        key, dtype = ("nonfinite", grad_dtype), torch.promote_types(grad_dtype, torch.float32)
        tail = None, (flag,), dtype, memo, {}, NONFINITE_TILES
        _prepare(passes.nonfinite_kernel, key, columns, *tail)()
    return flag


def step_constants(base, look):
    """What the kernel is compiled for, of the rules."""
    rules = BASES[base], LOOKAHEADS[look]
    return {
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


def tensor_constants(dtypes, dtype, tiles=TILES):
    """What a kernel is compiled for, of the columns' dtypes and the arithmetic's."""
    return {
        "TYPES": tuple(TYPES[d] for d in dtypes),
        "VECTOR": 16 // max(d.itemsize for d in dtypes),
        "DTYPE": TYPES[dtype],
        "BLOCK": tiles[dtype],
    }


def _prepare(kernel, key, columns, numbers, others, dtype, memo, constants, tiles=TILES):
    """A launch of a kernel over columns of tensors, to be called.

    Args:
        kernel, constants: of ``passes``.
        key: for the memo.
        columns: dense tensors, of one dtype in each column.
        numbers: as a back end gets them; None if the kernel takes none.
        others: the kernel's remaining arguments.
        dtype: of the arithmetic.
        memo: the back end's.
        tiles: elements of a chunk, by dtype.
    """
    if not columns[0]:
        return lambda: None
    dtypes = [column[0].dtype for column in columns]
    device = columns[0][0].device
    _check(device, dtypes[0])
    memo, keep = place(memo, device)
    table = lookup(memo, keep, key, columns, tiles[dtype])
    if numbers is not None:
        numbers = _given(numbers, dtype, device, keep)
        constants = {**constants, "LOADED": isinstance(numbers, torch.Tensor)}
        others = (numbers, *others)
    constants = {**constants, **tensor_constants(dtypes, dtype, tiles)}
    arguments = table.chunks, table.rows, *others
    return functools.partial(_launch, kernel, len(table.chunks), device, arguments, constants)


def _launch(kernel, programs, device, arguments, constants):
    if not programs:
        return
    # Triton launches on the current device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **constants, **OPTIONS)


def _given(numbers, dtype, device, keep):
    """Numbers as a kernel takes them: a tuple of floats, or a vector on the device."""
    if isinstance(numbers, torch.Tensor):
        return numbers.to(device).contiguous()
    # an integer would be an int32, or a constant; a tuple should not be empty
    floats = tuple(map(float, numbers)) or (0.0,)
    if dtype == torch.float32:
        return floats
    # as an argument it would be a float32
    vector = torch.empty(len(floats), dtype=dtype, device=device)
    upload(torch.tensor(floats, dtype=dtype, device="cpu"), vector, keep)
    return vector


def _laid_out(ys, beside, columns, dtype, writes_beside=False):
    """``flat``, without its look at every tensor's strides in the usual case."""
    usual = (
        all(all(map(torch.Tensor.is_contiguous, c)) for c in (ys, beside, *columns))
        and all({t.dtype for t in c} <= {dtype} for c in columns)
        and {t.dtype for t in beside} <= TYPES.keys()
    )
    if usual:
        return contextlib.nullcontext((ys, beside, columns))
    return flat(ys, beside, columns, dtype, writes_beside)


def _by_dtype(tensors, columns):
    """For each dtype among some tensors: it, and the columns of those parameters."""
    dtypes = [t.dtype for t in tensors]
    found = dict.fromkeys(dtypes)
    if len(found) == 1:
        yield dtypes[0], columns
        return
    for dtype in found:
        same = [i for i, d in enumerate(dtypes) if d == dtype]
        yield dtype, [[column[i] for i in same] for column in columns]


def _counts(rule):
    return {"STATES": len(rule.state), "NUMBERS": len(rule.numbers)}


def _check(device, dtype):
    if INTERPRETED and device.type != "cpu":
        raise RuntimeError(
            f"TRITON_INTERPRET is set: backend='triton' then serves CPU tensors, got {device.type}"
        )
    if not INTERPRETED and device.type == "cpu":
        raise RuntimeError(
            "backend='triton' serves CPU tensors only if TRITON_INTERPRET=1 is set before Triton "
            "is imported"
        )
    if dtype not in TYPES:
        raise RuntimeError(f"backend='triton' has no kernel for parameters of {dtype}")
