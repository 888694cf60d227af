# The extension (csrc/bindings.cpp). A function that returns False has changed nothing: some tensors
# must be copied first, because of their memory order or format.
from typing import Any

from torch import Tensor

class Tables:
    """What is kept from call to call for tensors on a GPU: where they are, in its memory."""

class Target:
    """Where a call runs, and what it is given there besides lists of tensors."""

    def __init__(
        self,
        numbers: Any,
        tables: Tables | None = None,
        stream: int = 0,
        skip: Tensor | None = None,
    ) -> None: ...

def step_(
    base: str,
    lookahead: str,
    scales: list[Tensor],
    in_double: bool,
    target: Target,
    ys: list[Tensor],
    gs: list[Tensor],
    state: list[list[Tensor]],
) -> bool: ...
def follow_(
    lookahead: str,
    in_double: bool,
    target: Target,
    ys: list[Tensor],
    snapshots: list[Tensor],
    state: list[list[Tensor]],
) -> bool: ...
def move_(
    point: str,
    in_double: bool,
    target: Target,
    ys: list[Tensor],
    none: list[Tensor],
    state: list[list[Tensor]],
) -> bool: ...
def momentum_(
    name: str,
    squares: Tensor,
    in_double: bool,
    target: Target,
    us: list[Tensor],
    gs: list[Tensor],
    state: list[list[Tensor]],
) -> bool: ...
def rows_(
    name: str,
    matrices: list[Tensor],
    state: list[list[Tensor]],
    scales: list[Tensor],
    factors: list[Tensor],
    in_double: bool,
    target: Target,
) -> bool: ...
def nonfinite(gs: list[Tensor], found: Tensor, target: Target) -> bool: ...
def symmetric_product(
    out: Tensor, c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float
) -> Tensor: ...
def product(out: Tensor, c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor: ...
def build_info() -> dict[str, Any]: ...
def rules() -> dict[str, dict[str, tuple[int, int]]]: ...
def count_writes(tensors: list[Tensor]) -> None: ...
def versions(tensors: list[Tensor]) -> list[int]: ...
def gradients(waited: Any, params: list[Tensor]) -> list[Any]: ...

class Guard:
    def __init__(self, lists: list[Any], mappings: list[Any], entries: list[Any]) -> None: ...
    def unchanged(self, lists: list[Any], mappings: list[Any]) -> bool: ...

class Layout:
    def __init__(self, columns: list[Any]) -> None: ...
    def unchanged(self, columns: list[Any]) -> bool: ...
