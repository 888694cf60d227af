# SPDX-License-Identifier: MIT
"""Time: the clock of a group, the two scalars of each parameter, and what a step does by them."""

import ctypes
from array import array
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from ..backends import shards, storage
from ..methods.method import MEMORY, StepInfo

# entries that all groups of an optimizer share, at their start
CLOCK = MappingProxyType({"lookahead_t": 0, "train_mode": True})
# what each parameter carries from step to step
SCALARS = "step", "lookahead"


class Clock(NamedTuple):
    """A group in time: when and how fast its step is, and what to remember of it."""

    t: Any
    lr: Any
    memory: dict[str, Any]  # of the lookahead method, this step included

    def after(self, method):
        """The entries of the group, whose lookahead is the method, once the step has happened."""
        memory = map(self.memory.__getitem__, method.memory)
        return {"lookahead_t": self.t + 1, **dict(zip(method.memory_entries, memory, strict=True))}


def clock_of(method, read):
    """A group's clock at the start of a step; ``read`` gives its entries as numbers or symbols."""
    t, lr = read("lookahead_t"), read("lr")
    if not method.memory:
        return Clock(t, lr, {})
    memory = dict(zip(method.memory, map(read, method.memory_entries), strict=True))
    # what a method does not name stays
    return Clock(t, lr, {**memory, **method.remember(t, lr, read("initial_lr"), memory)})


def host_clock(group, method):
    """A group's clock in numbers of the host; a tensor lr is read, as torch does."""
    numbers = clock_entries(group, method)
    for name, value in numbers.items():
        if type(value) not in (float, int):
            number = value.item() if isinstance(value, torch.Tensor) else value
            numbers[name] = number if isinstance(number, int) else float(number)
    # steps are counted in whole numbers
    numbers["lookahead_t"] = int(numbers["lookahead_t"])
    return clock_of(method, numbers.__getitem__)


def clock_entries(group, method):
    """The entries of a group that its clock is read from."""
    entries = {"lookahead_t": group["lookahead_t"], "lr": group["lr"]}
    if method.memory:
        # a scheduler's or the user's: not looked at where no method asks for it
        entries["initial_lr"] = group.get("initial_lr", 0.0)
        names = method.memory_entries
        entries.update(zip(names, map(group.__getitem__, names), strict=True))
    return entries


def settle_memory(group, method):
    """Have a group remember what its method does: one may have taken another one's place."""
    for name in MEMORY:
        if name in method.memory:
            group.setdefault(f"lookahead_{name}", method.memory[name])
        elif not hasattr(method, name):  # a setting may have the name of another's memory
            group.pop(f"lookahead_{name}", None)


def place_clock(group, method, device):
    """Keep what the clock carries from step to step on a device."""
    for name in ("lookahead_t", *method.memory_entries):
        group[name] = torch.as_tensor(group[name], dtype=torch.float64, device=device)


def planned(group, method, base, clock, step, ahead, grad_scale=None):
    """What a step does to a parameter.

    Args:
        group: the parameter's.
        method: the group's lookahead.
        base: the group's ``optimizers.base.Base``.
        clock: the group's ``Clock``.
        step, ahead: the parameter's; see ``Scalars``.
        grad_scale: what gradients were multiplied by, or None; a tensor is read where it is used.

    Returns:
        The lookahead's ``Plan``; the base rule, a row of ``rules.BASES``, or None where another
        optimizer makes the update; and the numbers of the pass: a factor of the gradients, the
        base's and the lookahead's, or the lookahead's alone.
    """
    # a lookahead may move it to another point; that of an inner optimizer stays in u
    decay = group["weight_decay"] if "weight_decay" in base.options else 0.0
    info = StepInfo(clock.t, step, ahead, clock.lr, decay)
    plan = method.plan(info, clock.memory)
    if plan.base is None:
        options = {**group, **plan.options} if plan.options else group
        rule, numbers = base.rule(group), base.numbers(options, info)
    else:
        rule, numbers = plan.base
    if rule is None:
        return plan, None, plan.numbers
    sign = -1.0 if group.get("maximize") else 1.0
    if isinstance(grad_scale, torch.Tensor):
        grad_scale = shards.whole("grad_scale", grad_scale).item()
    factor = sign if grad_scale is None else sign / grad_scale
    return plan, rule, (factor, *numbers, *plan.numbers)


class Scalars:
    """``step`` (base updates taken) and ``lookahead`` (how far y is ahead of x; 0: at x).

    Each is one vector for the parameters of a bucket, so that advancing them is one operation;
    ``views`` holds their elements, 0-d tensors.

    Args:
        count: how many parameters.
        device: theirs.
    """

    def __init__(self, count, device):
        self.count, self.device = count, device
        self.on_device = False  # where the vectors are
        self._memory: Any = None, None  # the vectors' addresses, and what Python reads there
        self.steps = torch.zeros(count, dtype=torch.float32, device="cpu")
        # in float64: the recurrence of a float64 parameter must see the exact number
        self.lookaheads = torch.zeros(count, dtype=torch.float64, device="cpu")

    def views(self):
        """State name -> one 0-d tensor for each parameter."""
        vectors = self.steps, self.lookaheads
        return {name: list(v.unbind()) for name, v in zip(SCALARS, vectors, strict=True)}

    def place(self, on_device):
        """Keep them on the device, where one element serves all parameters, or on the host.

        On the device they must be the same for all parameters: see ``uniform``. Views change.
        """
        self.on_device = on_device
        self.steps = self._placed(self.steps)
        self.lookaheads = self._placed(self.lookaheads)

    def _placed(self, vector):
        if self.on_device:
            return vector[:1].to(self.device, copy=True).expand(self.count)
        return vector.cpu().clone(memory_format=torch.contiguous_format)

    def uniform(self):
        """Whether all parameters have the same numbers; those on a device have."""
        if self.on_device:
            return True
        return all(map(_all_alike, self._read()))

    def _read(self):
        # an operation of torch would take as long as all else that a step does for a parameter, and
        # a number that is kept would miss what .data, NumPy and collectives write without a trace
        # share_memory_() of a view moves all of its vector
        where = self.steps.data_ptr(), self.lookaheads.data_ptr()
        if self._memory[0] != where:
            steps, lookaheads = map(_memory_of, (self.steps, self.lookaheads))
            self._memory = where, (steps.cast("f"), lookaheads.cast("d"))
        return self._memory[1]

    def groups(self, indices):
        """Group parameters by (step, lookahead), read on the host: normally one entry."""
        if not indices:
            return {}
        steps, lookaheads = self._read()
        if _all_alike(steps) and _all_alike(lookaheads):
            return {(steps[0], lookaheads[0]): indices}
        groups = {}
        for i in indices:
            groups.setdefault((steps[i], lookaheads[i]), []).append(i)
        return groups

    def ahead(self, indices):
        """Group parameters by how far they are ahead; reads numbers that are on a device."""
        storage.check("'lookahead' of the state", self.lookaheads)
        values, groups = self.lookaheads.tolist(), {}
        for i in indices:
            groups.setdefault(values[i], []).append(i)
        return groups

    def advance(self, indices, step, lookahead):
        """Record a step: base updates taken, and how far parameters are ahead."""
        steps, lookaheads = self._read()
        if len(indices) == self.count:
            steps[:] = array("f", (step,)) * self.count
            lookaheads[:] = array("d", (lookahead,)) * self.count
        else:
            for i in indices:
                steps[i], lookaheads[i] = step, lookahead

    def arrive(self, i):
        """Record that a parameter is at x."""
        # on the device one number serves all; whoever asks is where any is right
        if not self.on_device:
            self.lookaheads[i] = 0.0


def _memory_of(vector):
    """The memory of a vector on the CPU, in bytes; of no use once it is elsewhere."""
    return memoryview((ctypes.c_char * vector.nbytes).from_address(vector.data_ptr())).cast("B")


def _all_alike(values):
    """Whether all values in some memory have the same bytes."""
    held = values.tobytes()
    return held == held[: values.itemsize] * len(values)
