# SPDX-License-Identifier: MIT
"""Parameter groups: checked when they are added, read at every step."""

import math
import operator
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from . import backends, rules
from .backends import shards
from .methods.given import group_entries, method_of
from .methods.method import NO_LOOKAHEAD, Method
from .options import CHECKS, warn_of_typos
from .state.clock import CLOCK, settle_memory
from .values import check_parameter, choice, learning_rate, warn


def parameter_name(group, index, j):
    """What messages call a parameter."""
    names = group.get("param_names")
    return f"parameter {j} of group {index}" + (f" ({names[j]!r})" if names else "")


def is_lookahead_entry(key):
    """Whether a group's entry belongs to its lookahead method."""
    return key == "lookahead" or (isinstance(key, str) and key.startswith("lookahead_"))


def completed(index, group, optimizer):
    """A complete, checked copy of a group that is about to be added.

    Raises:
        TypeError, ValueError: an option or a parameter is not valid; the message names the group.
    """
    if not isinstance(group, dict):
        raise TypeError(f"param_group must be a dict, got {type(group).__name__}")
    if "params" not in group:
        raise ValueError(f"group {index} has no 'params'")
    defaults = optimizer._defaults(group)
    complete = {**completed_entries(group, defaults), **shared_clock(optimizer.param_groups)}
    method = method_of(complete)
    known = {"params", "param_names", *defaults, *group_entries(method, complete)}
    warn_of_typos(f"group {index}", group, known, CLOCK)
    if method is NO_LOOKAHEAD:
        _warn_of_settings(index, group, known)
    base = optimizer._base(complete)
    try:
        group = base.checked(complete)
    except (TypeError, ValueError) as error:
        raise type(error)(f"group {index}: {error}") from None
    if isinstance(group["lr"], torch.Tensor):
        # torch shares one tensor among groups, and a scheduler then scales it once per group
        group["lr"] = group["lr"].detach().clone()
    check_method(group, base)
    return group


def _warn_of_settings(index, given, known):
    """Warn of settings of a lookahead in a group that has none."""
    stray = [key for key in given if is_lookahead_entry(key) and key not in known]
    if stray and "lookahead" not in given:
        warn(
            f"group {index} has {stray[0]!r}, and no lookahead: name one, as in "
            '"lookahead": "ema_nesterov"'
        )


def shared_clock(groups):
    """The clock and the mode of an optimizer's groups, which a late one joins."""
    first = groups[0] if groups else {}
    held = {key: first[key] for key in CLOCK if key in first}
    # a clock on a device is moved on in place, once for each group
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in held.items()}


def defaults_of(group, defaults, bases):
    """What a group starts from: the optimizer's defaults, or the options of another base's own."""
    own = defaults["base"]
    name = choice("base", group.get("base", own), bases)
    if name == own:
        return defaults
    shared = {k: v for k, v in defaults.items() if k not in bases[own].options}
    return {**shared, **bases[name].options, "base": name}


def completed_entries(group, defaults):
    """A group completed from defaults; its ``lookahead`` may still be a method."""
    group = dict(group)
    if group.get("lookahead", defaults["lookahead"]) != defaults["lookahead"]:
        # another method than the default one, none of whose settings apply
        defaults = {k: v for k, v in defaults.items() if k in CLOCK or not is_lookahead_entry(k)}
    if not isinstance(group.get("lookahead", ""), str):
        group = {**group_entries(group.pop("lookahead")), **group}
    complete = {**defaults, **group}
    # a scheduler that cycles momentum has written over that of the base
    made = {**complete, **defaults} if "max_momentum" in group else complete
    # one that is given by its name has settings and memory, too
    return {**group_entries(method_of(complete), made), **complete}


def check_method(group, base):
    """The group's lookahead method, checked against the group's base and its other options.

    Raises:
        ValueError: a setting is out of range, or contradicts the base's options.
    """
    method = method_of(group)
    method.check_base(group)
    if group.get("capturable") and not method.capturable:
        raise ValueError(
            f"capturable=True does not work with {type(method).__name__}: its syncs, or its "
            "callable step size, are decided on the host"
        )
    if group.get("capturable") and not base.capturable:
        raise ValueError(
            f"capturable=True does not work with the base {group['base']!r}: what it does at a "
            "step is decided on the host"
        )
    return method


class Setup(NamedTuple):
    """How a group is stepped."""

    group: dict[str, Any]
    method: Method  # its lookahead
    base: Any  # its ``optimizers.base.Base``
    state: tuple[str, ...]  # names of all state that its parameters need
    # the entries that all this was found from: their keys, and their values
    keys: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    size: int = 0  # how many entries there are

    def holds(self, group):
        """Whether a group has the very entries that this was found from."""
        return (
            group is self.group
            and len(group) == self.size
            and all(map(operator.is_, map(group.get, self.keys), self.values))
        )


def setups(optimizer, known=()):
    """How each group is stepped.

    Args:
        optimizer: whose groups.
        known: what was found last; the same list again if nothing has changed.

    Raises:
        TypeError, ValueError: an option that was set since, by a scheduler say, is not valid.
    """
    groups = optimizer.param_groups
    for index, group in enumerate(groups):
        lr = group.get("lr")
        if type(lr) is not float or not 0.0 <= lr < math.inf:
            learning_rate(f"lr of group {index}", lr)
    if len(groups) == len(known) and all(map(Setup.holds, known, groups)):
        return known
    return [_setup(index, group, optimizer._base(group)) for index, group in enumerate(groups)]


def _setup(index, group, base):
    """How a group is stepped; its options may have changed since they were checked."""
    for device_type in {p.device.type for p in group["params"]}:
        backends.require(device_type, group.get("backend"))
    policy = group.get("nonfinite", "propagate")
    if policy != "propagate":
        CHECKS["nonfinite"](f"nonfinite of group {index}", policy)
    if missing := [key for key in base.options if key not in group]:
        raise ValueError(
            f"group {index} has none of the options {missing} of its base {group['base']!r}: set "
            "them, or add its parameters as a new group with that base"
        )
    try:
        checked = base.checked(group)
    except (TypeError, ValueError) as error:
        raise type(error)(f"group {index}: {error}") from None
    # one of another kind would not be saved as it is, nor seen to change on a device; lr may be a
    # tensor, which stays
    group.update({k: checked[k] for k in base.options if k != "lr" and k in checked})
    method = check_method(group, base)
    settle_memory(group, method)
    # what goes on from step to step, or is looked at in every step
    moving = {"lr", "initial_lr", *CLOCK, *method.memory_entries}
    keys = tuple(key for key in group if key not in moving)
    values = tuple(group[key] for key in keys)
    return Setup(group, method, base, state_names(group, method, base), keys, values, len(group))


def state_names(group, method, base):
    """Names of all state that a group's parameters need."""
    rule = base.rule(group)
    own = () if rule is None else rules.BASES[rule].state
    return *base.state, *own, *method.state


def check_params_of(index, group):
    """Check the parameters of a group that torch has accepted, and drop repetitions."""
    # torch only warns of a repeated parameter, and then updates it twice
    group["params"] = list(dict.fromkeys(group["params"]))
    for j, p in enumerate(group["params"]):
        name = parameter_name(group, index, j)
        shards.check_class(name, p)
        check_parameter(name, p)
        backends.require(p.device.type, group.get("backend"))


def check_fit(index, group, base):
    """Raise ValueError if the group's base cannot step one of its parameters."""
    if base.check is None:
        return
    for j, p in enumerate(group["params"]):
        name = parameter_name(group, index, j)
        if is_lazy(p):
            raise ValueError(f"{name} has no shape yet: run one forward pass first")
        base.check(name, p, group)
