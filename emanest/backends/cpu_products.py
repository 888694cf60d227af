# SPDX-License-Identifier: MIT
"""Products of matrices on the CPU, with half the work where a result is symmetric.

Bits of a result depend neither on the number of threads nor on the batch.
"""

from typing import ClassVar

from ..extension.loaded import _C
from . import products


class CpuProducts(products.Products):
    """As ``Products``, with products in C++."""

    # measured at n = 768, where strips of 96 rows multiply 9/16 of the matrix and mirror the rest
    SYMMETRIC_SHARE = 0.64
    # measured at 1024 x 2731: rows that begin at multiples of 16 gain nothing, and have other bits
    MULTIPLES: ClassVar = {"cpu": 1}

    def mm(self, a, b):
        """As ``Products.mm``."""
        return _computed(_C.large_product, a, a, b, 0.0, 1.0)

    def sym_baddbmm(self, c, a, b, beta, alpha, out=None):
        """As ``Products.sym_baddbmm``; nothing is copied if matrices of ``out`` are aligned."""
        if out is None:
            return _computed(_C.symmetric_product, c, a, b, beta, alpha)
        products.check_out(out, a)
        # MKL on AMD's processors has other bits where a result is not aligned
        if not (_aligned(out) and all(each.is_contiguous() for each in out)):
            return out.copy_(_computed(_C.symmetric_product, c, a, b, beta, alpha))
        return _C.symmetric_product(out, c, _placed(a), _placed(b), beta, alpha)

    def product(self, c, a, b, beta, alpha):
        """As ``Products.product``."""
        return _computed(_C.product, c, a, b, beta, alpha)


def _computed(function, c, a, b, beta, alpha):
    out = products.empty((*a.shape[:2], b.shape[2]), a.dtype, a.device)
    return function(out, c, _placed(a), _placed(b), beta, alpha)


def _aligned(t):
    """Whether every matrix of a batch begins at a multiple of the alignment."""
    step = t.stride(0) * t.itemsize if len(t) > 1 else 0
    return t.data_ptr() % products.ALIGNMENT == step % products.ALIGNMENT == 0


def _placed(t):
    """A batch whose matrices are aligned and have contiguous rows, or columns."""
    if _aligned(t) and 1 in (t.stride(-1), t.stride(-2)):
        return t
    if products.transposed(t):
        return _placed(t.mT).mT
    return products.empty(t.shape, t.dtype, t.device).copy_(t)


PRODUCTS = CpuProducts()
