"""What a base optimizer is: a row that says all about it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.nn.parameter import is_lazy

from ..options import check_group


def _all_to_be_stepped(group):
    params = [p for p in group["params"] if p.requires_grad or p.grad is not None]
    return [p for p in params if not is_lazy(p)]


class Base(NamedTuple):
    """A base optimizer, as a group names it in ``group["base"]``.

    ``directions(part)`` is called while a step is planned; it may raise, nothing has changed. What
    it returns is called as (gradients, numbers, skip) before the pass, and returns what the pass
    takes in their place: directions, factors of them, and the numbers of the pass.
    """

    rule: Callable[[dict], Any]  # group -> a row of rules.BASES; None: updated elsewhere
    numbers: Callable[[dict, Any, Any], tuple]  # (group, lr, step) -> numbers: directions', rule's
    options: Mapping[str, Any]  # its own options of a group, with their defaults
    uncounted: float | None = None  # `step` of state that was saved without it; None: an error
    directions: Callable | None = None
    state: tuple[str, ...] = ()  # what directions are found with
    check: Callable[[str, Any, dict], None] | None = None  # (name, parameter, group): may raise
    checked: Callable[[dict], dict] = check_group  # a group -> the same, its options checked
    # group -> those of its parameters whose state is allocated together, at the first step
    allocated: Callable[[dict], list] = _all_to_be_stepped
    # its weight decay, which a lookahead method may move to another point; None: it stays in u
    decay: str | None = "weight_decay"
    dense_only: bool = True  # whether sparse gradients are an error
