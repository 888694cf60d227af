# SPDX-License-Identifier: MIT
"""The options of a parameter group: how each is checked."""

import functools
import inspect
from collections.abc import Sequence
from typing import Annotated, Literal, get_args, get_origin

import torch

from .values import betas, by, choice, flag, learning_rate, optional, real


def at_least_zero(name, value):
    """Return a number that is at least 0 as a float; errors begin as torch's."""
    try:
        return real(name, value, 0)
    except ValueError as error:
        torchs = {"eps": "epsilon"}.get(name, name)
        raise ValueError(f"Invalid {torchs} value: {value} ({error})") from None


# what a constructor annotates an option of its base with: type and check(name, value) -> value
LearningRate = Annotated[float | torch.Tensor, learning_rate]
Betas = Annotated[Sequence[float], betas]
AtLeastZero = Annotated[float, at_least_zero]
Flag = Annotated[bool, flag]

# what a step does about gradients that are not finite
Nonfinite = Literal["propagate", "skip", "raise"]

# options of all bases
CHECKS = {
    "maximize": flag,
    "capturable": flag,
    "differentiable": flag,
    "foreach": by(optional, flag),
    "fused": by(optional, flag),
    "nonfinite": by(choice, get_args(Nonfinite)),
}

# options of some base that are sequences of numbers, and kept as tuples
SEQUENCES: dict[str, None] = {}


def _check_all(group):
    """Refuse options of all bases that contradict each other."""
    if group.get("fused") and group.get("differentiable"):
        raise RuntimeError("`fused` does not support `differentiable`")
    if group.get("fused") and group.get("foreach"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if group.get("differentiable"):
        raise ValueError(
            "differentiable=True is not supported: the step is not recorded by autograd"
        )


def options_of(arguments):
    """The options among the arguments of an optimizer's constructor, its ``locals()``."""
    others = {"self", "params", "lookahead", "__class__"}
    return {k: v for k, v in arguments.items() if k not in others}


def own_options(optimizer, *check_together):
    """The options of a base: what its class takes between ``params`` and ``lookahead``.

    Args:
        optimizer: the class; its constructor annotates each with a type and a check, as here.
        check_together: functions of a group that raise where its options contradict each other.

    Returns:
        The options with their defaults, and a function that checks a group: ``check_group``.

    Raises:
        TypeError: an option is not annotated so.
    """
    parameters = inspect.signature(optimizer).parameters
    names = [*parameters]
    own = names[names.index("params") + 1 : names.index("lookahead")]
    options = {name: parameters[name].default for name in own}
    if bare := [n for n in own if not hasattr(parameters[n].annotation, "__metadata__")]:
        raise TypeError(
            f"{optimizer.__name__} does not say how {bare} are checked: annotate each in its "
            "constructor, as in eps: Annotated[float, check], without postponed annotations"
        )
    SEQUENCES.update((name, None) for name in own if _takes_sequences(parameters[name].annotation))
    checks = {**CHECKS, **{name: parameters[name].annotation.__metadata__[0] for name in own}}
    return options, functools.partial(check_group, checks, (_check_all, *check_together))


def _takes_sequences(annotation):
    kind, *_ = get_args(annotation)
    return any(get_origin(each) is Sequence for each in (kind, *get_args(kind)))


def check_group(checks, check_together, group):
    """Return the checked options of a group; unknown keys are kept.

    Raises:
        TypeError, ValueError, RuntimeError: an option is of the wrong kind, out of range, or
            contradicts another; the message names it.
    """
    group = {k: checks[k](k, v) if k in checks else v for k, v in group.items()}
    for check in check_together:
        check(group)
    return group
