# SPDX-License-Identifier: MIT
"""Products of matrices in Triton, with the functions of ``backends.products.Products``.

A symmetric product takes half of its tiles and mirrors them. No operand is copied or transposed,
whatever its strides: where a matrix has a unit stride, along rows or columns, and 16 divides the
other one, it is read 128 bits at a time.

Sums are in float32, or float64 for float64, and in an order that depends only on the shape of one
matrix, its dtype and the device's kind: not on the batch (which has a say in the size of tiles, see
``tiles``), on strides (except where a layout makes it another product, see ``mm_add``) or on the
run. A result is rounded once.
"""

import functools

import torch
import triton.language as tl

from ..backends.products import check_out, transposed
from . import products
from .calls import DIRECT, MOST, Call, specialised
from .launch import check
from .scaling import by_rows
from .scaling import norms as norms  # of the namespace, like those below
from .scaling import row_norms as row_norms
from .scaling import scale as scale
from .tiles import arch_of, programs, tile_for

# of the tiles of a full product, with 4 to 16 tiles to a side: half of them and those on the
# diagonal
SYMMETRIC_SHARE = 0.55

# a stride that 16 divides is compiled in, see ``products``
MULTIPLES = {"cpu": 16, "cuda": 16}


def mm(a, b):
    """As ``Products.mm``, of float16, bfloat16, float32 or float64.

    Raises:
        ValueError: shapes or dtypes do not fit.
        RuntimeError: there is no kernel for the device or the dtype.
    """
    return _computed(_general, (a, b, b), (0.0, 1.0))


def sym_mm(x, c=None, beta=0.0, alpha=1.0, out=None):
    """As ``Products.sym_mm``; only entries on and below the diagonal of C count.

    Raises:
        ValueError, RuntimeError: as ``mm``.
    """
    c, beta = (x, 0.0) if c is None else (c, beta)
    return _computed(_gram, (x, x, c), (beta, alpha), out)


def sym_baddbmm(c, a, b, beta, alpha, out=None):
    """As ``Products.sym_baddbmm``; only entries on and below the diagonal of C count.

    Raises:
        ValueError: shapes or dtypes differ, or the matrices are not square.
        RuntimeError: as ``mm``.
    """
    return _computed(_symmetric, (a, b, c), (beta, alpha), out)


def mm_add(x, a, beta, alpha, out_dtype=None):
    """As ``Products.mm_add``, in one pass, rounded once; if beta is 0, x is read for A X only.

    Where the columns of x are contiguous and its rows are not, it is computed as (X^T A)^T: the
    same sums, with tiles that lie the other way.

    Raises:
        ValueError: shapes or dtypes do not fit.
        RuntimeError: as ``mm``.
    """
    return _computed(_times, (a, x, x), (beta, alpha), dtype=out_dtype)


# kind -> its kernel, b's dimension along the columns of the result, and how the kernel calls the
# sides of a tile: one where the result is square
KINDS = {
    "symmetric": (products.symmetric_kernel, 1, ("BLOCK",)),
    "product": (products.product_kernel, 2, ("BLOCK_M", "BLOCK_N")),
}


class Product:
    """A product of operands of certain shapes, strides, dtypes, on one device.

    Args:
        kind: of ``KINDS``: alpha a b^T + beta c, which has to be symmetric, or alpha a b + beta c.
        operands: a, b and c as the kernel takes them; c is not read if beta is 0.
        beta: whether this is 0 is compiled in.
        arch: where it runs, as ``tiles`` calls it.
        tile: for whoever compares tiles; None takes that of the table.
        swapped: whether calls give b before a and want the result transposed.
        dtype: of the result; None: the operands'.
    """

    def __init__(self, kind, operands, beta, arch, tile=None, swapped=False, dtype=None):
        self.kernel, dimension, sides = KINDS[kind]
        a, b, c = operands
        (batch, m, k), n = a.shape, b.shape[dimension]
        operands = a, b, None if beta == 0 else c
        if tile is None:
            shape = batch, m, k, n
            tile = tile_for(arch, a.dtype, kind, shape, a.device, _aligned(operands))
        self.programs = programs(tile, kind, batch, m, n)
        out = torch.empty(batch, m, n, device="meta")
        block = max(tile.rows, tile.columns, tile.depth)
        reach = max(block * sum(map(abs, _strides(t)[1:])) for t in (*operands, out))
        strides = [s for t in operands for s in _strides(t)]
        self.rest = *(m, n)[: len(sides)], k, k // tile.depth, *strides
        self.constants = {
            "EVEN": m % tile.rows == 0 and n % tile.columns == 0,
            "TAIL": k % tile.depth != 0,
            "INDEX": tl.int32 if reach < 2**31 else tl.int64,
            "DTYPE": tl.float64 if a.dtype == torch.float64 else tl.float32,
            **dict(zip(sides, (tile.rows, tile.columns), strict=False)),
            "BLOCK_K": tile.depth,
            "GROUP": tile.group,
        }
        warps, stages = tile.warps, tile.stages
        self.options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
        # no operand is kept: it would never be freed
        self.device, self.dtype = a.device, dtype or a.dtype
        self.swapped, self.addend = swapped, operands[2] is not None
        out = out.mT if swapped else out
        self.shape, self.strides = out.shape, out.stride()
        self.calls = {}  # by what Triton knows of the operands' addresses

    def __call__(self, operands, numbers, out=None):
        """Compute it: a new tensor, or ``out``, laid out like one.

        An entry of what is added counts for one of the result alone, which is stored after it has
        been read: both may be the same tensor.
        """
        if out is None:
            empty = torch.empty_strided
            out = empty(self.shape, self.strides, dtype=self.dtype, device=self.device)
        if not self.programs:
            return out
        a, b, c = operands
        if self.swapped:
            a, b = b, a
        given = a, b, c if self.addend else None
        kinds = tuple(_each(given, lambda t: specialised(self.device, t))) if DIRECT else None
        call = self.calls.get(kinds)
        if call is None:
            made_for = self.rest, self.constants, self.options
            call = self.calls[kinds] = Call(self.kernel, self.device, *made_for)
        call(self.programs, *given, out, *numbers)
        return out


def _computed(arrange, operands, numbers, out=None, dtype=None):
    """A product: ``arrange`` is asked once for each layout of operands, and checks them.

    Args:
        arrange: takes the operands and whether the last is added, and returns the kind of a
            ``Product``, its operands, and whether it is swapped.
        operands: the two factors, and what is added.
        numbers: the kernel's, beta and alpha; whether beta is zero decides what is compiled.
        out: receives a symmetric product; None: a new tensor does.
        dtype: of the result; None: the operands'.
    """
    beta = numbers[0]
    known = _known(arrange, beta == 0, dtype, *_each(operands, _layout))
    if not known:
        kind, its, swapped = arrange(*operands, beta != 0)
        arch = arch_of(operands[0].device)
        known.append(Product(kind, its, beta, arch, swapped=swapped, dtype=dtype))
    product, numbers = known[0], map(float, numbers)
    if out is None:
        return product(operands, numbers)
    check_out(out, operands[0])
    # where a new tensor would lie, too, as far as kernels know
    if out.is_contiguous() and out.data_ptr() % 16 == 0:
        return product(operands, numbers, out)
    return out.copy_(product(operands, numbers))


def _each(operands, facts):
    """Facts of three operands, of which two or all are often the same tensor."""
    a, b, c = operands
    of_a = facts(a)
    of_b = of_a if b is a else facts(b)
    return of_a, of_b, of_a if c is a else of_b if c is b else facts(c)


def _layout(t):
    return t.shape, t.stride(), t.dtype, t.device


@functools.lru_cache(maxsize=MOST)
def _known(*key):
    """Where a product is kept: a list, empty at first."""
    return []


def forget():
    """Ask for tiles anew at the next products, since the table of tiles has changed."""
    _known.cache_clear()


def _general(a, b, c, added):
    _matrices(a=a, b=b)
    if (len(a), a.shape[2]) != tuple(b.shape[:2]):
        raise ValueError(f"a must be (batch, n, k) and b (batch, k, m), got {_shapes(a, b)}")
    return "product", (a, b, b), False


def _gram(x, y, c, added):
    _matrices(x=x, c=c)
    if added and c.shape != (*x.shape[:2], x.shape[1]):
        raise ValueError(f"x must be (batch, n, m) and c (batch, n, n), got {_shapes(x, c)}")
    return "symmetric", (x, x, by_rows(c)), False


def _symmetric(a, b, c, added):
    _matrices(a=a, b=b, c=c)
    if not a.shape == b.shape == c.shape == (*a.shape[:2], a.shape[1]):
        raise ValueError(f"a, b, c must be alike and square, got {_shapes(a, b, c)}")
    # of a symmetric matrix the transpose serves as well, where its columns are contiguous
    return "symmetric", (a, b, by_rows(c)), False


def _times(a, x, y, added):
    _matrices(a=a, x=x)
    if a.shape != (len(x), x.shape[1], x.shape[1]):
        raise ValueError(f"a must be (batch, n, n) and x (batch, n, m), got {_shapes(a, x)}")
    swapped = transposed(x)
    return "product", ((x.mT, a, x.mT) if swapped else (a, x, x)), swapped


def _strides(t):
    """Of a batch; that of a single matrix's batch is not used, and 0 is what 16 divides."""
    if t is None:
        return 0, 0, 0
    return (t.stride(0) if len(t) > 1 else 0), *t.stride()[1:]


def _aligned(operands):
    return all(s == 1 or s % 16 == 0 for t in operands for s in _strides(t))


def _shapes(*tensors):
    return ", ".join(str(tuple(t.shape)) for t in tensors)


def _matrices(**named):
    """Raise unless all are batches of matrices of one dtype that there are kernels for."""
    first = next(iter(named.values()))
    for name, t in named.items():
        if t.dim() != 3 or t.dtype != first.dtype or t.device != first.device:
            raise ValueError(
                f"{name} must be a batch of matrices, {first.dtype} on {first.device}, got shape "
                f"{tuple(t.shape)}, {t.dtype} on {t.device}"
            )
    check(first.device, first.dtype)
