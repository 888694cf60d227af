# SPDX-License-Identifier: MIT
"""What a step does, decided before it does anything: launches, and how the groups' clocks go on.

Usually the host knows every number. Where only the device knows whether steps were taken
(``capturable``, a GPU GradScaler, ``nonfinite="skip"`` on a GPU), clocks are kept there, and a
small launch before each pass finds its numbers and moves them on.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import backends
from ..groups import check_method
from ..state.clock import clock_entries, host_clock, place_clock, planned
from ..state.joint import Joint
from .on_device import DevicePlan, Found, trace_clock


class Kind(NamedTuple):
    """What parameters have in common that take the same step, whatever their numbers."""

    base: Any  # a row of ``rules.BASES``; None: another optimizer makes the update
    lookahead: str  # a row of ``rules.LOOKAHEADS``
    on_device: bool  # whether a device finds the numbers
    format: str  # ``Bucket.format``
    backend: str | None  # the group's choice
    directions: Callable | None  # ``Base.directions``, where the base finds them first
    alike: Any  # and ``Base.alike``


class Launch(NamedTuple):
    """Parameters of one kind: one call of a back end.

    Attributes:
        joint: the parameters.
        kind: what they have in common.
        numbers: of each part, as a back end takes them, or the ``Found`` of a device.
        directions: what ``Base.directions`` has made, or None.
        skip: a flag on the device, nothing happens unless it holds 0; or None.
    """

    joint: Joint
    kind: Kind
    numbers: Sequence[Any]
    directions: Callable | None = None
    skip: torch.Tensor | None = None

    def found(self):
        """The numbers of the pass; those of a device move everything on."""
        numbers = self.numbers
        if self.kind.on_device:
            numbers = [each.run() for each in numbers]
        return self.joint.per_part(numbers)

    def inputs(self, gradients):
        """What the pass takes as gradients, further factors of them, and its numbers.

        Args:
            gradients: parameters -> their gradients.
        """
        numbers = self.found()
        gs = self.joint.gradients(gradients)
        if self.directions is None:
            return gs, (), numbers
        return self.directions(gs, numbers, self.skip)

    def step(self, gs, scales, numbers):
        """Run the pass: base update and lookahead."""
        rules = self.kind[:2]
        self.joint.apply_("step", rules, numbers, gs, skip=self.skip, scales=scales)

    def follow(self, numbers):
        """Run the pass after the update of another optimizer."""
        rules, snapshots = self.kind[1:2], self.joint.snapshots
        self.joint.apply_("follow", rules, numbers, snapshots, skip=self.skip)


def plan(optimizer, setups, parts, skip, selection):
    """Decide everything about a step.

    Args:
        optimizer: whose step.
        setups: of its groups.
        parts: what is stepped.
        skip: a flag on the device, or None.
        selection: the optimizer's, which found them.

    Returns:
        Its launches; for clocks on a device a ``Found`` each, to be run between the numbers of all
        launches and their passes; and a function to be called once all has happened, which moves on
        what the host keeps: the scalars of parameters, and clocks.
    """
    grad_scale = getattr(optimizer, "grad_scale", None)
    together, moves, clocks, launches = {}, [], [], []
    if not selection.steady:
        for part in parts:
            # one that cannot be had is an error now, while nothing has changed
            backends.pick(part.bucket.device.type, part.group.get("backend"))
    for setup, its in zip(setups, selection.by_group, strict=True):
        if skip is not None or setup.group.get("capturable", False):
            clocks += _on_device(setup, its, skip, grad_scale, together)
        else:
            moves.append(_on_host(setup, its, grad_scale, together))
    for kind, pieces in together.items():
        some, numbers = zip(*pieces, strict=True)
        joint, directions = selection.joint(kind, some)
        flag = skip if kind.on_device else None
        launches.append(Launch(joint, kind, numbers, directions, flag))
    return launches, clocks, functools.partial(_move_on, moves)


def _add(together, part, numbers, rules, on_device=False, directed=True):
    """Add parameters, and the numbers of their pass, to those of their kind."""
    directions = part.base.directions if directed else None
    alike = part.base.alike(part) if directions else None
    base, lookahead = rules
    format_, backend = part.bucket.format, part.group.get("backend")
    kind = Kind(base, lookahead, on_device, format_, backend, directions, alike)
    together.setdefault(kind, []).append((part, numbers))


def _on_host(setup, parts, grad_scale, together):
    group, method, base = setup[:3]
    clock, moves = host_clock(group, method), []
    for part in parts:
        if part.bucket.scalars.on_device:
            part.bucket.place_scalars(on_device=False)
        scalars = part.bucket.scalars
        for (step, ahead), same in scalars.groups(part.indices).items():
            its = part if same is part.indices else part._replace(indices=same)
            plan, rule, numbers = planned(group, method, base, clock, step, ahead, grad_scale)
            # a base of the method's own takes gradients as they are
            counts = plan.base is None
            _add(together, its, numbers, (rule, plan.rule), directed=counts)
            moves.append((scalars, same, step + counts, plan.ahead))
    return group, method, clock, moves


def _move_on(groups):
    for group, method, clock, moves in groups:
        for scalars, *moved in moves:
            scalars.advance(*moved)
        group.update(clock.after(method))


def _on_device(setup, parts, skip, grad_scale, together):
    group, method, base = setup[:3]
    parts = [part for part in parts if part.indices]
    for part in parts:
        part.bucket.check_together(part.indices)
    if not group["params"]:
        return []
    device, backend = _only_device(group, parts), group.get("backend")
    place_clock(group, method, device)
    clock = clock_entries(group, method)
    for part in parts:
        bucket = part.bucket
        bucket.place_scalars(on_device=True)
        # it stays with the bucket: a captured graph goes on writing to its memory
        plan = bucket.device_plan = bucket.device_plan or DevicePlan(device)
        # that of a group's only launch moves its clock on, too
        scaled, alone = grad_scale is not None, len(parts) == 1
        traced = plan.trace(group, method, base, scaled=scaled, clock=alone)
        scalars = {"step": bucket.scalars.steps[:1], "lookahead": bucket.scalars.lookaheads[:1]}
        inputs = {**clock, **scalars, "grad_scale": grad_scale}
        numbers = Found(plan, traced, inputs, skip, backend)
        _add(together, part, numbers, (traced.base, traced.lookahead), on_device=True)
    if len(parts) == 1:
        return []
    # launches of other kinds may come in any order: the clock waits for all of them
    return [Found(DevicePlan(device), trace_clock(method), clock, skip, backend)]


def undo(launches, clocks):
    """Put back what devices have moved on: the step failed."""
    found = [each for launch in launches if launch.kind.on_device for each in launch.numbers]
    for each in (*found, *clocks):
        each.undo()


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
