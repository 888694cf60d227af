# SPDX-License-Identifier: MIT
"""What a base optimizer is: a row that says all about it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.nn.parameter import is_lazy

from ..methods.method import StepInfo


def _all_to_be_stepped(group):
    params = [p for p in group["params"] if p.requires_grad or p.grad is not None]
    return [p for p in params if not is_lazy(p)]


class Base(NamedTuple):
    """A base optimizer, as a group names it in ``group["base"]``.

    ``numbers`` of one that is capturable is arithmetic on ``info`` without a branch, so that it can
    be traced and evaluated on a device. How weights decay is said by the group, where a lookahead
    may have changed it for a step. What directions have to know of a step is among the numbers.

    ``directions(joint)`` is called while a step is planned, and not again before parameters, state
    or options other than lr have changed; it may raise, nothing has changed. What it returns is
    called at every step as (gradients, numbers, skip) before the pass, and returns what the pass
    takes in their place: directions, factors of them, and the numbers of the pass. Its parameters
    are of one device and dtype, and of parts for which ``alike(part)`` is equal.
    """

    rule: Callable[[dict], Any]  # group -> a row of rules.BASES; None: updated elsewhere
    numbers: Callable[[dict, StepInfo], tuple]  # (group, info) -> numbers: directions', rule's
    options: Mapping[str, Any]  # its own options of a group, with their defaults
    checked: Callable[[dict], dict]  # a group -> the same, its options checked
    uncounted: float | None = None  # `step` of state that was saved without it; None: an error
    directions: Callable | None = None
    # part -> what those have in common whose directions are found together
    alike: Callable[[Any], Any] = lambda part: (part.bucket.number, *part.indices[:1])
    state: tuple[str, ...] = ()  # what directions are found with; each may be a rules.State
    check: Callable[[str, Any, dict], None] | None = None  # (name, parameter, group): may raise
    # group -> those of its parameters whose state is allocated together, at the first step
    allocated: Callable[[dict], list] = _all_to_be_stepped
    dense_only: bool = True  # whether sparse gradients are an error
    capturable: bool = True  # whether the numbers can be found on a device
