"""What a step does, decided before it does anything: launches, and how the groups' clocks go on.

Usually the host knows every number. Where only the device knows whether steps were taken
(``capturable``, a GPU GradScaler, ``nonfinite="skip"`` on a GPU), time and memory are kept there,
and a small launch before each pass finds its numbers and moves them on.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from . import backends, shards
from .bucket import Bucket
from .device import DevicePlan, record_clock
from .groups import check_method, clock_entries, host_clock, place_clock
from .lookahead import At, Plan, method_of


class Launch:
    """Parameters of a bucket that take the same step: one call of a back end.

    Attributes:
        base: a row of ``rules.BASES``; None: another optimizer makes the update.
        look: a row of ``rules.LOOKAHEADS``.
        search: what ``bases.Base.search`` has made, or None.
        skip: a flag on the device, nothing happens unless it holds 0; or None.
    """

    bucket: Bucket
    indices: list[int]
    group: dict[str, Any]
    base: str | None
    look: str
    search: Callable | None
    skip: torch.Tensor | None = None

    def numbers(self) -> contextlib.AbstractContextManager[Any]:
        """The numbers of the pass, as a back end takes them, for a ``with`` block that runs it."""
        raise NotImplementedError

    def done(self):
        """Record that the pass happened."""


class HostLaunch(Launch):
    """A launch whose numbers the host knows."""

    def __init__(self, optimizer, group, method, clock, bucket, indices, scalars):
        self.bucket, self.indices, self.group = bucket, indices, group
        step, ahead = scalars
        at = At(clock.t, step, ahead, clock.lr, optimizer._weight_decay(group))
        plan = method.plan(at, clock.memory) if method else Plan()
        base = plan.base or optimizer._base_numbers(group, plan, clock.lr, step)
        self.base, numbers = base or (None, None)
        self.look = plan.rule
        # a base of the method's own takes gradients as they are
        self.search = None if plan.base else optimizer._search(group, bucket, indices)
        self._counts, self._lookahead = plan.base is None, plan.lookahead
        self._numbers = plan.numbers
        if numbers is not None:
            self._numbers = _gradient_scale(optimizer, group), *numbers, *plan.numbers

    def numbers(self):
        """Known since the launch was planned."""
        return contextlib.nullcontext(self._numbers)

    def done(self):
        """Move the scalars of the parameters on."""
        self.bucket.scalars.advance(self.indices, self._counts, self._lookahead)


class DeviceLaunch(Launch):
    """A launch whose numbers the device finds."""

    def __init__(self, optimizer, group, method, bucket, indices, skip, last):
        self.bucket, self.indices, self.group, self.skip = bucket, indices, group, skip
        grad_scale = getattr(optimizer, "grad_scale", None)
        # it stays with the bucket: a captured graph goes on writing to its memory
        self._plan = bucket.device_plan = bucket.device_plan or DevicePlan(bucket.device)
        self._recorded = self._plan.record(
            group,
            method,
            optimizer._base_numbers,
            scaled=grad_scale is not None,
            clock=last,
            scale=optimizer._sign(group),
            weight_decay=optimizer._weight_decay(group),
        )
        self._inputs = {**clock_entries(group, method), "grad_scale": grad_scale}
        self.base, self.look = self._recorded.base, self._recorded.look
        self.search = optimizer._search(group, bucket, indices)

    @contextlib.contextmanager
    def numbers(self):
        """One launch finds them and moves everything on, back again if the pass fails."""
        held = self.bucket.scalars
        scalars = {"step": held.steps[:1], "lookahead": held.lookaheads[:1]}
        inputs, backend = {**self._inputs, **scalars}, self.group.get("backend")
        found = self._plan.run(self._recorded, inputs, self.skip, backend)
        try:
            yield found
        except BaseException:
            self._plan.undo()
            raise


def plan(optimizer, chosen, skip):
    """Decide everything about a step.

    Args:
        optimizer: whose step.
        chosen: for each group its buckets, with the indices of the parameters to be stepped.
        skip: a flag on the device, or None.

    Returns:
        Its launches, and a function for each group that moves its clock on.
    """
    launches, clocks = [], []
    for group, buckets in zip(optimizer.param_groups, chosen, strict=True):
        for bucket in buckets:
            # one that cannot be had is an error now, while nothing has changed
            backends.pick(bucket.device.type, group.get("backend"))
        on_device = skip is not None or group.get("capturable", False)
        planned, clock = (_on_device if on_device else _on_host)(optimizer, group, buckets, skip)
        launches += planned
        clocks.append(clock)
    return launches, clocks


def _on_host(optimizer, group, buckets, skip):
    method = method_of(group)
    place_clock(group, method, None)
    clock = host_clock(group, method)
    launches = []
    for bucket, indices in buckets.items():
        bucket.place_scalars(on_device=False)
        for scalars, same in bucket.scalars.groups(indices).items():
            launches.append(HostLaunch(optimizer, group, method, clock, bucket, same, scalars))
    return launches, lambda: group.update(clock.after())


def _on_device(optimizer, group, buckets, skip):
    method = method_of(group)
    used = {bucket: indices for bucket, indices in buckets.items() if indices}
    for bucket, indices in used.items():
        bucket.check_together(indices)
    if not group["params"]:
        return [], lambda: None
    device = _only_device(group, used)
    place_clock(group, method, device)
    launches = []
    for left, (bucket, indices) in zip(reversed(range(len(used))), used.items(), strict=True):
        bucket.place_scalars(on_device=True)
        last = left == 0
        launches.append(DeviceLaunch(optimizer, group, method, bucket, indices, skip, last))
    return launches, lambda: None if used else _idle(group, method, skip, device)


def _only_device(group, used):
    """Where the group's clock is: with the parameters that are stepped."""
    devices = {bucket.device for bucket in used} or {group["params"][0].device}
    if len(devices) > 1:
        raise RuntimeError(
            f"capturable=True: parameters of one group are on {sorted(map(str, devices))}; give "
            "those of each device a group of their own"
        )
    return devices.pop()


def _idle(group, method, skip, device):
    """Move on the clock of a group none of whose parameters has a gradient."""
    inputs = clock_entries(group, method)
    idle = DevicePlan(device)
    idle.run(record_clock(method), inputs, skip, group.get("backend"))


def _gradient_scale(optimizer, group):
    grad_scale = getattr(optimizer, "grad_scale", None)
    sign = optimizer._sign(group)
    if isinstance(grad_scale, torch.Tensor):
        grad_scale = shards.whole("grad_scale", grad_scale)
    return sign if grad_scale is None else sign / float(grad_scale)


def possible_on_device(optimizer, chosen):
    """Whether the device can plan a step: one device, all together, no method that looks at t."""
    buckets = [each for buckets in chosen for each in buckets.items() if each[1]]
    return (
        len({bucket.device for bucket, _ in buckets}) == 1
        and all(bucket.together(indices) for bucket, indices in buckets)
        and _methods_can(optimizer)
    )


def scales_on_device(optimizer):
    """Whether a GradScaler's flag can stay on the device, as far as options and devices tell."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"]}
    return len(devices) == 1 and devices.pop().type != "cpu" and _methods_can(optimizer)


def _methods_can(optimizer):
    methods = map(check_method, optimizer.param_groups)
    return all(method is None or method.capturable for method in methods)
