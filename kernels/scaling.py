"""The kernels before and after the products of Newton-Schulz: norms, and a factor for each matrix.

torch would first make a copy in float64 for the norms, and casts with loads of one element, at half
the rate of memory. A program takes a tile of a matrix; strides are in elements, and which of them
are 1 or divided by 16 is compiled in, as in ``products``.
"""

import triton
import triton.language as tl

from .passes import _narrowed, _widened
from .rounding import inline


@inline
def _tile(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The matrix of this program, the rows and columns of its tile, and which of them are there."""
    across = tl.cdiv(columns, BLOCK_N)
    count = tl.cdiv(rows, BLOCK_M) * across
    matrix, t = tl.program_id(0) // count, tl.program_id(0) % count
    i = (t // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = (t % across).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return matrix, i, j, (i < rows)[:, None] & (j < columns)[None, :]


@inline
def _pointers(tensor, matrix, batch, i, row, j, column):
    return tensor + matrix.to(tl.int64) * batch + i[:, None] * row + j[None, :] * column


@triton.jit
def tile_squares_kernel(
    x, sums, rows, columns, batch, row, column, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Leave the sum of squares of each tile, in float64."""
    matrix, i, j, mask = _tile(rows, columns, BLOCK_M, BLOCK_N)
    value = tl.load(_pointers(x, matrix, batch, i, row, j, column), mask=mask, other=0.0)
    value = _widened(value, tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(value * value))


@triton.jit
def scale_kernel(
    u, factors, out, rows, columns, u_batch, u_row, u_column, out_batch, out_row, out_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Multiply each matrix by its factor, in the factors' dtype, and round once to that of out."""
    matrix, i, j, mask = _tile(rows, columns, BLOCK_M, BLOCK_N)
    value = tl.load(_pointers(u, matrix, u_batch, i, u_row, j, u_column), mask=mask)
    factor = tl.load(factors + matrix)
    value = _narrowed(_widened(value, factor.dtype) * factor, out.dtype.element_ty)
    tl.store(_pointers(out, matrix, out_batch, i, out_row, j, out_column), value, mask=mask)
