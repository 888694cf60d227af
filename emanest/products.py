"""The products that Newton-Schulz is made of, in torch operations; a namespace of four functions.

Other back ends have modules with the same functions (``cpu_products``, ``kernels.newton_schulz``).
Matrices come in batches, (batch, rows, columns), with any strides. Results are new, of the
operands' dtype; operands are never written. Each matrix of a result depends on its own operands
alone, bit for bit: a batch gives what its matrices give one by one. Symmetric results are exactly
symmetric.
"""

import torch

# cost of a symmetric product relative to a full one: torch has no kernel that takes half the work
SYMMETRIC_SHARE = 1.0


def sym_mm(x):
    """X X^T of (batch, n, m)."""
    return _mirrored(torch.stack([a @ a.mT for a in x]) if len(x) else x @ x.mT)


def sym_baddbmm(c, a, b, beta, alpha):
    """Beta C + alpha A B, of symmetric (batch, n, n) that commute."""
    return _mirrored(_each(c, a, b, beta, alpha))


def mm(a, x):
    """A X, of symmetric (batch, n, n) and (batch, n, m); columns are contiguous if X's are."""
    return mm_add(x, a, 0.0, 1.0)


def mm_add(x, a, beta, alpha):
    """Beta X + alpha A X, as ``mm``."""
    if x.stride(-2) == 1 != x.stride(-1):
        # (X^T A)^T: the result is laid out as X is
        return _each(x.mT, x.mT, a, beta, alpha).mT
    return _each(x, a, x, beta, alpha)


def _each(c, a, b, beta, alpha):
    out = torch.empty(c.shape, dtype=c.dtype, device=c.device)
    for to, matrix, left, right in zip(out, c, a, b, strict=True):
        torch.addmm(matrix, left, right, beta=beta, alpha=alpha, out=to)
    return out


def _mirrored(r):
    """The lower triangle, and above the diagonal its mirror image."""
    return r.tril_().add_(r.tril(-1).mT)
