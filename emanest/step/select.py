# SPDX-License-Identifier: MIT
"""Which parameters a step, an evaluation or a load is about: parts of groups, in their buckets."""

from typing import Any

import torch

from ..backends import capture, shards, storage
from ..backends.guards import Guard
from ..groups import Setup, parameter_name, setups, state_names
from ..methods.given import method_of
from ..state.bucket import Bucket
from ..state.buckets import Buckets, all_fake, check_overlap
from ..state.joint import Joint, Part


class Selection:
    """The parts of an optimizer that have gradients, and its buckets.

    A step that finds everything as the last one left it does not look at the parameters one by one.

    Attributes:
        buckets: where their state is.
        steady: whether a step found everything as the last one left it.
        fake: whether what was found has no values.
        by_group: the parts that were found, for each group.

    Args:
        state: the optimizer's ``state``.
        key: state name -> its key in ``state[p]``.
        owned: whether all that is written to parameters counts as ours.
    """

    def __init__(self, state, key, owned=False):
        self.buckets = Buckets(state, key, owned)
        self.steady = self.fake = False
        self._capturable = frozenset()  # the types of devices it is on whose work can be captured
        # the place of a group, a bucket of its, and the indices of what is stepped there
        self._found: Any = None
        # what the last step was taken on, and needed: state of each group, buckets of ``DTensor``
        self._guard: Any = None
        self._needed: list[tuple[str, ...]] = []
        self._sharded: list[Bucket] = []
        self._joints: dict[Any, tuple[Joint, Any]] = {}
        self._setups: list[Setup] = []
        # the parts as one list, and the setups that they were made for
        self.by_group: list[list[Part]] = []
        self._parts: tuple[list[Part], Any] = [], None

    def setups(self, optimizer):
        """How each group is stepped; see ``groups.setups``."""
        self._setups = setups(optimizer, self._setups)
        return self._setups

    def with_gradients(self, optimizer, setups):
        """The parts that a step is taken on.

        None if there is no gradient at all. New buckets are all there, not yet published.

        Args:
            optimizer: whose step.
            setups: of each of its groups.

        Raises:
            RuntimeError: a CUDA graph is being captured, and the last step found something else, or
                the step's numbers would be those of the capture.
            TypeError: it would make fake tensors beside parameters that are not.
        """
        self.steady = self._holds(optimizer, setups)
        if not self.steady:
            params = [p for group in optimizer.param_groups for p in group["params"]]
            for device_type in {p.device.type for p in params}:
                name = type(optimizer).__name__
                what = f"{name} has taken no step so far, or with other parameters or state"
                capture.need_warm_up(device_type, what)
            # before the next look: what was found may hold parameters that have left
            self._guard = self._found = None
            self._parts, self.by_group = ([], None), []
            self._joints.clear()
            _check_mode(optimizer, [p for p in params if p.grad is not None])
            self._found = self._look(optimizer, setups)
        if self._found is None:
            return None
        for device_type in self._capturable:
            capture.check(optimizer, device_type)
        if setups is not self._parts[1]:
            # what is joined is read from groups, too
            self._joints.clear()
            self.by_group = [[] for _ in setups]
            for k, bucket, indices in self._found:
                group, method, base = setups[k][:3]
                self.by_group[k].append(Part(group, method, base, bucket, indices))
            self._parts = [part for its in self.by_group for part in its], setups
        return self._parts[0]

    def with_state(self, optimizer, wanted=None):
        """The parts that hold state.

        Args:
            optimizer: whose.
            wanted: (group, method) -> whether a group is asked for; None is all.
        """
        # every parameter with state has it, without a lookahead too
        mark, state, parts = self.buckets.key("lookahead"), optimizer.state, []
        _check_mode(optimizer, state)
        for group in optimizer.param_groups:
            method = method_of(group)
            if wanted is None or wanted(group, method):
                base = optimizer._base(group)
                params = [p for p in group["params"] if mark in state.get(p, ())]
                its = Setup(group, method, base, state_names(group, method, base))
                found = self._find(optimizer, its, params, params)
                its_parts = [Part(group, method, base, *each) for each in found]
                self.buckets.publish(its_parts)
                parts += its_parts
        return parts

    def joint(self, kind, parts):
        """Some of the parts as one, and their directions: the last step's, if it had these parts.

        Args:
            kind: what they have in common, a ``plan.Kind``.
            parts: of those found for this step.
        """
        joint, directions = self._joints.get(kind, (None, None))
        if joint is None or not joint.holds(parts):
            joint = Joint(parts)
            directions = kind.directions and kind.directions(joint)
            self._joints[kind] = joint, directions
        return joint, directions

    def remember(self, optimizer, setups):
        """Expect the next step to find what this one has found; called when its work is done."""
        buckets = [bucket for _, bucket, _ in self._found]
        rows = [row for bucket in buckets for row in bucket.entries()]
        self._guard = Guard(*_looked_at(optimizer, setups), rows)
        self._needed = [setup.state for setup in setups]
        self._sharded = [bucket for bucket in buckets if bucket.mesh is not None]

    def _find(self, optimizer, setup, params, candidates):
        """The buckets of some parameters of a group; see ``Buckets.find``."""
        if self.buckets.state is not optimizer.state:
            # the user replaced it, to start afresh
            self.buckets = Buckets(optimizer.state, self.buckets.key, self.buckets.owned)
        return self.buckets.find(params, candidates, setup.state, setup.group)

    def _holds(self, optimizer, setups):
        """Whether everything is as the last step left it."""
        return (
            self._guard is not None
            and [setup.state for setup in setups] == self._needed
            and self._guard.unchanged(*_looked_at(optimizer, setups))
            and not any(map(Bucket.moved, self._sharded))
        )

    def _look(self, optimizer, setups):
        found = _with_gradients(optimizer, setups)
        everything = [p for setup in setups for p in setup.group["params"]]
        self.buckets.keep(set(everything))
        if not any(found):
            return None
        chosen = []
        for k, (setup, params) in enumerate(zip(setups, found, strict=True)):
            displaced = self.buckets.displaced(setup.group["params"])
            candidates = [*setup.base.allocated(setup.group), *displaced]
            chosen += [(k, *each) for each in self._find(optimizer, setup, params, candidates)]
        new = [bucket for _, bucket, _ in chosen]
        if not all(bucket.published for bucket in new):
            check_overlap(shards.locals_of(everything))
        self.fake = all_fake(new)
        types = {bucket.device.type for bucket in new}
        self._capturable = frozenset() if self.fake else types & capture.DEVICE_TYPES
        return chosen


def _check_mode(optimizer, params):
    """Raise TypeError if what is made now would have no values, and parameters have."""
    if storage.made_fake() and not all(storage.is_fake(shards.local(p)) for p in params):
        raise TypeError(
            f"{type(optimizer).__name__} inside a FakeTensorMode, where what it makes has no "
            "values: its parameters are not fake; use it outside of the mode"
        )


def _looked_at(optimizer, setups):
    """The lists of parameters, and the dicts that hold state."""
    lists = [setup.group["params"] for setup in setups]
    return lists, [each.state for each in optimizer._holders()]


def _with_gradients(optimizer, setups):
    """For each group, the parameters that have a gradient.

    Args:
        optimizer: whose step.
        setups: of each of its groups.

    Raises:
        RuntimeError: a gradient is sparse, or a parameter is an inference tensor.
        TypeError: the values of one or the other are not in its storage.
    """
    for index, setup in enumerate(setups):
        group = setup.group
        for j, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            name = parameter_name(group, index, j)
            if setup.base.dense_only and p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(optimizer).__name__} does not support sparse gradients: {name} has "
                    f"one of layout {p.grad.layout}; use a dense layer (sparse=False)"
                )
            if p.is_inference():
                raise RuntimeError(
                    f"{name} was made in inference mode and cannot be updated: clone() it outside"
                )
            _check_storage(name, p)
    return [[p for p in setup.group["params"] if p.grad is not None] for setup in setups]


def _check_storage(name, p):
    """Refuse a parameter, or its gradient, that kernels could not find by its address."""
    # beside a fake one state is made, and nothing is computed; one on the meta device comes later
    if storage.is_fake(shards.local(p)) or p.is_meta:
        return
    shards.check_storage(name, p)
    if p.grad.layout == torch.strided:
        gradient = storage.waited(p.grad)
        # a DTensor is a gradient of a DTensor only
        check = storage.check if shards.mesh_of(p) is None else shards.check_storage
        check(f"the gradient of {name}", gradient)
