"""Which parameters a step, an evaluation or a load is about: parts of groups, in their buckets."""

from typing import Any, NamedTuple

from . import capture, shards
from .bases import Base
from .bucket import Bucket
from .buckets import Buckets, all_fake, check_overlap
from .gradients import with_gradients
from .groups import Setup, state_names
from .lookahead import Method, method_of
from .watch import Watch


class Part(NamedTuple):
    """The parameters of a group that lie in one bucket, all of them or some."""

    group: dict[str, Any]
    method: Method | None
    base: Base
    bucket: Bucket
    indices: list[int]  # of the parameters, in the bucket


class Selection:
    """The parts of an optimizer that have gradients, and its buckets.

    A step that finds everything as the last one left it does not look at the parameters one by one.

    Args:
        state: the optimizer's ``state``.
        key: state name -> its key in ``state[p]``.
    """

    def __init__(self, state, key):
        self.buckets = Buckets(state, key)
        self.fake = False  # whether what was found has no values
        self._found: Any = None
        self._watch = self._known = None

    def with_gradients(self, optimizer, setups):
        """The parts that a step is taken on.

        None if there is no gradient at all. New buckets are all there, not yet published.

        Args:
            optimizer: whose step.
            setups: of each of its groups.

        Raises:
            RuntimeError: a CUDA graph is being captured, and the last step found something else.
        """
        if not self._holds(optimizer, setups):
            params = (p for group in optimizer.param_groups for p in group["params"])
            for device_type in {p.device.type for p in params}:
                name = type(optimizer).__name__
                what = f"{name} has taken no step so far, or with other parameters or state"
                capture.need_warm_up(device_type, what)
            # before the next look: what was found may hold parameters that have left
            self._watch = self._found = None
            self._found = self._look(optimizer, setups)
        if self._found is None:
            return None
        return [
            Part(setup.group, setup.method, setup.base, bucket, indices)
            for setup, buckets in zip(setups, self._found, strict=True)
            for bucket, indices in buckets
        ]

    def with_state(self, optimizer, wanted=None):
        """The parts that hold state.

        Args:
            optimizer: whose.
            wanted: (group, method) -> whether a group is asked for; None is all.
        """
        mark, state, parts = self.buckets.key("lookahead"), optimizer.state, []
        for group in optimizer.param_groups:
            method = method_of(group)
            if wanted is None or wanted(group, method):
                base = optimizer._base(group)
                params = [p for p in group["params"] if mark in state.get(p, ())]
                its = Setup(group, method, base, state_names(group, method, base))
                for bucket, indices in self._find(optimizer, its, params, params):
                    self.buckets.publish([bucket])
                    parts.append(Part(group, method, base, bucket, indices))
        return parts

    def remember(self, optimizer, setups):
        """Expect the next step to find what this one has found; called when its work is done."""
        if self._watch is None:
            rows = [r for buckets in self._found for bucket, _ in buckets for r in bucket.entries()]
            self._watch = Watch(_lists(optimizer), _mappings(optimizer), rows)
            self._known = _shape_of(setups)

    def _find(self, optimizer, setup, params, newcomers):
        """The buckets of some parameters of a group; see ``Buckets.find``."""
        if self.buckets.state is not optimizer.state:
            # the user replaced it, to start afresh
            owned = self.buckets.owned
            self.buckets = Buckets(optimizer.state, self.buckets.key)
            self.buckets.own(owned)
        return self.buckets.find(params, newcomers, setup.state, setup.group)

    def _holds(self, optimizer, setups):
        if self._watch is None or self._known != _shape_of(setups):
            return False
        if not self._watch.unchanged(_lists(optimizer), _mappings(optimizer)):
            return False
        for buckets in self._found:
            for bucket, _ in buckets:
                if bucket.moved():
                    return False
        return True

    def _look(self, optimizer, setups):
        found = with_gradients(optimizer, setups)
        everything = [p for setup in setups for p in setup.group["params"]]
        self.buckets.keep(set(everything))
        if not any(found):
            return None
        chosen = []
        for setup, params in zip(setups, found, strict=True):
            newcomers = setup.base.allocated(setup.group)
            newcomers += self.buckets.left(setup.group["params"])
            chosen.append(self._find(optimizer, setup, params, newcomers))
        new = [bucket for buckets in chosen for bucket, _ in buckets]
        if not all(bucket.published for bucket in new):
            check_overlap(shards.locals_of(everything))
        self.fake = all_fake(new)
        return chosen


def _lists(optimizer):
    return [group["params"] for group in optimizer.param_groups]


def _mappings(optimizer):
    return [each.state for each in optimizer._holders()]


def _shape_of(setups):
    # with their number: a parameter that moves to the next group is still in its place among all
    return [(len(setup.group["params"]), setup.state) for setup in setups]
