# SPDX-License-Identifier: MIT
"""Steps whose numbers only the device knows.

Under CUDA graphs (``capturable=True``), a GPU GradScaler or ``nonfinite="skip"`` on a GPU the host
does not know how many steps were taken: where a step is skipped, its flag is on the device. Then
clocks are kept in tensors there, and one launch before each pass finds the pass's numbers from them
and, unless the step is skipped, moves them on. What it computes is traced from the same
formulas as on the host: ``remember`` and ``plan`` of the method, the numbers of the base.
"""

import functools
from numbers import Number
from typing import Any, NamedTuple

import torch

from .. import backends
from ..backends import shards
from ..backends.program import Program, record, symbol
from ..state.clock import clock_of, planned

# entries of a group that are no options: they come to a program as its inputs, or not at all
_NO_OPTIONS = frozenset({"params", "param_names", "lr", "initial_lr", "train_mode"})
# looked for in this order: to ask whether something is a Number takes longer
_PLAIN = (float, int, str, tuple, list, Number)


class Traced(NamedTuple):
    """What one launch computes, and the rules that its numbers are for."""

    program: Program
    constants: tuple[float, ...]
    base: str | None = None  # a row of rules.BASES; None: another optimizer makes the update
    lookahead: str = "none"  # a row of rules.LOOKAHEADS


def trace(group, method, base, *, scaled=False, clock=True):
    """Record the step of a bucket.

    ``step`` and ``lookahead`` go on; so do ``lookahead_t`` and the method's memory with ``clock``.
    A method without syncs is assumed.

    Args:
        group: a parameter group; its lr and what it remembers are not looked at.
        method: its lookahead method.
        base: its ``optimizers.base.Base``.
        scaled: divide gradients by an input ``grad_scale``.
        clock: this is the group's only bucket.
    """
    now = clock_of(method, symbol)
    step, ahead = symbol("step"), symbol("lookahead")
    grad_scale = symbol("grad_scale") if scaled else None
    plan, rule, numbers = planned(group, method, base, now, step, ahead, grad_scale)
    after = {"step": step + 1, "lookahead": plan.ahead, **(now.after(method) if clock else {})}
    return Traced(*record(numbers, after), rule, plan.rule)


@functools.lru_cache
def trace_clock(method):
    """Record what a step changes in a group besides its parameters."""
    return Traced(*record((), clock_of(method, symbol).after(method)))


class DevicePlan:
    """The launch that goes before the pass over a bucket; the optimizer keeps one for each.

    Args:
        device: where it runs.
    """

    def __init__(self, device):
        self.device = device
        self._key: Any = None
        self._traced: Any = None
        # never freed: a captured graph writes where it wrote when it was captured
        self._vectors = {}

    def trace(self, group, method, base, **kind):
        """As ``trace``, done again only if an option of the group has changed."""
        key = options(group), method, base, kind
        if key != self._key:
            self._key, self._traced = key, trace(group, method, base, **kind)
        return self._traced

    def run(self, traced, inputs, skip=None, backend=None):
        """Find the numbers of a step and move on; nothing is read on the host.

        Args:
            traced: what to compute.
            inputs: a value for each name in ``traced.program.inputs``, and perhaps others: a
                number, or a tensor with one element. Those that go on must be tensors of float64 or
                float32 on the device.
            skip: a 1-element float32 tensor on the device: unless it holds 0 nothing goes on. Or
                None.
            backend: the choice of the group.

        Returns:
            The numbers, one vector of float64 on the device; and what has moved on, the tensors and
            where they were. The next ``run`` overwrites both.
        """
        program = traced.program
        values = [_input(name, inputs[name], self.device) for name in program.inputs]
        size = len(program.numbers) + len(program.after)
        if size not in self._vectors:
            self._vectors[size] = torch.empty(size, dtype=torch.float64, device=self.device)
        out = self._vectors[size]
        args = program, values, traced.constants, out, skip
        backends.call("plan_", self.device.type, backend, *args)
        moved = [values[i] for i, _ in program.after]
        return out[: len(program.numbers)], (moved, out[len(program.numbers) :])


class Found:
    """The numbers of one pass, found on a device, and all that moves on with them.

    Args:
        plan: a ``DevicePlan``.
        args: of its ``run``.
    """

    def __init__(self, plan, *args):
        self._plan, self._args = plan, args
        self._moved: Any = (), ()

    def run(self):
        """The numbers; everything moves on."""
        numbers, self._moved = self._plan.run(*self._args)
        return numbers

    def undo(self):
        """Put back what has moved on, if anything: a pass failed."""
        for tensor, old in zip(*self._moved, strict=True):
            tensor.copy_(old)


def options(group):
    """The plain options of a group, to tell whether one has changed."""
    return [
        (key, tuple(value) if isinstance(value, list) else value)
        for key, value in group.items()
        if key not in _NO_OPTIONS and isinstance(value, _PLAIN)
    ]


def _input(name, value, device):
    """An input as a back end takes it."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    if type(value) is not torch.Tensor:
        value = shards.whole(name, value)
    if value.device != device:
        # one on the CPU is read without waiting
        value = value.item() if value.device.type == "cpu" else value.to(device)
    if isinstance(value, torch.Tensor) and value.dtype not in (torch.float32, torch.float64):
        value = value.double()
    return value
