# SPDX-License-Identifier: MIT
"""The kernels: one pass over all tensors of a call, with any rule.

A program takes one chunk: BLOCK elements of one parameter and of all that goes with it. ``chunks``
and ``rows`` are those of ``table.Table``. Arguments that the kernels share:

    TYPES    element types of the addresses in a row        numbers  a tuple of scalars;
    VECTOR   elements that a thread moves together          LOADED   or one vector
    DTYPE    of the arithmetic; a narrower value is rounded once, when it is stored
    OWN      whether a row ends with how far from those of the vector its parameter's numbers begin

If all addresses are aligned, a thread moves VECTOR elements at once: 128 bits of the widest stream,
and as many elements of a narrower one, so that no stream has to change threads through shared
memory. What is left, fewer elements than a vector has, or all of a chunk that is not aligned, goes
element by element in blocks of a quarter, which is another shape: blocks of the same shape would
get the same layout, four elements apart. It goes first: after the vectors, what it needs would take
registers from these. Chunks are not handed out by a persistent grid: they are of unlike sizes,
which the hardware balances, and while some programs look up their rows others move data.
"""

import triton
import triton.language as tl

from . import rounding
from .rounding import inline

INTERPRETED = tl.constexpr(rounding.INTERPRETED)


@inline
def _row(chunks, rows, TYPES: tl.constexpr, BLOCK: tl.constexpr, MORE: tl.constexpr = 0):
    """The row of this program's parameter, which MORE integers end, and where its chunk begins."""
    chunk = chunks + 2 * tl.program_id(0).to(tl.int64)
    row = rows + tl.load(chunk).to(tl.int64) * (2 + len(TYPES) + MORE)
    return row, tl.load(chunk + 1).to(tl.int64) * BLOCK


@inline
def _chunk(row, start, TYPES: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    """Of this program: where its elements begin, how many they are, and how many make vectors."""
    count = tl.minimum(tl.load(row) - start, BLOCK).to(tl.int32)
    addresses = ()
    bits = tl.full((), 0, tl.int64)
    for k in tl.static_range(len(TYPES)):
        address = tl.load(row + 2 + k)
        bits = bits | address
        address += start * (TYPES[k].primitive_bitwidth // 8)
        addresses = addresses + (address,)  # noqa: RUF005
    whole = count // VECTOR * VECTOR
    # what one block holds goes by that alone
    vectors = (bits % 16 == 0) & ((whole == count) | (count > BLOCK // 4))
    return addresses, count, tl.where(vectors, whole, 0)


@inline
def _pointers(addresses, offset, TYPES: tl.constexpr, VECTOR: tl.constexpr):
    """To an element of a chunk in each tensor; to its first, and many at once, if that is None."""
    pointers = ()
    for k in tl.static_range(len(TYPES)):
        pointer = addresses[k].to(tl.pointer_type(TYPES[k]))
        if offset is None:
            # without this, loads and stores have 32 bits
            pointer = tl.multiple_of(pointer, VECTOR * TYPES[k].primitive_bitwidth // 8)
        else:
            pointer += offset
        pointers = pointers + (pointer,)  # noqa: RUF005
    return pointers


@inline
def _widened(value, DTYPE: tl.constexpr):
    if INTERPRETED and value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        value = bits.to(tl.float32, bitcast=True)
    return value.to(DTYPE)


@inline
def _narrowed(value, TYPE: tl.constexpr):
    # to nearest, as the compiler does; the interpreter only cuts bits off
    if INTERPRETED and tl.bfloat16 == TYPE:
        value = value.to(tl.float32)
        bits = value.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        upper = tl.where(value == value, upper, 0x7FC0)
        return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:  # noqa: RET505 (a branch not taken must not be compiled)
        return value.to(TYPE)


@inline
def _load(pointers, FIRST: tl.constexpr, COUNT: tl.constexpr, i, mask, DTYPE: tl.constexpr):
    values = ()
    for k in tl.static_range(FIRST, FIRST + COUNT):
        values = values + (_widened(tl.load(pointers[k] + i, mask=mask), DTYPE),)  # noqa: RUF005
    return values


@inline
def _store(pointers, FIRST: tl.constexpr, values, i, mask):
    for k in tl.static_range(len(values)):
        pointer = pointers[FIRST + k]
        tl.store(pointer + i, _narrowed(values[k], pointer.dtype.element_ty), mask=mask)


@inline
def _numbers(
    numbers, FIRST: tl.constexpr, COUNT: tl.constexpr, LOADED: tl.constexpr, DTYPE: tl.constexpr
):
    values = ()
    for k in tl.static_range(FIRST, FIRST + COUNT):
        number = tl.load(numbers + k) if LOADED else numbers[k]
        values = values + (tl.cast(number, DTYPE),)  # noqa: RUF005
    return values


@inline
def _scales(row, start, TYPES: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Of this program: its first scale, how far into that one's run it begins, and the run.

    After the columns a row has the address of the scales and their run. Of a run that is longer
    than a chunk only its end matters, so it is cut at its beginning: 32 bits are enough.
    """
    scales = tl.load(row + 2 + len(TYPES)).to(tl.pointer_type(DTYPE))
    run = tl.load(row + 3 + len(TYPES))
    first = start // run
    left, short = (first + 1) * run - start, tl.minimum(run, BLOCK)
    return scales + first, (short - tl.minimum(left, short)).to(tl.int32), short.to(tl.int32)


@inline
def _pass_tile(
    pointers, count, numbers, scales, into, run,
    SCALED: tl.constexpr, SQUARES: tl.constexpr, PASS: tl.constexpr,
    STATES: tl.constexpr, NUMBERS: tl.constexpr, COLUMNS: tl.constexpr, WRITES: tl.constexpr,
    FACTOR: tl.constexpr, STEPS: tl.constexpr,
    LOADED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK)
    mask = i < count
    columns = _load(pointers, COLUMNS[0], COLUMNS[1] - COLUMNS[0], i, mask, DTYPE)
    states, given = (), ()
    for k in tl.static_range(len(STATES)):
        state = _load(pointers, STATES[k][0], STATES[k][1], i, mask, DTYPE)
        its = _numbers(numbers, NUMBERS[k][0], NUMBERS[k][1], LOADED, DTYPE)
        states, given = states + (state,), given + (its,)  # noqa: RUF005
    if FACTOR:
        factor = _numbers(numbers, 0, 1, LOADED, DTYPE)[0]
        g = columns[-1] * factor
        if SCALED:
            # nearly always: a division and a load for each element would show
            if into + count <= run:
                g = g * tl.load(scales)
            else:
                g = g * tl.load(scales + (into + i) // run, mask=mask)
        columns = columns[:-1] + (g,)  # noqa: RUF005
    found = PASS(*columns, *states, *given)
    for k in tl.static_range(WRITES):
        _store(pointers, k, (found[0],), i, mask)
    if STEPS:
        for k in tl.static_range(len(STATES)):
            _store(pointers, STATES[k][0], found[k + 1], i, mask)
    if SQUARES:
        value = tl.where(mask, found[0].to(tl.float64), 0.0)
        return tl.sum(value * value, 0)
    else:  # noqa: RET505 (a branch not taken must not be compiled)
        return tl.full((), 0.0, tl.float64)


@triton.jit
def pass_kernel(
    chunks, rows, numbers, skip, sums, SCALED: tl.constexpr, PASS: tl.constexpr,
    STATES: tl.constexpr, NUMBERS: tl.constexpr, COLUMNS: tl.constexpr,
    WRITES: tl.constexpr, FACTOR: tl.constexpr, STEPS: tl.constexpr, OWN: tl.constexpr,
    TYPES: tl.constexpr, VECTOR: tl.constexpr,
    LOADED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A pass of ``rules.PASSES``; PASS is its function with its rules.

    A row of the table has y, the input if there is one, and the state. COLUMNS are where those that
    are read begin and where the state does; the first WRITES are written. STATES and NUMBERS are of
    each rule the first column, or number, and how many. SCALED says that rows end with scales of
    the input. ``sums`` receive those of the squares of each chunk.
    """
    if skip is not None:  # noqa: SIM102 (decided when it is compiled)
        if tl.load(skip) != 0:
            return
    SQUARES: tl.constexpr = sums is not None
    MORE: tl.constexpr = 2 * SCALED + SQUARES + OWN
    row, start = _row(chunks, rows, TYPES, BLOCK, MORE)
    addresses, count, whole = _chunk(row, start, TYPES, VECTOR, BLOCK)
    scales, into, run = None, None, None
    if SCALED:
        scales, into, run = _scales(row, start, TYPES, DTYPE, BLOCK)
    if OWN:
        numbers += tl.load(row + 1 + len(TYPES) + MORE)
    total = tl.full((), 0.0, tl.float64)
    # not a range: Triton 3.6 cannot interpret one up to a loaded number
    offset = whole
    while offset < count:
        total += _pass_tile(
            _pointers(addresses, offset, TYPES, VECTOR), count - offset, numbers,
            scales, into + offset if SCALED else into, run, SCALED, SQUARES, PASS,
            STATES, NUMBERS, COLUMNS, WRITES, FACTOR, STEPS, LOADED, DTYPE, BLOCK // 4,
        )  # fmt: skip
        offset += BLOCK // 4
    if whole > 0:
        total += _pass_tile(
            _pointers(addresses, None, TYPES, VECTOR), whole, numbers,
            scales, into, run, SCALED, SQUARES, PASS,
            STATES, NUMBERS, COLUMNS, WRITES, FACTOR, STEPS, LOADED, DTYPE, BLOCK,
        )  # fmt: skip
    if SQUARES:
        tl.store(sums + tl.program_id(0), total)


@inline
def _finite_tile(pointers, count, flag, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = _widened(tl.load(pointers[0] + i, mask=i < count, other=0.0), DTYPE)
    # false for NaN
    finite = tl.abs(value) < float("inf")
    if tl.min(finite.to(tl.int32), 0) == 0:
        # whoever finds one writes the same: no atomics, and no order to depend on
        tl.store(flag, 1.0)


@triton.jit
def nonfinite_kernel(
    chunks, rows, flag,
    TYPES: tl.constexpr, VECTOR: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row has a gradient; the flag becomes 1 if a value is NaN or infinite."""
    row, start = _row(chunks, rows, TYPES, BLOCK)
    addresses, count, whole = _chunk(row, start, TYPES, VECTOR, BLOCK)
    offset = whole
    while offset < count:
        _finite_tile(
            _pointers(addresses, offset, TYPES, VECTOR), count - offset,
            flag, DTYPE, BLOCK // 4,
        )  # fmt: skip
        offset += BLOCK // 4
    if whole > 0:
        _finite_tile(
            _pointers(addresses, None, TYPES, VECTOR), whole,
            flag, DTYPE, BLOCK,
        )  # fmt: skip
