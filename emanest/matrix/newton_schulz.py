# SPDX-License-Identifier: MIT
"""Newton-Schulz: the orthogonal factor of a matrix, from matrix products alone.

One step replaces each singular value s of X by ``a s + b s**3 + c s**5`` and leaves the singular
vectors as they are. Polynomials that lift small values first and settle near 1 turn X into nearly
U V^T within a few steps. The singular values must not exceed 1 in the beginning, so X is divided by
a norm of it (``norms.py``).
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from .. import backends
from ..backends.layout import NATIVE
from ..backends.products import padded
from ..backends.storage import check, waited
from ..values import choice, real
from .coefficients import CoefficientsName, polynomials
from .forms import FORMS, RESTART, FormName, apply, cheapest
from .norms import NORMS, NormName, frobenius, norms_of, with_products

# dtypes of the iteration
DtypeName = Literal["float16", "bfloat16", "float32", "float64"]


@torch.no_grad()
def orthogonalize(
    g: torch.Tensor,
    steps: int = 5,
    coefficients: CoefficientsName | Sequence[float] | Sequence[Sequence[float]] = "keller",
    *,
    eps: float = 0.0,
    form: FormName | None = None,
    dtype: DtypeName | torch.dtype | None = None,
    norm: NormName = "frobenius",
    backend: backends.BackendName | None = None,
) -> torch.Tensor:
    """Return U V^T of g = U S V^T, as nearly as the coefficients bring it.

    Args:
        g: (..., m, n), of float64, float32, bfloat16 or float16; each matrix by itself, several of
            one shape in one batch.
        steps: at least 1.
        coefficients: a name in ``coefficients.COEFFICIENTS``, (a, b, c), or a list of such triples,
            one for each step, of which the last is repeated.
        eps: norms below it count as it, so that smaller matrices come out smaller. 0: the scale of
            g does not matter, as long as the squares of its entries are in the range of float64.
        form: ``"standard"``, ``"gram"``, or None for the cheaper one.
        dtype: of the iteration, float16, bfloat16 (standard form only), float32 or float64, or its
            name; None chooses by the device: see ``working_dtype``.
        norm: which norm g is divided by, no smaller than its largest singular value:
            ``"frobenius"``, or ``"schatten4"``, the root of the Frobenius norm of g g^T, which is
            nearer to that value, so that small ones start higher. It takes no further product.
        backend: name of a back end, or None for the best that works on the device.

    Returns:
        A tensor of g's shape and dtype; zero where a matrix of g is zero. A matrix with NaN or
        infinite entries comes out as NaN and leaves the others alone. Not differentiable.

    Memory: a few copies of all of g in the dtype of the iteration, on a GPU with sides rounded up
    to multiples of 16.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind (a ``DTensor`` say, or another
            subclass that is not a tensor in memory) or out of range.
        RuntimeError: the back end does not serve the device.
    """
    if not isinstance(g, torch.Tensor) or g.dtype not in NATIVE or g.dim() < 2:
        found = (g.dtype, tuple(g.shape)) if isinstance(g, torch.Tensor) else type(g).__name__
        raise TypeError(
            "g must be a floating tensor (float64, float32, bfloat16, float16) of shape "
            f"(..., m, n), got {found}"
        )
    g = waited(g)
    check("g", g)
    backends.require(g.device.type, backend)
    rows, margin = polynomials(coefficients, steps)
    form = choice("form", form, (None, *FORMS))
    working = working_dtype(g.device, g.dtype, form, check_dtype("dtype", dtype))
    # back ends read memory as it is
    matrices = g.detach().resolve_neg().reshape(math.prod(g.shape[:-2]), *g.shape[-2:])
    eps, divisor = real("eps", eps, 0), NORMS[choice("norm", norm, NORMS)]
    norms = norms_of(matrices, backend)
    # float16 and bfloat16 have too small a range, or too few digits, for factors
    factors = divisor.factors(norms, eps, margin, torch.promote_types(g.dtype, torch.float32))
    start = functools.partial(divisor.start, factors=factors, eps=eps, margin=margin)
    how = working, form, backend
    # rounded by the last product: a cast is a pass over the result, at half the rate of memory
    found = orthogonal(matrices, factors, rows, *how, start=start, out_dtype=g.dtype)
    return found.view(g.shape)


def check_dtype(name, value):
    """Return the name of a dtype of the iteration, or None; ValueError for anything else."""
    # a name, not a dtype: state dicts hold plain types
    named = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    return choice(name, named, (None, *get_args(DtypeName)))


def working_dtype(device, dtype, form=None, asked=None):
    """The dtype of the iteration.

    Args:
        device: where it runs.
        dtype: of what is orthogonalised; float64 stays float64.
        form: a row of ``FORMS``, or None for either.
        asked: the name of a dtype, or None to choose: float16 on a GPU (as fast as bfloat16, with
            8 times its precision; the norm keeps values in range), bfloat16 on a CPU with matrix
            units for it (AMX), else float32.

    Raises:
        ValueError: the Gram form in bfloat16.
    """
    if asked is not None:
        dtype = getattr(torch, asked)
    elif dtype != torch.float64:
        dtype = _FASTEST.get(device.type, lambda form: torch.float32)(form)
    if form == "gram" and dtype not in RESTART:
        raise ValueError("form='gram' loses all digits in bfloat16: take float16 or float32")
    return dtype


def _on_cpu(form):
    amx = torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if amx and form != "gram" else torch.float32


_FASTEST = {"cpu": _on_cpu, "cuda": lambda form: torch.float16}


def orthogonal(
    u, factors, rows, dtype, form=None, backend=None, spare=None, start=frobenius, out_dtype=None
):
    """Apply polynomials to the singular values of matrices over their norms.

    Args:
        u: (batch, m, n), of a dtype no wider than that of the factors.
        factors: (batch,), those of ``inverses``; or (batch, max(m, n)), one for each row of what is
            taken as a tall matrix.
        rows, backend, start: as in ``iterate``.
        form: a row of ``FORMS``, or None for the cheaper one.
        dtype: of the iteration, which has sides of its own: see ``products.padded``.
        spare: memory like u that may be written, u itself for one; or None.
        out_dtype: of the result; None: that of the iteration.

    Returns:
        A contiguous tensor like u, of ``out_dtype``.
    """
    (_, m, n), device = u.shape, u.device
    products = backends.pick(device.type, backend).products(device.type)
    x = padded(u.shape, dtype, device, products.MULTIPLES.get(device.type, 1), spare)
    # by u's own sides: padding then changes no bit, and where X X^T is singular, products amplify
    # rounding errors
    tall, to = m > n, x[:, :m, :n]
    u, to = (u, to) if tall else (u.mT, to.mT)
    with_products("scale", device, backend, u, factors, to)
    form = form or cheapest(min(m, n), max(m, n), rows, dtype, products.SYMMETRIC_SHARE)
    found = iterate(x.mT if tall else x, rows, form, backend, start, out_dtype)
    return (found.mT if tall else found)[:, :m, :n].contiguous()


def iterate(x, rows, form, backend=None, start=frobenius, out_dtype=None):
    """Apply polynomials to the singular values of matrices.

    Args:
        x: (batch, n, m), n <= m, singular values at most 1; written by ``start`` alone.
        rows: (a, b, c) of each step.
        form: a row of ``FORMS``.
        backend: the choice of a group.
        start: as in ``standard``.
        out_dtype: of the result; None: that of x.

    Returns:
        A tensor like x, whose columns are contiguous if those of x are, else its rows. Zero rows
        and columns of x stay zero.
    """
    if x.numel() == 0:
        return x.to(out_dtype or x.dtype)

    def work(module):
        products = module.products(x.device.type)
        return apply(form, x, rows, products, start, out_dtype)

    # autocast would give some of the products another dtype
    with torch.autocast(x.device.type, enabled=False):
        return backends.run(work, x.device.type, backend)
