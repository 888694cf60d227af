# SPDX-License-Identifier: MIT
"""Memory as the native back ends want it: dense, in one order, so that one index serves all."""

import itertools
import operator

import torch

# formats that kernels read; others are converted to the dtype of the arithmetic
NATIVE = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})

# integers of so many bytes
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dense_strides(t):
    """The dense strides nearest to a tensor's own: those, if it has no gaps."""
    return torch.empty_like(t, device="meta").stride()


def is_dense(t):
    """Whether a tensor fills its memory without gaps, in any order of its dimensions."""
    return t.is_contiguous() or dense_strides(t) == t.stride()


def aligned(a, b):
    """Whether the elements of two dense tensors lie in the same order."""
    if a.is_contiguous() and b.is_contiguous():
        return True
    # of a dimension of size 1 the stride does not matter
    pairs = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(m == n for size, m, n in pairs if size != 1)


def same_bits(a, b):
    """Whether two tensors of one shape and dtype agree in every bit, those of NaN included."""
    return torch.equal(_integers(a), _integers(b))


def _integers(t):
    real = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
    return real.detach().resolve_neg().view(_INTEGERS[real.itemsize])


def as_they_are(columns, wide, dtype):
    """Whether all tensors are contiguous and without a negation, and those of some of a dtype.

    Args:
        columns: lists of tensors.
        wide: those of ``columns`` whose tensors shall have the dtype.
        dtype: of the arithmetic.
    """
    every = [t for column in columns for t in column]
    return (
        all(map(torch.Tensor.is_contiguous, every))
        and not any(map(torch.Tensor.is_neg, every))
        and all(t.dtype == dtype for column in wide for t in column)
    )


def flat(ys, inputs, columns, dtype, writes_inputs=False):
    """Copies in place of those tensors whose memory differs from the parameter's.

    Args:
        ys: parameters, written.
        inputs: one for each of them (gradients, snapshots), or none.
        columns: lists of tensors that are written and shall have ``dtype`` (state).
        dtype: of the arithmetic.
        writes_inputs: whether ``inputs`` is written too.

    Returns:
        ys, inputs, columns; and pairs of a tensor that is written and its copy, which the caller
        copies back.
    """
    # the usual case, without a look at every tensor's strides
    if {t.dtype for t in inputs} <= NATIVE and as_they_are((ys, inputs, *columns), columns, dtype):
        return ys, inputs, columns, []
    written = []

    def placed(t, like, dtype, back):
        if t.dtype == dtype and is_dense(t) and aligned(t, like) and not t.is_neg():
            return t
        # of a tensor with gaps, empty_like makes a dense one
        copy = torch.empty_like(like, dtype=dtype).copy_(t)
        if back:
            written.append((t, copy))
        return copy

    ys = [placed(y, y, y.dtype, back=True) for y in ys]
    formats = [t.dtype if t.dtype in NATIVE else dtype for t in inputs]
    pairs = zip(inputs, ys, formats, strict=bool(inputs))
    inputs = [placed(t, y, to, writes_inputs) for t, y, to in pairs]
    columns = [
        [placed(s, y, dtype, back=True) for s, y in zip(c, ys, strict=True)] for c in columns
    ]
    return ys, inputs, columns, written


def scaled(gs, ys, scales, dtype):
    """Apply those scales that memory order cannot find: copies of gradients in place of them.

    A kernel sees a parameter as one row of memory, and has the scale of element i at ``i // run``,
    ``run`` elements to a scale. With a scale for each row (all that shares the first index, in a
    stack of matrices the first two) this is right where rows follow each other in memory, as in
    contiguous and channels_last tensors; in a transposed one they are interleaved.

    Args:
        gs, ys, scales, dtype: as in ``eager.apply_``, before ``flat`` (which keeps the order
            that is judged here); none is written.

    Returns:
        gs and scales: the lists that were given where there is nothing to do. Otherwise new lists,
        in which such a gradient is multiplied into a new tensor of ``dtype``, laid out as its
        parameter, and has a 1-element scale of ones. The factor in the numbers then comes after
        the scale instead of before it, which can differ in the last bit unless it is a power of 2.
    """
    pairs = enumerate(zip(ys, scales, strict=bool(scales)))
    found = [i for i, (y, s) in pairs if not _in_runs(y, s)]
    if not found:
        return gs, scales
    gs, scales = list(gs), list(scales)
    for i in found:
        factor = by_row(scales[i], ys[i])
        product = torch.empty_like(ys[i], dtype=dtype)
        gs[i] = torch.mul(gs[i].to(dtype), factor, out=product)
        scales[i] = factor.new_ones(1)
    return gs, scales


def by_row(scale, y):
    """A vector of scales, shaped to multiply a parameter.

    Raises:
        ValueError: it has neither one element nor one for each index of the first dimensions.
    """
    first = _indexed(scale.numel(), y.shape)
    return scale.view((*first, *[1] * (y.dim() - len(first))))


def _indexed(count, shape):
    """The first dimensions of a shape, no more of them than it takes to have so many indices."""
    for dims, rows in enumerate(itertools.accumulate(shape, operator.mul, initial=1)):
        if rows == count:
            return shape[:dims]
    raise ValueError(
        f"scales of a parameter of sizes {list(shape)}: expected 1, or one for each index of its "
        f"first dimensions, got {count}"
    )


def _in_runs(y, scale):
    """Whether each scale belongs to elements that follow each other in memory."""
    if scale.numel() <= 1 or y.is_contiguous():
        return True
    run = y.numel()
    for size, stride in zip(_indexed(scale.numel(), y.shape), dense_strides(y), strict=False):
        run //= size
        # of a dimension of size 1 the stride does not matter
        if stride != run and size != 1:
            return False
    return True


def check_squares(squares, us):
    """Raise ValueError unless a momentum pass can write its sums there, one for each update."""
    if squares.shape != (len(us),) or squares.dtype != torch.float64 or not squares.is_contiguous():
        raise ValueError(f"squares must be a float64 vector of {len(us)}, got {squares.shape}")
    if us and squares.device != us[0].device:
        raise ValueError(f"squares are on {squares.device}, the updates on {us[0].device}")
