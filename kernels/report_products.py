# SPDX-License-Identifier: MIT
"""What products of matrices, and what is beside them, compile to; ``report`` prints it."""

from typing import NamedTuple

import torch
import triton
from triton.compiler import ASTSource

from . import launch, newton_schulz, scaling, tiles
from .targets import TARGETS


class Product(NamedTuple):
    """A matrix product: which one, of what, with which tile of the table. Or what has no tile."""

    call: str  # of PRODUCTS or of BESIDE
    dtype: str = "float16"
    target: str = "sm_90"
    side: int = 1024  # of the result; the other one of a product is four times as long
    row: int | None = None  # of those of its kind in the table; None: whichever is taken


_MM_ADD = "product", lambda n, m, like: (like(n, n), like(n, m), like(n, m), 1.0)
# call -> kind of its tiles; its operands, without values, and the factor of the last; the result's
# dtype, None for that of the operands
PRODUCTS = {
    "mm": ("product", lambda n, m, like: (like(m, n).mT, like(m, n), None, 0.0), None),
    "sym_mm": ("symmetric", lambda n, m, like: (like(n, m), like(n, m), None, 0.0), None),
    "sym_baddbmm": ("symmetric", lambda n, m, like: (*(like(n, n) for _ in range(3)), 1.0), None),
    "mm_add": (*_MM_ADD, None),
    "mm_add to float32": (*_MM_ADD, torch.float32),
    "transposed sym_mm": (
        *("symmetric", lambda n, m, like: (like(m, n).mT, like(m, n).mT, None, 0.0), None),
    ),
}
DTYPES = "float16", "bfloat16", "float32", "float64"


def _factors(of):
    def arguments(wide, out):
        return wide, wide, out, *wide.shape[1:], *wide.stride(), *out.stride()

    return scaling.scale_kernel, arguments, {"OF": of, **scaling.TILE}


def _norms(along):
    def arguments(wide, x):
        return x, wide.double(), *x.shape[1:], *x.stride()

    return scaling.row_squares_kernel, arguments, {"ALONG": along, **scaling.ALONG[along]}


# call -> kernel; what it takes, of a batch in the arithmetic's dtype and another one; its constants
BESIDE = {
    "factors of each matrix": _factors("matrix"),
    "factors of each row": _factors("row"),
    "factors of each column": _factors("column"),
    "norms of rows": _norms(1),
    "norms of columns": _norms(0),
}
# of each kind the call that needs most registers: its tile and an addend
HEAVIEST = {"symmetric": "sym_baddbmm", "product": "mm_add"}
# sides that no tile fills: rows at odd addresses, and at aligned ones
ODD = 769, 800


def products(everything=False):
    """Every row of the table in the heaviest call, and what has no row or is not even; or all."""
    calls = [*PRODUCTS] if everything else [*HEAVIEST.values()]
    rows = [
        Product(call, target=target, row=row)
        for call in calls
        for target in TARGETS
        for row in range(len(tiles.TABLE[target, 2, PRODUCTS[call][0]]))
    ]
    others = [Product("sym_mm", dtype) for dtype in ("float32", "float64")]
    others.append(Product("mm", "float32"))
    # the largest tiles of all, which are the first
    widest = [Product("mm_add to float32", target=target, row=0) for target in TARGETS]
    others += [] if everything else widest
    odd = [Product(call, side=ODD[0]) for call in HEAVIEST.values()]
    even = Product("mm_add", side=ODD[1]), Product("transposed sym_mm", "bfloat16", side=ODD[1])
    beside = [Product(call) for call in BESIDE]
    if everything:
        beside = [b._replace(target=t, dtype=d) for b in beside for t in TARGETS for d in DTYPES]
    else:
        # on the other targets those of rows, by which matrices are scaled as they lie
        of_rows = [b for b in beside if b.call in ("factors of each row", "norms of rows")]
        beside += [b._replace(target=t) for b in of_rows for t in TARGETS if t != b.target]
    return [*rows, *others, *odd, *even, *beside]


def compiled(case):
    """Compile a case ahead of time, as a call on such matrices would."""
    return (_beside if case.call in BESIDE else _product)(case)


def _beside(case):
    kernel, arguments, constants = BESIDE[case.call]
    dtype, shape = getattr(torch, case.dtype), (2, case.side, 4 * case.side)
    wide = torch.promote_types(dtype, torch.float32)
    given = (torch.empty(shape, dtype=each, device="meta") for each in (wide, dtype))
    return _compiled(kernel, arguments(*given), dict(constants), case.target, launch.OPTIONS)


def _product(case):
    (kind, operands, out_dtype), dtype = PRODUCTS[case.call], getattr(torch, case.dtype)
    rows = tiles.TABLE.get((case.target, dtype.itemsize, kind))

    def like(n, m):
        return torch.empty(2, n, m, dtype=dtype, device="meta")

    a, b, c, beta = operands(case.side, case.side * 4 + case.side % 2, like)
    tile = None if case.row is None else rows[case.row]
    ready = newton_schulz.Product(kind, (a, b, c), beta, case.target, tile)
    # the result, beta and alpha
    arguments = a, b, c, a.to(out_dtype or dtype), 1.0, 1.0, *ready.rest
    return _compiled(ready.kernel, arguments, dict(ready.constants), case.target, ready.options)


def _compiled(kernel, arguments, constants, target, options):
    types, known = {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=False)):
        name, special = parameter.name, not parameter.do_not_specialize
        if value is None or (isinstance(value, int) and value == 1 and special):
            constants[name] = value
        elif isinstance(value, float):
            types[name] = "fp64"
        else:
            tensor = isinstance(value, torch.Tensor)
            types[name] = f"*{launch.TYPES[value.dtype]}" if tensor else "i32"
            if tensor or (value % 16 == 0 and special):
                known[(i,)] = [["tt.divisibility", 16]]
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants, known)
    return triton.compile(source, TARGETS[target], options)
