"""What a step does, decided before it does anything: launches, and how the groups' clocks go on.

Usually the host knows every number. Where only the device knows whether steps were taken
(``capturable``, a GPU GradScaler, ``nonfinite="skip"`` on a GPU), clocks are kept there, and a
small launch before each pass finds its numbers and moves them on.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from .. import backends
from ..groups import check_method
from ..rules import BASES, LOOKAHEADS
from ..state.clock import clock_entries, factor, host_clock, place_clock, planned
from .on_device import DevicePlan, trace_clock
from .select import Part


class Launch:
    """Parameters that take the same step: one call of a back end.

    Attributes:
        part: the parameters.
        base: a row of ``rules.BASES``; None: another optimizer makes the update.
        lookahead: a row of ``rules.LOOKAHEADS``.
        directions: what ``Base.directions`` has made, or None.
        skip: a flag on the device, nothing happens unless it holds 0; or None.
    """

    part: Part
    base: Any
    lookahead: str
    directions: Callable | None = None
    skip: torch.Tensor | None = None

    def numbers(self) -> contextlib.AbstractContextManager[Any]:
        """The numbers of the pass, as a back end takes them, for a ``with`` block that runs it."""
        raise NotImplementedError

    def done(self):
        """Record that the pass happened."""

    def inputs(self, gradients, stack):
        """What the pass takes as gradients, further factors of them, and its numbers.

        Args:
            gradients: parameters -> their gradients.
            stack: an ``ExitStack`` in which the pass runs.
        """
        bucket, indices = self.part.bucket, self.part.indices
        numbers = stack.enter_context(self.numbers())
        gs = bucket.gradients_of(indices, gradients(bucket.params_of(indices)))
        if self.directions is None:
            return gs, (), numbers
        return self.directions(gs, numbers, self.skip)

    def step(self, gs, scales, numbers):
        """Run the pass: base update and lookahead."""
        bucket, indices = self.part.bucket, self.part.indices
        backends.call(
            "step_",
            bucket.device.type,
            self.part.group.get("backend"),
            self.base,
            self.lookahead,
            bucket.tensors_of(indices),
            gs,
            bucket.columns(BASES[self.base].state + LOOKAHEADS[self.lookahead].state, indices),
            numbers,
            bucket.dtype,
            self.skip,
            scales,
            bucket.memo(indices),
        )

    def follow(self, numbers):
        """Run the pass after the update of another optimizer."""
        bucket, indices = self.part.bucket, self.part.indices
        backends.call(
            "follow_",
            bucket.device.type,
            self.part.group.get("backend"),
            self.lookahead,
            bucket.tensors_of(indices),
            bucket.snapshots_of(indices),
            bucket.columns(LOOKAHEADS[self.lookahead].state, indices),
            numbers,
            bucket.dtype,
            self.skip,
            bucket.memo(indices),
        )


class HostLaunch(Launch):
    """A launch whose numbers the host knows.

    Args:
        part: parameters whose ``step`` and ``ahead`` are the same.
        step, ahead: these.
        clock: their group's.
        grad_scale: a GradScaler's, or None.
    """

    def __init__(self, part, step, ahead, clock, grad_scale):
        self.part = part
        self._plan, self.base, numbers = planned(
            part.group, part.method, part.base, clock, step, ahead
        )
        self.lookahead, self._numbers = self._plan.rule, self._plan.numbers
        if self.base is not None:
            self._numbers = factor(part.group, grad_scale), *numbers, *self._numbers
        # a base of the method's own takes gradients as they are
        if part.base.directions is not None and self._plan.base is None:
            self.directions = part.base.directions(part)

    def numbers(self):
        """Known since the launch was planned."""
        return contextlib.nullcontext(self._numbers)

    def done(self):
        """Move the scalars of the parameters on."""
        counts = self._plan.base is None
        self.part.bucket.scalars.advance(self.part.indices, counts, self._plan.ahead)


class DeviceLaunch(Launch):
    """A launch whose numbers the device finds.

    Args:
        part: all parameters of a bucket.
        skip: a flag on the device, or None.
        grad_scale: a GradScaler's, or None.
        last: whether this is the last launch of the group, which moves its clock on.
    """

    def __init__(self, part, skip, grad_scale, last):
        group, method, base, bucket, _ = part
        self.part, self.skip = part, skip
        # it stays with the bucket: a captured graph goes on writing to its memory
        self._plan = bucket.device_plan = bucket.device_plan or DevicePlan(bucket.device)
        scaled = grad_scale is not None
        self._traced = self._plan.trace(group, method, base, scaled=scaled, clock=last)
        self._inputs = {**clock_entries(group, method), "grad_scale": grad_scale}
        self.base, self.lookahead = self._traced.base, self._traced.lookahead
        if base.directions is not None:
            self.directions = base.directions(part)

    @contextlib.contextmanager
    def numbers(self):
        """One launch finds them and moves everything on, back again if the pass fails."""
        held = self.part.bucket.scalars
        scalars = {"step": held.steps[:1], "lookahead": held.lookaheads[:1]}
        inputs, backend = {**self._inputs, **scalars}, self.part.group.get("backend")
        found = self._plan.run(self._traced, inputs, self.skip, backend)
        try:
            yield found
        except BaseException:
            self._plan.undo()
            raise


class HostClock:
    """A group's clock, moved on by the host."""

    def __init__(self, setup):
        self._group = setup.group
        place_clock(setup.group, setup.method, None)
        self.now = host_clock(setup.group, setup.method)

    def done(self):
        """Record that the step happened."""
        self._group.update(self.now.after())


class DeviceClock:
    """A group's clock on a device, where the group's last launch moves it on.

    Args:
        setup: the group's.
        device: where it is.
        skip: a flag on the device, or None.
        idle: whether there is no launch.
    """

    def __init__(self, setup, device, skip, idle):
        self._setup, self._device, self._skip, self._idle = setup, device, skip, idle
        place_clock(setup.group, setup.method, device)

    def done(self):
        """Move on the clock of a group none of whose parameters has a gradient."""
        if self._idle:
            group, method = self._setup.group, self._setup.method
            inputs = clock_entries(group, method)
            plan = DevicePlan(self._device)
            plan.run(trace_clock(method), inputs, self._skip, group.get("backend"))


def plan(optimizer, setups, parts, skip):
    """Decide everything about a step.

    Args:
        optimizer: whose step.
        setups: of its groups.
        parts: what is stepped.
        skip: a flag on the device, or None.

    Returns:
        Its launches, and the clocks of the groups: each is told when it is ``done``.
    """
    grad_scale = getattr(optimizer, "grad_scale", None)
    launches, clocks, of_group = [], [], {}
    for part in parts:
        # one that cannot be had is an error now, while nothing has changed
        backends.pick(part.bucket.device.type, part.group.get("backend"))
        of_group.setdefault(id(part.group), []).append(part)
    for setup in setups:
        its = of_group.get(id(setup.group), [])
        on_device = skip is not None or setup.group.get("capturable", False)
        where = _on_device if on_device else _on_host
        planned, clock = where(setup, its, skip, grad_scale)
        launches += planned
        clocks += clock
    return launches, clocks


def _on_host(setup, parts, skip, grad_scale):
    clock, launches = HostClock(setup), []
    for part in parts:
        part.bucket.place_scalars(on_device=False)
        for (step, ahead), same in part.bucket.scalars.groups(part.indices).items():
            its = part._replace(indices=same)
            launches.append(HostLaunch(its, step, ahead, clock.now, grad_scale))
    return launches, [clock]


def _on_device(setup, parts, skip, grad_scale):
    parts = [part for part in parts if part.indices]
    for part in parts:
        part.bucket.check_together(part.indices)
    if not setup.group["params"]:
        return [], []
    clock = DeviceClock(setup, _only_device(setup.group, parts), skip, idle=not parts)
    launches = []
    for part in parts:
        part.bucket.place_scalars(on_device=True)
        launches.append(DeviceLaunch(part, skip, grad_scale, last=part is parts[-1]))
    return launches, [clock]


def _only_device(group, parts):
    """Where the group's clock is: with the parameters that are stepped."""
    devices = {part.bucket.device for part in parts} or {group["params"][0].device}
    if len(devices) > 1:
        raise RuntimeError(
            f"capturable=True: parameters of one group are on {sorted(map(str, devices))}; give "
            "those of each device a group of their own"
        )
    return devices.pop()


def possible_on_device(optimizer, parts):
    """Whether the device can plan a step: one device, all together, no method that looks at t."""
    parts = [part for part in parts if part.indices]
    return (
        len({part.bucket.device for part in parts}) == 1
        and all(part.bucket.together(part.indices) for part in parts)
        and _methods_can(optimizer)
    )


def scales_on_device(optimizer):
    """Whether a GradScaler's flag can stay on the device, as far as options and devices tell."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"]}
    return len(devices) == 1 and devices.pop().type != "cpu" and _methods_can(optimizer)


def _methods_can(optimizer):
    methods = map(check_method, optimizer.param_groups)
    return all(method is None or method.capturable for method in methods)
