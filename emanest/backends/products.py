# SPDX-License-Identifier: MIT
"""Products of matrices, and what else Newton-Schulz needs, in torch operations: seven functions.

Other back ends have namespaces of the same names (``cpu_products``, ``kernels.newton_schulz``).
Matrices come in batches, (batch, rows, columns), with any strides. Results of products are of the
operands' dtype unless the caller names another one, and new unless the caller says where; operands
are never written. All that is found of a matrix depends on its own operands alone, bit for bit: a
batch gives what its matrices give one by one. Symmetric results are exactly symmetric.
"""

import math
from typing import ClassVar

import torch

# bytes; the bits of a product of a BLAS may depend on where its operands begin
ALIGNMENT = 64


class Products:
    """The namespace. What products on another device do otherwise, a subclass says.

    Attributes:
        SYMMETRIC_SHARE: cost of a symmetric product relative to a full one.
        MULTIPLES: device type -> what the sides of matrices should be multiples of.
    """

    # torch has no symmetric product that takes half the work
    SYMMETRIC_SHARE = 1.0
    # a GPU reads rows that begin at odd addresses one value at a time
    MULTIPLES: ClassVar = {"cpu": 1, "cuda": 16}

    def norms(self, x):
        """Frobenius norms of (batch, n, m), in float64: (batch,)."""
        x, found = x.mT if transposed(x) else x, x.new_empty(len(x), dtype=torch.float64)
        # each as a vector: a batch, gaps and threads have a say in the order of additions
        vectors = (_placed(matrix.contiguous().view(-1)) for matrix in x)
        for vector, norm in zip(vectors, found, strict=True):
            torch.linalg.vector_norm(vector, dtype=torch.float64, out=norm)
        return found

    def row_norms(self, x):
        """Norms of the rows of (batch, n, m), in float64: (batch, n)."""
        found = x.new_empty(x.shape[:2], dtype=torch.float64)
        for matrix, norms in zip(x, found, strict=True):
            torch.linalg.vector_norm(matrix, dim=1, dtype=torch.float64, out=norms)
        return found

    def scale(self, u, factors, out):
        """Multiply each matrix by its factors, in their dtype, and round to ``out``'s.

        Args:
            u: (batch, n, m).
            factors: (batch,), or (batch, n) for one of each row, of float32 or float64.
            out: like u, of any dtype and strides; u itself for one.
        """
        factors = factors.view(*factors.shape, *[1] * (3 - factors.dim()))
        if transposed(u):
            # as memory lies: with a cast, torch takes four times as long across it
            u, factors, out = u.mT, factors.mT, out.mT
        torch.mul(u, factors, out=out)

    def mm(self, a, b):
        """A B of (batch, n, k) and (batch, k, m), by rows: (batch, n, m)."""
        return self.product(a, a, b, 0.0, 1.0)

    def sym_mm(self, x, c=None, beta=0.0, alpha=1.0, out=None):
        """Beta C + alpha X X^T of (batch, n, m) and symmetric (batch, n, n).

        Args:
            x: (batch, n, m).
            c: (batch, n, n); None for nothing. It is not read if beta is 0.
            beta, alpha: floats.
            out: a tensor that receives the result, and is returned; C itself for one. None: a new
                one.
        """
        c, beta = (x, 0.0) if c is None else (c, beta)
        return self.sym_baddbmm(c, x, x.mT, beta, alpha, out)

    def sym_baddbmm(self, c, a, b, beta, alpha, out=None):
        """Beta C + alpha A B, which is symmetric, as where A and B are and commute: (batch, n, n).

        The factors are floats; C, which is symmetric, is not read if beta is 0. ``out`` is as for
        ``sym_mm``.
        """
        if out is not None:
            check_out(out, a)
        r = self.product(c, a, b, beta, alpha)
        # the lower triangle, and above the diagonal its mirror image
        r = r.tril_().add_(r.tril(-1).mT)
        return r if out is None else out.copy_(r)

    def mm_add(self, x, a, beta, alpha, out_dtype=None):
        """Beta X + alpha A X, of symmetric (batch, n, n) and (batch, n, m).

        Columns are contiguous if X's are.

        Args:
            x: (batch, n, m).
            a: (batch, n, n), symmetric.
            beta, alpha: floats.
            out_dtype: of the result, which some back ends round to the operands' dtype first; None:
                theirs.
        """
        swapped = transposed(x)
        # (X^T A)^T: the result is laid out as X is
        x = x.mT if swapped else x
        factors = (x, a) if swapped else (a, x)
        found = self.product(x, *factors, beta, alpha).to(out_dtype or x.dtype)
        return found.mT if swapped else found

    def product(self, c, a, b, beta, alpha):
        """Beta C + alpha A B, by rows; C is not read if beta is 0."""
        if a.numel() == 0 or b.numel() == 0:
            zero = a.new_zeros(len(a), a.shape[1], b.shape[2])
            return zero if beta == 0 else zero.add(c, alpha=beta)
        addends = a[:, :1, :1] if beta == 0 else c
        triples = (map(_placed, triple) for triple in zip(addends, a, b, strict=True))
        return torch.stack([torch.addmm(*triple, beta=beta, alpha=alpha) for triple in triples])


def empty(shape, dtype, device):
    """A batch of contiguous matrices without values, each of which begins where memory is aligned.

    Bits, and the speed of loads, then do not depend on the place of a matrix in its batch.
    """
    batch, rows, columns = shape
    per = ALIGNMENT // dtype.itemsize
    size = math.ceil(rows * columns / per) * per
    memory = torch.empty(batch * size, dtype=dtype, device=device)
    return memory.as_strided((batch, rows, columns), (size, columns, 1))


def padded(shape, dtype, device, multiple, spare=None):
    """As ``empty``, of larger matrices, which are zero beyond ``shape``.

    Columns are rounded up to a multiple of elements, and rows unless they remain more than these:
    the rows of a matrix, and those of the smaller one of X X^T and X^T X, begin at multiples then.
    Zero rows and columns stay so in products, and add zeros to sums, which changes no bit.

    Args:
        shape, dtype, device: as for ``empty``.
        multiple: 1 for no padding.
        spare: a tensor that is taken instead where it is such memory already.
    """
    batch, rows, columns = shape
    high, wide = (math.ceil(side / multiple) * multiple for side in (rows, columns))
    larger = batch, rows if rows > wide else high, wide
    if spare is not None and (spare.shape, spare.dtype) == (larger, dtype):
        return spare
    memory = empty(larger, dtype, device)
    if larger != tuple(shape):
        memory[:, rows:].zero_()
        memory[:, :rows, columns:].zero_()
    return memory


def check_out(out, like):
    """Raise ValueError unless a symmetric product of (batch, n, m) can be written there."""
    shape = *like.shape[:2], like.shape[1]
    if (out.shape, out.dtype, out.device) != (shape, like.dtype, like.device):
        raise ValueError(
            f"out must have shape {shape}, of {like.dtype} on {like.device}, got "
            f"{tuple(out.shape)}, {out.dtype} on {out.device}"
        )


def transposed(x):
    """Whether the columns of a batch are contiguous, and the rows are not."""
    return x.stride(-2) == 1 != x.stride(-1)


def _placed(matrix):
    """A matrix that begins where memory is aligned."""
    return matrix if matrix.data_ptr() % ALIGNMENT == 0 else matrix.clone()


PRODUCTS = Products()
