"""Memory as the native back ends want it: dense, in one order, so that one index serves all."""

import contextlib

import torch

# formats that kernels read; others are converted to the dtype of the arithmetic
NATIVE = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


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


@contextlib.contextmanager
def flat(ys, beside, columns, dtype, writes_beside=False):
    """Copies in place of those tensors whose memory differs from the parameter's.

    What was written to a copy is copied back at the end, unless an exception came between.

    Args:
        ys: parameters, written.
        beside: what stands beside each of them (gradients, snapshots), or nothing.
        columns: lists of tensors that are written and shall have ``dtype`` (state).
        dtype: of the arithmetic.
        writes_beside: whether ``beside`` is written too.

    Yields:
        ys, beside, columns.
    """
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
    formats = [t.dtype if t.dtype in NATIVE else dtype for t in beside]
    pairs = zip(beside, ys, formats, strict=bool(beside))
    beside = [placed(t, y, to, writes_beside) for t, y, to in pairs]
    columns = [
        [placed(s, y, dtype, back=True) for s, y in zip(c, ys, strict=True)] for c in columns
    ]
    yield ys, beside, columns
    for t, copy in written:
        t.copy_(copy)
