"""From a parameter group's options to a base rule and its numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Base(NamedTuple):
    """A base optimizer, as a group names it in ``group["base"]``."""

    rule: Callable[[dict], str]  # group -> a row of rules.BASES
    numbers: Callable[[dict, Any, Any], tuple]  # (group, lr, step) -> numbers of the rule
    uncounted: float | None = None  # `step` of state that was saved without it; None: an error


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


ADAMW = Base(_adamw_rule, _adamw_numbers)
# torch saves no `step` for SGD, and only the first one differs from the others
SGD = Base(_sgd_rule, _sgd_numbers, uncounted=1.0)
