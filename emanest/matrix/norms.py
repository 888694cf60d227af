# SPDX-License-Identifier: MIT
"""The norms that matrices are divided by, so that no singular value exceeds 1."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from .. import backends


def with_products(name, device, backend, *args):
    """Call a function of the namespace of products."""
    return backends.run(
        lambda module: getattr(module.products(device.type), name)(*args), device.type, backend
    )


def norms_of(u, backend=None):
    """Frobenius norms of (batch, m, n), in float64: (batch,)."""
    return with_products("norms", u.device, backend, u)


def inverses(norms, eps, margin, dtype):
    """Factors that divide matrices by their norms, for any number of matrices at once.

    Args:
        norms: (batch,), float64; overwritten.
        eps: at least 0, smaller norms count as it.
        margin: factor of the norms.
        dtype: of the matrices, float32 or float64.

    Returns:
        (batch,) of that dtype, finite where norms are numbers: zero stays zero, since norms whose
        inverse is beyond the range count as those whose inverse is not.
    """
    least = max(1 / torch.finfo(dtype).max, torch.finfo(norms.dtype).tiny)
    norms.clamp_(min=max(eps, least / margin))
    if margin != 1:
        norms *= margin
    # computed in float64, rounded once
    return torch.reciprocal(norms, out=torch.empty_like(norms, dtype=dtype))


# ---- how an iteration starts --------------------------------------------------------------------


def frobenius(x, products, factors=None, eps=0.0, margin=1.0):
    """X, which is over its norm already, and X X^T.

    Args:
        x: (batch, n, m), n <= m.
        products: a namespace.
        factors: (batch,), what made X of the update.
        eps, margin: as in ``inverses``.
    """
    return x, products.sym_mm(x)


def schatten4(x, products, factors, eps, margin):
    """X over its Schatten-4 norm, the root of the Frobenius norm of X X^T; and X X^T of that.

    Args:
        x: (batch, n, m), n <= m, over its Frobenius norm; overwritten.
        products, factors, eps, margin: as in ``frobenius``; eps is of the update's norm.
    """
    r = products.sym_mm(x)
    norms = products.norms(r).sqrt_()
    # at least n ** -0.25, rounded, but where x is zero, or so small that its factor was bounded:
    # that stays small, and its X X^T may be zero
    least = 0.5 * x.shape[1] ** -0.25
    norms = torch.maximum(norms, (eps * factors.double()).clamp_(min=least))
    scales = inverses(norms, 0.0, margin, factors.dtype)
    products.scale(x, scales, x)
    products.scale(r, scales.square(), r)
    return x, r


class Norm(NamedTuple):
    """A norm that matrices are divided by.

    Attributes:
        factors: as ``inverses``, of Frobenius norms: what they are multiplied by at first.
        start: as ``frobenius``, of the products: what the first step takes.
    """

    factors: Callable
    start: Callable


# the rows of the table below, for annotations
NormName = Literal["frobenius", "schatten4"]

# all are found from Frobenius norms, after which X X^T is in the range of any dtype
NORMS = {
    "frobenius": Norm(inverses, frobenius),
    "schatten4": Norm(
        lambda norms, eps, margin, dtype: inverses(norms, 0.0, 1.0, dtype), schatten4
    ),
}
