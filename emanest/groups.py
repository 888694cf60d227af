"""Parameter groups: checked when they are added, read at every step."""

from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from . import backends, rules, shards
from .checks import CHECKS, SEQUENCES, check_group
from .gradients import parameter_name
from .lookahead import METHODS, group_entries, method_of
from .options import check_parameter, choice, learning_rate, warn_of_typos

# entries that all groups of an optimizer share, at their start
CLOCK = MappingProxyType({"lookahead_t": 0, "train_mode": True})
# what methods remember from step to step
_MEMORY = sorted({name for method in METHODS.values() for name in method.memory})


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
    defaults = defaults_of(group, optimizer)
    complete = {**completed_entries(group, defaults), **shared_clock(optimizer.param_groups)}
    known = {"params", "param_names", *defaults, *group_entries(method_of(complete), complete)}
    warn_of_typos(f"group {index}", group, known)
    group = check_group(complete)
    if isinstance(group["lr"], torch.Tensor):
        # torch shares one tensor among groups, and a scheduler then scales it once per group
        group["lr"] = group["lr"].detach().clone()
    check_method(group)
    return group


def shared_clock(groups):
    """The clock and the mode of an optimizer's groups, which a late one joins."""
    first = groups[0] if groups else {}
    held = {key: first[key] for key in CLOCK if key in first}
    # a clock on a device is moved on in place, once for each group
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in held.items()}


def defaults_of(group, optimizer):
    """What a group starts from: the optimizer's defaults, or the options of another base's own."""
    defaults, bases = optimizer.defaults, optimizer.bases
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


def check_method(group):
    """The group's lookahead method, or None, checked against the group's other options.

    Raises:
        ValueError: a setting is out of range, or contradicts the base's options.
    """
    method = method_of(group)
    if method is not None:
        method.check_base(group)
        if group.get("capturable") and not method.capturable:
            raise ValueError(
                f"capturable=True does not work with {type(method).__name__}: its syncs, or its "
                "callable step size, are decided on the host"
            )
    return method


def check_set_since(optimizer):
    """Raise TypeError or ValueError for what schedulers may have set to what is not valid."""
    for index, group in enumerate(optimizer.param_groups):
        learning_rate(f"lr of group {index}", group.get("lr"))
        check_method(group)
        for name in SEQUENCES if optimizer.bases else ():
            # one of another kind would not be saved as it is, nor seen to change on a device
            if not isinstance(group.get(name, ()), (tuple, str)):
                group[name] = CHECKS[name](name, group[name])


def check_params_of(index, group):
    """Check the parameters of a group that torch has accepted, and drop repetitions."""
    # torch only warns of a repeated parameter, and then updates it twice
    group["params"] = list(dict.fromkeys(group["params"]))
    for j, p in enumerate(group["params"]):
        name = parameter_name(group, index, j)
        shards.check_class(name, p)
        check_parameter(name, p)
        backends.require(p.device.type, group.get("backend"))


def check_fit(index, group, bases):
    """Raise ValueError if the group's base cannot step one of its parameters."""
    check = bases[group["base"]].check
    if check is None:
        return
    for j, p in enumerate(group["params"]):
        name = parameter_name(group, index, j)
        if is_lazy(p):
            raise ValueError(f"{name} has no shape yet: run one forward pass first")
        check(name, p, group)


def state_names(bases, group):
    """Names of all state that a group's parameters need."""
    method = method_of(group)
    base = bases[group["base"]] if bases else None
    searched = (*base.state, *rules.BASES[base.rule(group)].state) if base else ()
    return (*searched, *(method.state if method else ()))


class Clock(NamedTuple):
    """A group in time: when and how fast its step is, and what to remember of it."""

    t: Any
    lr: Any
    memory: dict[str, Any]  # of the lookahead method, this step included

    def after(self):
        """The group's entries once the step has happened."""
        memory = {f"lookahead_{name}": value for name, value in self.memory.items()}
        return {"lookahead_t": self.t + 1, **memory}


def clock_of(method, read):
    """A group's clock at the start of a step; ``read`` gives its entries as numbers or symbols."""
    t, lr = read("lookahead_t"), read("lr")
    if method is None:
        return Clock(t, lr, {})
    memory = {name: read(f"lookahead_{name}") for name in method.memory}
    return Clock(t, lr, method.remember(t, lr, read("initial_lr"), memory))


def host_clock(group, method):
    """The same in numbers of the host; a tensor lr is read, as torch does."""
    entries = clock_entries(group, method)

    def read(name):
        value = entries[name]
        if isinstance(value, torch.Tensor):
            value = value.item()
        # steps are counted in whole numbers
        return value if isinstance(value, int) else float(value)

    return clock_of(method, read)


def clock_entries(group, method):
    """The entries of a group that its clock is read from."""
    names = "lookahead_t", "lr", *memory_entries(method)
    return {**{name: group[name] for name in names}, "initial_lr": group.get("initial_lr", 0.0)}


def memory_entries(method):
    """The entries of a group that hold a method's memory."""
    return [f"lookahead_{name}" for name in (method.memory if method else ())]


def place_clock(group, method, device):
    """Keep what the clock carries from step to step on a device, or as numbers (device None)."""
    memory = method.memory if method else {}
    for name in _MEMORY:
        # a method that has taken another one's place has none yet, and leaves none behind
        if name in memory:
            group.setdefault(f"lookahead_{name}", memory[name])
        else:
            group.pop(f"lookahead_{name}", None)
    for name in ("lookahead_t", *memory_entries(method)):
        held = group[name]
        if device is not None:
            group[name] = torch.as_tensor(held, dtype=torch.float64, device=device)
        elif isinstance(held, torch.Tensor):
            group[name] = held.item()
    if device is None:
        group["lookahead_t"] = int(group["lookahead_t"])
