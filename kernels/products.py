# SPDX-License-Identifier: MIT
"""The kernels of ``newton_schulz``: matrix products of a batch, one tile of a result per program.

Offsets inside a tile are of type INDEX; those of a tile and of a matrix have 64 bits. Strides are
in elements: a stride of 1, and one that 16 divides, are compiled in, which is what makes loads
wide. EVEN says that tiles fill the matrix, TAIL that the last tile along k is cut: only then are
there masks, and none ever in the loop's own index. Masks add products of zeros, which change no
bit.
"""

import triton
import triton.language as tl

from . import rounding
from .passes import _narrowed, _widened
from .rounding import inline

INTERPRETED = tl.constexpr(rounding.INTERPRETED)
steps = tl.range
if rounding.INTERPRETED:

    def steps(count):
        """As ``tl.range``, which in Triton 3.6 cannot be interpreted up to an argument."""
        return range(int(count.handle.data.item()))


@inline
def triangle(t):
    """Row and column of the t-th entry of a lower triangle, row by row."""
    row = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # for t < 2 ** 31 the root is off by less than one
    row = tl.where(row * (row + 1) // 2 > t, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= t, row + 1, row)
    return row, t - row * (row + 1) // 2


@inline
def lower_tile(t, tiles, GROUP: tl.constexpr):
    """Tile row and column of the t-th tile on or below the diagonal.

    GROUP rows of tiles go together, column by column: programs that run at the same time then need
    few rows and few columns of the factors, which stay in the cache.
    """
    row, _ = triangle(t)
    # what lies above a group is a triangle; a group is a rectangle and then a triangle
    first = row // GROUP * GROUP
    height = tl.minimum(tiles - first, GROUP)
    t = t - first * (first + 1) // 2
    row, column = triangle(tl.maximum(t - first * height, 0))
    inside = t < first * height
    row = tl.where(inside, t % height, row)
    column = tl.where(inside, t // height, first + column)
    return first + row, column


@inline
def any_tile(t, rows, columns, GROUP: tl.constexpr):
    """Tile row and column of the t-th of rows * columns tiles, in groups as ``lower_tile``."""
    first = t // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    t = t - first * columns
    return first + t % height, t // height


@inline
def _origin(pointer, matrix, batch_stride, first, stride):
    return pointer + matrix.to(tl.int64) * batch_stride + first.to(tl.int64) * stride


@inline
def _offsets(i, stride, j, other_stride, INDEX: tl.constexpr):
    return i.to(INDEX)[:, None] * stride + j.to(INDEX)[None, :] * other_stride


@inline
def _load(pointers, mask, EVEN: tl.constexpr):
    value = tl.load(pointers) if EVEN else tl.load(pointers, mask=mask, other=0.0)
    # the interpreter multiplies bfloat16 as integers
    return _widened(value, tl.float32) if INTERPRETED and value.dtype == tl.bfloat16 else value


@inline
def _product(
    a, b, rows, columns, k, full, a_row, a_k, b_k, b_column,
    EVEN: tl.constexpr, TAIL: tl.constexpr, INDEX: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of a @ b: a and b point to its first row and column, of which some are inside.

    Products of float32 are exact, as the iteration wants them: tensor cores would round factors.
    """
    i, j, p = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    a = a + _offsets(i, a_row, p, a_k, INDEX)
    b = b + _offsets(p, b_k, j, b_column, INDEX)
    inside_a, inside_b = i[:, None] < rows, j[None, :] < columns
    total = tl.zeros((BLOCK_M, BLOCK_N), DTYPE)
    for _ in steps(full):
        left, right = _load(a, inside_a, EVEN), _load(b, inside_b, EVEN)
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=DTYPE)
        a += BLOCK_K * a_k
        b += BLOCK_K * b_k
    if TAIL:
        rest = k - full * BLOCK_K
        left = _load(a, inside_a & (p[None, :] < rest), False)
        right = _load(b, inside_b & (p[:, None] < rest), False)
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=DTYPE)
    return total


@inline
def _parts(total, c, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A tile in parts, side by side, that are finished one after another: halves if c is added.

    Both parts of a whole one in registers leave room for one program only, and a result of 32 bits
    has not even that.
    """
    if c is None:
        return (total,)
    else:  # noqa: RET505 (a branch not taken must not be compiled)
        return tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@inline
def _whole(parts, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    if len(parts) == 1:
        return parts[0]
    else:  # noqa: RET505
        both = tl.join(parts[0], parts[1])
        return tl.reshape(tl.permute(both, (0, 2, 1)), (BLOCK_M, BLOCK_N))


@inline
def _result(
    total, alpha, beta, c, i, j, rows, columns, c_row, c_column,
    EVEN: tl.constexpr, INDEX: tl.constexpr, DTYPE: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Alpha times a part, and beta c unless c is None, rounded; c points to the tile."""
    total = total * tl.full((), alpha, DTYPE)
    if c is not None:
        mask = (i[:, None] < rows) & (j[None, :] < columns)
        more = _load(c + _offsets(i, c_row, j, c_column, INDEX), mask, EVEN)
        total += tl.full((), beta, DTYPE) * _widened(more, DTYPE)
    return _narrowed(total, TYPE)


@inline
def _store(pointers, value, mask, EVEN: tl.constexpr):
    if EVEN:
        tl.store(pointers, value)
    else:
        tl.store(pointers, value, mask=mask)


# of these nothing that is compiled depends on a value
@triton.jit(do_not_specialize=["full"])
def symmetric_kernel(
    a, b, c, out, beta: tl.float64, alpha: tl.float64,
    n, k, full, a_batch, a_row, a_k, b_batch, b_row, b_k, c_batch, c_row, c_column,
    EVEN: tl.constexpr, TAIL: tl.constexpr, INDEX: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Find alpha a bT + beta c by its tiles on and below the diagonal.

    a and b are (n, k), c and out (n, n), out is contiguous. Each tile is rounded once and stored
    twice, the second time transposed; of one on the diagonal the lower triangle is.
    """
    tiles = tl.cdiv(n, BLOCK)
    count = tiles * (tiles + 1) // 2
    matrix, t = tl.program_id(0) // count, tl.program_id(0) % count
    row, column = lower_tile(t, tiles, GROUP)
    first_row, first_column = row * BLOCK, column * BLOCK
    rows, columns = n - first_row, n - first_column
    total = _product(
        _origin(a, matrix, a_batch, first_row, a_row),
        _origin(b, matrix, b_batch, first_column, b_row),
        rows, columns, k, full, a_row, a_k, b_k, b_row,
        EVEN, TAIL, INDEX, DTYPE, BLOCK, BLOCK, BLOCK_K,
    )  # fmt: skip
    if c is not None:
        c = _origin(c, matrix, c_batch, first_row, c_row) + first_column.to(tl.int64) * c_column
    i, j = tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    parts, values = _parts(total, c, BLOCK, BLOCK), ()
    WIDTH: tl.constexpr = BLOCK // len(parts)
    for part in tl.static_range(len(parts)):
        value = _result(
            parts[part], alpha, beta, c, i, part * WIDTH + tl.arange(0, WIDTH), rows, columns,
            c_row, c_column, EVEN, INDEX, DTYPE, out.dtype.element_ty,
        )  # fmt: skip
        values = values + (value,)  # noqa: RUF005
    value = _whole(values, BLOCK, BLOCK)
    if row == column:
        value = tl.where(i[:, None] >= j[None, :], value, tl.trans(value))
    out += matrix.to(tl.int64) * n * n
    pointers = out + first_row.to(tl.int64) * n + first_column + _offsets(i, n, j, 1, INDEX)
    _store(pointers, value, (i[:, None] < rows) & (j[None, :] < columns), EVEN)
    if row != column:
        pointers = out + first_column.to(tl.int64) * n + first_row + _offsets(j, n, i, 1, INDEX)
        _store(pointers, tl.trans(value), (j[:, None] < columns) & (i[None, :] < rows), EVEN)


@triton.jit(do_not_specialize=["m", "full"])
def product_kernel(
    a, b, c, out, beta: tl.float64, alpha: tl.float64, m, n, k, full,
    a_batch, a_row, a_k, b_batch, b_k, b_column, c_batch, c_row, c_column,
    EVEN: tl.constexpr, TAIL: tl.constexpr, INDEX: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Find alpha a b + beta c: a is (m, k), b (k, n), c and out (m, n), out is contiguous."""
    tile_rows, tile_columns = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    count = tile_rows * tile_columns
    matrix, t = tl.program_id(0) // count, tl.program_id(0) % count
    row, column = any_tile(t, tile_rows, tile_columns, GROUP)
    first_row, first_column = row * BLOCK_M, column * BLOCK_N
    rows, columns = m - first_row, n - first_column
    total = _product(
        _origin(a, matrix, a_batch, first_row, a_row),
        _origin(b, matrix, b_batch, first_column, b_column),
        rows, columns, k, full, a_row, a_k, b_k, b_column,
        EVEN, TAIL, INDEX, DTYPE, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if c is not None:
        c = _origin(c, matrix, c_batch, first_row, c_row) + first_column.to(tl.int64) * c_column
    out += matrix.to(tl.int64) * m * n + first_row.to(tl.int64) * n + first_column
    i, parts = tl.arange(0, BLOCK_M), _parts(total, c, BLOCK_M, BLOCK_N)
    WIDTH: tl.constexpr = BLOCK_N // len(parts)
    for part in tl.static_range(len(parts)):
        j = part * WIDTH + tl.arange(0, WIDTH)
        value = _result(
            parts[part], alpha, beta, c, i, j, rows, columns, c_row, c_column,
            EVEN, INDEX, DTYPE, out.dtype.element_ty,
        )  # fmt: skip
        mask = (i[:, None] < rows) & (j[None, :] < columns)
        _store(out + _offsets(i, n, j, 1, INDEX), value, mask, EVEN)
