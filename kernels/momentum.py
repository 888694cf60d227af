# SPDX-License-Identifier: MIT
"""The kernels around Newton-Schulz: momenta before it, factors for rows after it.

Sums are in float64 and in a fixed order: each program leaves what it has added up in a vector, and
a second launch adds these. ``passes`` explains what the kernels have in common.
"""

import triton
import triton.language as tl

from .. import rules
from .passes import _load, _narrowed, _numbers, _row, _store, _widened
from .rounding import inline, rounded

evened = rounded(rules.evened)

# programs of the second launch add so many at once
SUMS = tl.constexpr(1024)


@triton.jit
def squares_kernel(
    rows, skip, sums, squares, COLUMNS: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr
):
    """Add up the sums of each parameter's chunks.

    COLUMNS are its tensors in a row, after which comes its number among the squares.
    """
    if skip is not None:  # noqa: SIM102
        if tl.load(skip) != 0:
            return
    row = rows + tl.program_id(0).to(tl.int64) * (2 + COLUMNS + 1 + OWN)
    chunks, first = (tl.load(row) + BLOCK - 1) // BLOCK, tl.load(row + 1)
    i = tl.arange(0, SUMS)
    total = tl.zeros((SUMS,), tl.float64)
    offset = tl.full((), 0, tl.int64)
    while offset < chunks:
        total += tl.load(sums + first + offset + i, mask=offset + i < chunks, other=0.0)
        offset += SUMS
    tl.store(squares + tl.load(row + 2 + COLUMNS), tl.sum(total, 0))


@inline
def _row_squares(
    matrix, count, columns, VECTOR: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """Sums of squares of BLOCK rows, of which ``count`` are there; WIDTH columns at once."""
    row, i = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    total = tl.zeros((BLOCK, WIDTH), tl.float64)
    offset = tl.full((), 0, tl.int64)
    while offset < columns:
        pointers, left = matrix + offset + row * columns, tl.minimum(columns - offset, WIDTH)
        left = left.to(tl.int32)
        if VECTOR > 1:
            # of new values: what is said of a value holds wherever it is used
            pointers = tl.multiple_of(pointers, 16)
            left = tl.multiple_of(left, VECTOR)
        mask = (row < count)[:, None] & (i < left)[None, :]
        value = tl.load(pointers[:, None] + i[None, :], mask=mask, other=0.0)
        value = _widened(value, tl.float64)
        total += value * value
        offset += WIDTH
    return tl.sum(total, 1)


@triton.jit
def rows_kernel(
    chunks, rows, numbers, skip, sums,
    RULE: tl.constexpr, STATES: tl.constexpr, NUMBERS: tl.constexpr, OWN: tl.constexpr,
    TYPES: tl.constexpr, VECTOR: tl.constexpr,
    LOADED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of a matrix: their factors, before any norm is kept, and their sums of squares.

    A row of the table has the matrix's rows and its first chunk; the matrix, the state, the factors
    and the scale; and the matrix's columns. Each chunk has BLOCK sums. With as many warps as rows,
    each sum stays within a warp.
    """
    if skip is not None:  # noqa: SIM102
        if tl.load(skip) != 0:
            return
    entry, start = _row(chunks, rows, TYPES, BLOCK, 1 + OWN)
    count, columns = tl.load(entry) - start, tl.load(entry + 2 + len(TYPES))
    address = tl.load(entry + 2)
    matrix = address.to(tl.pointer_type(TYPES[0])) + start * columns
    # of the matrix alone, 128 bits: nothing else is as long
    WIDE: tl.constexpr = 128 // TYPES[0].primitive_bitwidth
    if (address % 16 == 0) & (columns % WIDE == 0):
        squares = _row_squares(matrix, count, columns, WIDE, BLOCK, WIDTH)
    else:
        squares = _row_squares(matrix, count, columns, 1, BLOCK, WIDTH // 4)
    i = tl.arange(0, BLOCK)
    mask = i < count
    pointers = ()
    for k in tl.static_range(1, STATES + 2):
        pointer = tl.load(entry + 2 + k).to(tl.pointer_type(DTYPE)) + start
        pointers = pointers + (pointer,)  # noqa: RUF005
    state = _load(pointers, 0, STATES, i, mask, DTYPE)
    means = (squares / tl.maximum(columns, 1).to(tl.float64)).to(DTYPE)
    if OWN:
        numbers += tl.load(entry + 3 + len(TYPES))
    factor, state = RULE(means, state, _numbers(numbers, 0, NUMBERS, LOADED, DTYPE))
    _store(pointers, 0, state, i, mask)
    _store(pointers, STATES, (factor,), i, mask)
    tl.store(sums + tl.program_id(0).to(tl.int64) * BLOCK + i, squares, mask=mask)


@triton.jit
def norms_kernel(
    rows, numbers, skip, sums,
    RULE: tl.constexpr, STATES: tl.constexpr, FIRST: tl.constexpr, NUMBERS: tl.constexpr,
    OWN: tl.constexpr, LOADED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keep the norm of a matrix: multiply its factors by one number, and by its scale.

    STATES are the row rule's. The norm rule has NUMBERS of the numbers, from the FIRST on.
    """
    if skip is not None:  # noqa: SIM102
        if tl.load(skip) != 0:
            return
    COLUMNS: tl.constexpr = 1 + STATES + 2
    entry = rows + tl.program_id(0).to(tl.int64) * (2 + COLUMNS + 1 + OWN)
    factors = tl.load(entry + 3 + STATES).to(tl.pointer_type(DTYPE))
    scale = tl.load(tl.load(entry + 4 + STATES).to(tl.pointer_type(DTYPE)))
    count, first = tl.load(entry), tl.load(entry + 1) * BLOCK
    i = tl.arange(0, SUMS)
    before, after = tl.zeros((SUMS,), tl.float64), tl.zeros((SUMS,), tl.float64)
    offset = tl.full((), 0, tl.int64)
    while offset < count:
        mask = offset + i < count
        square = tl.load(sums + first + offset + i, mask=mask, other=0.0)
        factor = tl.load(factors + offset + i, mask=mask, other=0.0).to(tl.float64)
        before += square
        after += evened(factor, square)
        offset += SUMS
    if OWN:
        numbers += tl.load(entry + 3 + COLUMNS)
    numbers = _numbers(numbers, FIRST, NUMBERS, LOADED, tl.float64)
    kept = RULE(tl.sum(before, 0), tl.sum(after, 0), numbers)
    offset = tl.full((), 0, tl.int64)
    while offset < count:
        mask = offset + i < count
        factor = tl.load(factors + offset + i, mask=mask, other=0.0).to(tl.float64)
        tl.store(factors + offset + i, _narrowed(factor * kept, DTYPE) * scale, mask=mask)
        offset += SUMS
