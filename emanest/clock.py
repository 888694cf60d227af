"""A group in time: its clock, and what a step does by it; in numbers, or recorded as symbols."""

from typing import Any, NamedTuple

import torch

from .lookahead import METHODS, At, Plan

# what methods remember from step to step
_MEMORY = sorted({name for method in METHODS.values() for name in method.memory})


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
    numbers = {}
    for name, value in clock_entries(group, method).items():
        number = value.item() if isinstance(value, torch.Tensor) else value
        # steps are counted in whole numbers
        numbers[name] = number if isinstance(number, int) else float(number)
    return clock_of(method, numbers.__getitem__)


def clock_entries(group, method):
    """The entries of a group that its clock is read from."""
    names = "lookahead_t", "lr", *memory_entries(method)
    return {**{name: group[name] for name in names}, "initial_lr": group.get("initial_lr", 0.0)}


def memory_entries(method):
    """The entries of a group that hold a method's memory."""
    return method.memory_entries if method else ()


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


def sign(group):
    """The factor of gradients: -1 to maximize, else 1."""
    return -1.0 if group.get("maximize") else 1.0


def planned(group, method, base, clock, step, ahead):
    """What a step does to a parameter.

    Args:
        group: the parameter's.
        method: the group's lookahead, or None.
        base: the group's ``bases.Base``.
        clock: the group's ``Clock``.
        step, ahead: the parameter's; see ``scalars.Scalars``.

    Returns:
        The lookahead's ``Plan``; the base rule, a row of ``rules.BASES``, or None where another
        optimizer makes the update; and the base rule's numbers.
    """
    at = At(clock.t, step, ahead, clock.lr, base.weight_decay(group))
    plan = Plan() if method is None else method.plan(at, clock.memory)
    if plan.base is not None:
        return plan, *plan.base
    rule = base.rule(group)
    if rule is None:
        return plan, None, ()
    return plan, rule, base.numbers({**group, **plan.options}, clock.lr, step)
