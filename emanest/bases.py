"""What a base optimizer is: a row of fields, and the rows of AdamW and SGD."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch.nn.parameter import is_lazy

from .checks import check_group


def _all_to_be_stepped(group):
    params = [p for p in group["params"] if p.requires_grad or p.grad is not None]
    return [p for p in params if not is_lazy(p)]


def _weight_decay(group):
    return group["weight_decay"]


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
    # group -> the weight decay that a lookahead method may move to another point
    weight_decay: Callable[[dict], float] = _weight_decay
    dense_only: bool = True  # whether sparse gradients are an error


def _adamw_rule(group):
    return "amsgrad" if group["amsgrad"] else "adamw"


def _adamw_numbers(group, lr, step):
    beta1, beta2 = group["betas"]
    # weights are subtracted here, in double: 1 - 0.999 in float32 is off by 1e-5
    bias1, bias2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
    decay = lr * group["weight_decay"]
    return lr / bias1, decay, 1 - beta1, 1 - beta2, bias2**-0.5, group["eps"]


# (has momentum, nesterov) -> rule
_SGD_RULES = {
    (False, False): "sgd",
    (False, True): "sgd",
    (True, False): "momentum",
    (True, True): "nesterov",
}


def _sgd_rule(group):
    return _SGD_RULES[group["momentum"] != 0, group["nesterov"]]


def _sgd_numbers(group, lr, step):
    if group["momentum"] == 0:
        return lr, group["weight_decay"]
    # the buffer starts at the first gradient, undamped, as in torch
    later = (step > 0) + 0 * step  # of a condition on a tensor, torch would make a float32
    weight = 1 - group["dampening"] * later
    return lr, group["weight_decay"], 1 - group["momentum"], weight


ADAMW = Base(
    _adamw_rule,
    _adamw_numbers,
    MappingProxyType(
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False}
    ),
)
SGD = Base(
    _sgd_rule,
    _sgd_numbers,
    MappingProxyType(
        {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
    ),
    # torch saves no `step` for SGD, and only the first one differs from the others
    uncounted=1.0,
)
