# The extension (csrc/bindings.cpp). A function that returns False has changed nothing: some tensors
# must be copied first, because of their memory order or format.
from typing import Any

from torch import Tensor

def step_(
    base: str,
    look: str,
    ys: list[Tensor],
    gs: list[Tensor],
    base_state: list[list[Tensor]],
    look_state: list[list[Tensor]],
    numbers: Any,
    in_double: bool,
) -> bool: ...
def follow_(
    look: str,
    ys: list[Tensor],
    snapshots: list[Tensor],
    state: list[list[Tensor]],
    numbers: Any,
    in_double: bool,
) -> bool: ...
def move_(
    point: str, ys: list[Tensor], state: list[list[Tensor]], numbers: Any, in_double: bool
) -> bool: ...
def nonfinite(gs: list[Tensor]) -> bool | None: ...
def rules() -> dict[str, dict[str, tuple[int, int]]]: ...
def versions(tensors: list[Tensor]) -> list[int]: ...
def gradients(params: list[Tensor]) -> list[Any]: ...

class Watch:
    def __init__(self, lists: list[Any], mappings: list[Any], entries: list[Any]) -> None: ...
    def unchanged(self, lists: list[Any], mappings: list[Any]) -> bool: ...
