"""What the products of Newton-Schulz compile to; ``report`` prints it."""

from typing import NamedTuple

import torch
import triton
from triton.compiler import ASTSource

from . import newton_schulz
from .targets import TARGETS

_SHORT = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}


class Product(NamedTuple):
    """A matrix product: of which kind, on what, with which tile of the table."""

    kind: str  # of PRODUCTS
    dtype: str = "float16"
    target: str = "sm_90"
    side: int = 768  # of the result; the other one of a product is four times as long


# kind -> its launch, on batches of matrices without values
PRODUCTS = {
    "sym_mm": lambda n, m, like: newton_schulz.symmetric_launch(
        like(n, m), like(n, m), None, 0.0, *like.rest
    ),
    "sym_baddbmm": lambda n, m, like: newton_schulz.symmetric_launch(
        like(n, n), like(n, n), like(n, n), 1.0, *like.rest
    ),
    "mm_add": lambda n, m, like: newton_schulz.product_launch(
        like(n, n), like(n, m), like(n, m), 1.0, *like.rest
    ),
    "transposed sym_mm": lambda n, m, like: newton_schulz.symmetric_launch(
        like(m, n).mT, like(m, n).mT, None, 0.0, *like.rest
    ),
}


class _Like:
    def __init__(self, dtype, target):
        self.dtype, self.rest = dtype, ("ieee", target)

    def __call__(self, n, m):
        return torch.empty(2, n, m, dtype=self.dtype, device="meta")


# sides that no tile fills: rows at odd addresses, and at aligned ones
ODD = 769, 800


def products():
    """Every row of the table of tiles, and what has no row or is not even."""
    rows = [Product(k, "float16", t, n) for k in PRODUCTS for t in TARGETS for n in (768, 4096)]
    others = [Product("sym_mm", d, "sm_90") for d in ("bfloat16", "float32", "float64")]
    odd = [Product(kind, side=n) for kind in PRODUCTS for n in ODD]
    return [*rows, *others, *odd]


def compiled(case):
    """Compile a product ahead of time, as a call on such matrices would."""
    like = _Like(getattr(torch, case.dtype), case.target)
    ready = PRODUCTS[case.kind](case.side, case.side * 4 + case.side % 2, like)
    kernel, rest, constants = ready.kernel, ready.rest, dict(ready.constants)
    numbers = [1.0] * (len(kernel.arg_names) - len(constants) - len(rest) - 4)
    arguments = *ready.operands, ready.out, *numbers, *rest
    types, known = {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=False)):
        name, special = parameter.name, not parameter.do_not_specialize
        if value is None or (isinstance(value, int) and value == 1 and special):
            constants[name] = value
        elif isinstance(value, float):
            types[name] = "fp64"
        else:
            tensor = isinstance(value, torch.Tensor)
            types[name] = f"*{_SHORT[value.dtype]}" if tensor else "i32"
            if tensor or (value % 16 == 0 and special):
                known[(i,)] = [["tt.divisibility", 16]]
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants, known)
    return triton.compile(source, TARGETS[case.target], ready.options)
