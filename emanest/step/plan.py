"""What a step does, decided before it does anything: launches, and how the groups' clocks go on.

Usually the host knows every number. Where only the device knows whether steps were taken
(``capturable``, a GPU GradScaler, ``nonfinite="skip"`` on a GPU), clocks are kept there, and a
small launch before each pass finds its numbers and moves them on.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import backends
from ..groups import check_method
from ..state.clock import clock_entries, host_clock, place_clock, planned
from .on_device import DevicePlan, trace_clock
from .select import Part


class Launch(NamedTuple):
    """Parameters that take the same step: one call of a back end.

    Attributes:
        part: the parameters.
        base: a row of ``rules.BASES``; None: another optimizer makes the update.
        lookahead: a row of ``rules.LOOKAHEADS``.
        numbers: those of the pass, as a back end takes them, for the ``with`` block that runs it.
        directions: what ``Base.directions`` has made, or None.
        skip: a flag on the device, nothing happens unless it holds 0; or None.
    """

    part: Part
    base: Any
    lookahead: str
    numbers: contextlib.AbstractContextManager[Any]
    directions: Callable | None = None
    skip: torch.Tensor | None = None

    def inputs(self, gradients, stack):
        """What the pass takes as gradients, further factors of them, and its numbers.

        Args:
            gradients: parameters -> their gradients.
            stack: an ``ExitStack`` in which the pass runs.
        """
        bucket, indices = self.part.bucket, self.part.indices
        numbers = stack.enter_context(self.numbers)
        gs = bucket.gradients_of(indices, gradients(bucket.params_of(indices)))
        if self.directions is None:
            return gs, (), numbers
        return self.directions(gs, numbers, self.skip)

    def step(self, gs, scales, numbers):
        """Run the pass: base update and lookahead."""
        self.part.apply_("step", (self.base, self.lookahead), numbers, gs, self.skip, scales)

    def follow(self, numbers):
        """Run the pass after the update of another optimizer."""
        snapshots = self.part.bucket.snapshots_of(self.part.indices)
        self.part.apply_("follow", (self.lookahead,), numbers, snapshots, self.skip)


def plan(optimizer, setups, parts, skip):
    """Decide everything about a step.

    Args:
        optimizer: whose step.
        setups: of its groups.
        parts: what is stepped.
        skip: a flag on the device, or None.

    Returns:
        Its launches, and functions to be called once they have happened: they move the scalars of
        the parameters on, and the clocks of the groups.
    """
    grad_scale = getattr(optimizer, "grad_scale", None)
    launches, after, of_group = [], [], {}
    for part in parts:
        # one that cannot be had is an error now, while nothing has changed
        backends.pick(part.bucket.device.type, part.group.get("backend"))
        of_group.setdefault(id(part.group), []).append(part)
    for setup in setups:
        its = of_group.get(id(setup.group), [])
        on_device = skip is not None or setup.group.get("capturable", False)
        where = _on_device if on_device else _on_host
        planned, done = where(setup, its, skip, grad_scale)
        launches += planned
        after += done
    return launches, after


def _on_host(setup, parts, skip, grad_scale):
    group, method, base, _ = setup
    place_clock(group, method, None)
    clock, launches, after = host_clock(group, method), [], []
    for part in parts:
        part.bucket.place_scalars(on_device=False)
        scalars = part.bucket.scalars
        for (step, ahead), same in scalars.groups(part.indices).items():
            its = part._replace(indices=same)
            plan, rule, numbers = planned(group, method, base, clock, step, ahead, grad_scale)
            # a base of the method's own takes gradients as they are
            counts = plan.base is None
            directions = base.directions(its) if counts and base.directions else None
            known = contextlib.nullcontext(numbers)
            launches.append(Launch(its, rule, plan.rule, known, directions))
            after.append(functools.partial(scalars.advance, same, counts, plan.ahead))
    return launches, [*after, functools.partial(group.update, clock.after())]


def _on_device(setup, parts, skip, grad_scale):
    group, method, base, _ = setup
    parts = [part for part in parts if part.indices]
    for part in parts:
        part.bucket.check_together(part.indices)
    if not group["params"]:
        return [], []
    device, backend = _only_device(group, parts), group.get("backend")
    place_clock(group, method, device)
    clock, launches = clock_entries(group, method), []
    for part in parts:
        bucket = part.bucket
        bucket.place_scalars(on_device=True)
        # it stays with the bucket: a captured graph goes on writing to its memory
        plan = bucket.device_plan = bucket.device_plan or DevicePlan(device)
        # the group's last launch moves its clock on
        scaled, last = grad_scale is not None, part is parts[-1]
        traced = plan.trace(group, method, base, scaled=scaled, clock=last)
        scalars = {"step": bucket.scalars.steps[:1], "lookahead": bucket.scalars.lookaheads[:1]}
        inputs = {**clock, **scalars, "grad_scale": grad_scale}
        numbers = _found(plan, traced, inputs, skip, backend)
        directions = base.directions(part) if base.directions else None
        launches.append(Launch(part, traced.base, traced.lookahead, numbers, directions, skip))
    if launches:
        return launches, []
    alone = functools.partial(DevicePlan(device).run, trace_clock(method), clock, skip, backend)
    return [], [alone]


@contextlib.contextmanager
def _found(plan, *args):
    """The numbers that a device finds; it moves everything on, and back if the pass fails."""
    numbers = plan.run(*args)
    try:
        yield numbers
    except BaseException:
        plan.undo()
        raise


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
    bases = ((group, optimizer._base(group)) for group in optimizer.param_groups)
    return all(base.capturable and check_method(group, base).capturable for group, base in bases)
