# SPDX-License-Identifier: MIT
# The extension (csrc/bindings.cpp).
from typing import Any, Protocol

from torch import Tensor

class Tables:
    """What is kept from call to call for tensors on a GPU: where they are, in its memory."""

class Target:
    """Where a call runs, and what it is given there besides lists of tensors."""

    def __init__(
        self,
        numbers: Any,
        begins: list[int] = [],
        skip: Tensor | None = None,
        tables: Tables | None = None,
        stream: int = 0,
    ) -> None: ...

class Pass(Protocol):
    # A pass over columns of tensors: parameters (of rows_ matrices; nothing of nonfinite), their
    # inputs (gradients, snapshots, nothing), each state (of rows_ then the factors, written).
    # out receives the squares of momentum_, what nonfinite found. False: nothing has changed, and
    # some tensors must be copied first, because of their memory order or format.
    def __call__(
        self,
        rules: tuple[str, ...],
        in_double: bool,
        target: Target,
        scales: list[Tensor],
        out: Tensor | None,
        columns: list[list[Tensor]],
        /,
    ) -> bool: ...

step_: Pass
follow_: Pass
move_: Pass
momentum_: Pass
rows_: Pass
nonfinite: Pass

def symmetric_product(
    out: Tensor, c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float
) -> Tensor: ...
def product(out: Tensor, c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor: ...
def large_product(
    out: Tensor, c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float
) -> Tensor: ...
def build_info() -> dict[str, Any]: ...
def count_writes(tensors: list[Tensor]) -> None: ...
def versions(tensors: list[Tensor]) -> list[int]: ...
def gradients(waited: Any, params: list[Tensor]) -> list[Any]: ...

class Guard:
    def __init__(self, lists: list[Any], mappings: list[Any], entries: list[Any]) -> None: ...
    def unchanged(self, lists: list[Any], mappings: list[Any]) -> bool: ...

class Layout:
    def __init__(self, columns: list[Any]) -> None: ...
    def unchanged(self, columns: list[Any]) -> bool: ...
