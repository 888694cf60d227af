# SPDX-License-Identifier: MIT
"""What comes before the products of Newton-Schulz: norms, and factors of matrices.

torch would first make a copy in float64 for the norms, and casts with loads of one element, at half
the rate of memory. A program takes a tile of a matrix; strides are in elements, and which of them
are 1 or divided by 16 is compiled in, as in ``products``.
"""

import math

import torch
import triton
import triton.language as tl

from ..backends.products import transposed
from .calls import call
from .launch import OPTIONS, check
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
def row_squares_kernel(
    x, sums, rows, columns, batch, row, column, ALONG: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Leave the sums of squares along one dimension, in float64: ALONG 1 of rows, 0 of columns.

    A program takes the tiles that lie one after another along it.
    """
    BLOCK: tl.constexpr = BLOCK_M if ALONG else BLOCK_N
    STEP: tl.constexpr = BLOCK_N if ALONG else BLOCK_M
    kept, length = (rows, columns) if ALONG else (columns, rows)
    count = tl.cdiv(kept, BLOCK)
    matrix, t = tl.program_id(0) // count, tl.program_id(0) % count
    first = t.to(tl.int64) * BLOCK
    found = tl.zeros((BLOCK_M, BLOCK_N), tl.float64)
    start = tl.full((), 0, tl.int64)
    while start < length:
        i = (first if ALONG else start) + tl.arange(0, BLOCK_M)
        j = (start if ALONG else first) + tl.arange(0, BLOCK_N)
        mask = (i < rows)[:, None] & (j < columns)[None, :]
        value = tl.load(_pointers(x, matrix, batch, i, row, j, column), mask=mask, other=0.0)
        value = _widened(value, tl.float64)
        found += value * value
        start += STEP
    k = first + tl.arange(0, BLOCK)
    tl.store(sums + matrix.to(tl.int64) * kept + k, tl.sum(found, ALONG), mask=k < kept)


@triton.jit
def scale_kernel(
    u, factors, out, rows, columns, u_batch, u_row, u_column, out_batch, out_row, out_column,
    OF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Multiply each matrix by its factors, in their dtype, and round once to that of out.

    OF says what each factor is of: a "matrix", a "row" or a "column".
    """
    matrix, i, j, mask = _tile(rows, columns, BLOCK_M, BLOCK_N)
    value = tl.load(_pointers(u, matrix, u_batch, i, u_row, j, u_column), mask=mask)
    if OF == "row":
        factor = tl.load(factors + matrix.to(tl.int64) * rows + i, mask=i < rows)[:, None]
    elif OF == "column":
        factor = tl.load(factors + matrix.to(tl.int64) * columns + j, mask=j < columns)[None, :]
    else:
        factor = tl.load(factors + matrix)
    value = _narrowed(_widened(value, factor.dtype) * factor, out.dtype.element_ty)
    tl.store(_pointers(out, matrix, out_batch, i, out_row, j, out_column), value, mask=mask)


# ---- functions of ``backends.products.Products`` ------------------------------------------------

# rows and columns of a tile whose elements are moved, not multiplied: four vectors of a thread
TILE = {"BLOCK_M": 8, "BLOCK_N": 256}
# matrices whose sums of tiles torch adds up at once, always as many: their number has a say in the
# order in which a GPU adds up the numbers of one
ADDED = 32


def norms(x):
    """As ``Products.norms``, with sums in float64."""
    check(x.device, x.dtype)
    x = by_rows(x)
    # rows beyond the batch may hold anything
    high = math.ceil(len(x) / ADDED) * ADDED
    sums = torch.empty((high, _tiles(x)), dtype=torch.float64, device=x.device)
    _over_tiles(tile_squares_kernel, (x, sums), x, x.stride())
    found = sums.new_empty(high)
    for some, to in zip(sums.split(ADDED), found.split(ADDED), strict=True):
        torch.sum(some, 1, out=to)
    return found[: len(x)].sqrt_()


# rows and columns of a tile whose squares are added up along columns, and along rows
ALONG = {1: TILE, 0: {"BLOCK_M": 64, "BLOCK_N": 32}}


def row_norms(x):
    """As ``Products.row_norms``, with sums in float64."""
    check(x.device, x.dtype)
    along = 0 if transposed(x) else 1
    sums, x = torch.empty(x.shape[:2], dtype=torch.float64, device=x.device), by_rows(x)
    tile = ALONG[along]
    size = tile["BLOCK_M" if along else "BLOCK_N"]
    programs = len(x) * math.ceil(sums.shape[1] / size)
    if programs:
        arguments = x, sums, *x.shape[1:], *x.stride()
        constants = {"ALONG": along, **tile}
        call(row_squares_kernel, programs, x.device, arguments, constants, OPTIONS)
    return sums.sqrt_()


def scale(u, factors, out):
    """As ``Products.scale``, of matrices whose dtype is no wider than that of the factors."""
    check(u.device, u.dtype)
    of = "row" if factors.dim() > 1 else "matrix"
    if transposed(u):
        u, out, of = u.mT, out.mT, {"row": "column"}.get(of, of)
    strides = *u.stride(), *out.stride()
    _over_tiles(scale_kernel, (u, factors, out), u, strides, OF=of)


def _tiles(x):
    return math.prod(map(math.ceil, (x.shape[1] / TILE["BLOCK_M"], x.shape[2] / TILE["BLOCK_N"])))


def _over_tiles(kernel, tensors, x, strides, **constants):
    programs = len(x) * _tiles(x)
    if programs:
        arguments, constants = (*tensors, *x.shape[1:], *strides), {**constants, **TILE}
        call(kernel, programs, x.device, arguments, constants, OPTIONS)


def by_rows(x):
    """A batch, transposed if its columns are contiguous and its rows are not."""
    return x.mT if transposed(x) else x
