# SPDX-License-Identifier: MIT
"""The options of a parameter group: how each is checked, and which a misspelt one meant."""

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar, get_args, get_origin

import torch

from .values import betas, by, choice, flag, learning_rate, optional, real, warn

Init = TypeVar("Init", bound=Callable[..., None])


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


def _did_you_mean(key, known):
    """A question for the option that a key nearly is; empty where there is none.

    More has to agree than in ``values.meant``: other keys of a group are the user's own.
    """
    spelt = {str(each).lower(): each for each in known}
    near = [spelt[n] for n in difflib.get_close_matches(str(key).lower(), spelt, 1, cutoff=0.8)]
    return f"; did you mean {near[0]!r}?" if near else ""


def warn_of_typos(name, keys, known, internal=()):
    """Warn of a key that is no option but nearly one; other unknown keys are the user's own.

    Keys in ``internal`` are known too, and never meant.
    """
    for key in sorted(set(keys) - set(known) - set(internal), key=str):
        question = _did_you_mean(key, [each for each in known if each not in internal])
        if question:
            warn(f"{name} has the unknown key {key!r}{question}")


def suggesting(init: Init) -> Init:
    """Let a constructor answer an unknown keyword argument with the one that is nearest to it."""
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        for key in kwargs:
            if key not in known:
                name = type(self).__name__
                setting = key.removeprefix("lookahead_")
                fix = (
                    f': pass lookahead={{"name": ..., "{setting}": ...}}, or set it in a group'
                    if setting != key
                    else _did_you_mean(key, known)
                )
                raise TypeError(f"{name}() got an unexpected keyword argument {key!r}{fix}")
        init(self, *args, **kwargs)

    return checked  # pyright: ignore[reportReturnType]
