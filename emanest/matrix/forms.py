# SPDX-License-Identifier: MIT
"""The two forms of Newton-Schulz: what matrix products it is made of, and how many operations.

Both are one product of polynomials, each written against a namespace of functions
(``emanest.backends.products`` documents it), so that it does not know where it runs. A form says
what some steps make of X, as the arguments of ``mm_add``.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (standard
form); Dao-AILab, "Gram Newton-Schulz" (Gram form).
"""

from typing import Literal

import torch

from .norms import frobenius


def standard(x, rows, products, start):
    """X <- (a + b R + c R^2) X with R = X X^T.

    Args:
        x: (batch, n, m), n <= m.
        rows: (a, b, c) of each step, of which there is one.
        products: a namespace.
        start: (x, products) -> x and R of the first step.

    Returns:
        X, a symmetric A, beta and alpha, for beta X + alpha A X.
    """
    ((a, b, c),) = rows
    x, r = start(x, products)
    return (x, r, a, b) if c == 0 else (x, products.sym_baddbmm(r, r, r, b, c), a, 1.0)


def gram(x, rows, products, start):
    """The same on the Gram matrix R: several steps together multiply X by one polynomial Q of R.

    Products with X, which is wider than R, are then needed at the ends only. Rounding errors of R
    grow with the conditioning of Q; a restart (X <- Q X) after ``RESTART`` steps bounds it.

    Args:
        x, rows, products, start: as in ``standard``, of several steps; not in bfloat16.

    Returns:
        As ``standard``.
    """
    (x, r), q = start(x, products), None
    for i, (a, b, c) in enumerate(rows):
        # one step is multiplication by a + z
        z = b * r if c == 0 else products.sym_baddbmm(r, r, r, b, c)
        if i + 1 < len(rows):
            rh = products.sym_baddbmm(r, r, z, a, 1.0)
            r = products.sym_baddbmm(rh, rh, z, a, 1.0)
        if q is None:
            # nothing else needs z now. An r found from a + z would have lost digits of a small z
            z.diagonal(dim1=-2, dim2=-1).add_(a)
            q = z
        else:
            q = products.sym_baddbmm(q, q, z, a, 1.0)
    return x, q, 0.0, 1.0


# steps of the Gram form between restarts. Over 5 steps without one, float32 stays as close to
# float64 as the standard form does (1e-5 on decaying columns, 1e-4 on a spectrum down to 1e-6);
# float16 with one after the third has 5e-3 where after the second it has 2e-2; bfloat16 has none
# that would do.
RESTART = {torch.float16: 3, torch.float32: 5, torch.float64: 5}


def _segments(form, rows, dtype):
    """The steps that multiply X together: in the standard form each by itself."""
    length = RESTART[dtype] if form == "gram" else 1
    return [rows[begin : begin + length] for begin in range(0, len(rows), length)]


# the rows of the table below, for annotations
FormName = Literal["standard", "gram"]

FORMS = {"standard": standard, "gram": gram}


def apply(form, x, rows, products, start=frobenius, out_dtype=None):
    """Apply the polynomials of all steps to the singular values of X.

    Args:
        form: a row of ``FORMS``.
        x, products, start: as in ``standard``.
        rows: (a, b, c) of each step.
        out_dtype: of the result; None: that of x.

    Returns:
        A tensor like x, of ``out_dtype``.
    """
    *before, last = _segments(form, rows, x.dtype)
    for some in before:
        x, start = products.mm_add(*FORMS[form](x, some, products, start)), frobenius
    return products.mm_add(*FORMS[form](x, last, products, start), out_dtype)


# ---- which form is cheaper ----------------------------------------------------------------------


def costs(form, rows, dtype):
    """How many products X X^T, and as many A X, a form takes; and how many of n x n matrices."""
    segments = _segments(form, rows, dtype)
    # z and q at every step but a segment's first, which has no q; r twice at every step but its
    # last
    small = sum(4 * len(some) - 3 - sum(c == 0 for _, _, c in some) for some in segments)
    return len(segments), small


def flops(form, n, m, rows, dtype, share=0.5):
    """Floating-point operations of a form, a multiplication and an addition counted as two.

    Args:
        form: a row of ``FORMS``.
        n, m: sizes of the matrix, n <= m.
        rows: (a, b, c) of each step.
        dtype: of the iteration; the Gram form restarts by it.
        share: cost of a symmetric product relative to a full one.
    """
    wide, small = costs(form, rows, dtype)
    return 2 * n * n * (wide * m * share + small * n * share + wide * m)


def cheapest(n, m, rows, dtype, share):
    """The form with the fewest operations; the standard one at equality, and in bfloat16."""
    allowed = [form for form in FORMS if form != "gram" or dtype in RESTART]
    return min(allowed, key=lambda form: flops(form, n, m, rows, dtype, share))
