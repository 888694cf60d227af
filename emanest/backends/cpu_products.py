"""The products of Newton-Schulz on the CPU, with half the work where a result is symmetric.

A module with the functions of ``products``. Bits of a result depend neither on the number of
threads nor on the batch.
"""

from .. import _C
from . import products
from .products import norms as norms
from .products import scale as scale

# measured at n = 768, where strips of 96 rows multiply 9/16 of the matrix and mirror the rest
SYMMETRIC_SHARE = 0.64

# measured at 1024 x 2731: rows that begin at multiples of 16 gain nothing, and have other bits
MULTIPLES = {"cpu": 1}


def sym_mm(x):
    """As ``products.sym_mm``."""
    x = _placed(x)
    return _C.symmetric_product(_results(x, x), x, x, x.mT, 0.0, 1.0)


def sym_baddbmm(c, a, b, beta, alpha):
    """As ``products.sym_baddbmm``."""
    a, b, c = map(_placed, (a, b, c))
    return _C.symmetric_product(_results(a, b), c, a, b, beta, alpha)


def mm(a, x):
    """As ``products.mm``."""
    return mm_add(x, a, 0.0, 1.0)


def mm_add(x, a, beta, alpha):
    """As ``products.mm_add``."""
    x, a = _placed(x), _placed(a)
    if products.transposed(x):
        # (X^T A)^T: the result is laid out as X is
        return _C.product(_results(x.mT, a.mT), x.mT, x.mT, a, beta, alpha).mT
    return _C.product(_results(a, x.mT), x, a, x, beta, alpha)


def _results(a, b):
    """Memory for a b^T, every matrix of it aligned."""
    return products.empty((len(a), a.shape[1], b.shape[1]), a.dtype, a.device)


def _placed(t):
    """A batch whose matrices are aligned and have contiguous rows, or columns."""
    step = t.stride(0) * t.itemsize if len(t) > 1 else 0
    aligned = t.data_ptr() % products.ALIGNMENT == step % products.ALIGNMENT == 0
    if aligned and 1 in (t.stride(-1), t.stride(-2)):
        return t
    if products.transposed(t):
        return _placed(t.mT).mT
    return products.empty(t.shape, t.dtype, t.device).copy_(t)
