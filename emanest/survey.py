"""What a step is taken on: the parameters that have gradients, in their buckets."""

from . import capture, shards
from .buckets import Buckets, check_overlap
from .gradients import with_gradients
from .groups import state_names
from .watch import Watch


class Survey:
    """The buckets of an optimizer, and what was found in them last.

    A step that finds everything as the last one left it does not look at the parameters one by one.

    Args:
        state: the optimizer's ``state``.
        key: state name -> its key in ``state[p]``.
    """

    def __init__(self, state, key):
        self.buckets = Buckets(state, key)
        self._found = self._watch = self._names = None

    def of(self, optimizer):
        """For each group its buckets, with the indices of the parameters that have gradients.

        None if there is no gradient at all. New buckets are all there, not yet published.

        Raises:
            RuntimeError: a CUDA graph is being captured, and the last step found something else.
        """
        if not self._holds(optimizer):
            params = (p for group in optimizer.param_groups for p in group["params"])
            for device_type in {p.device.type for p in params}:
                name = type(optimizer).__name__
                what = f"{name} has taken no step so far, or with other parameters or state"
                capture.need_warm_up(device_type, what)
            # before the next look: what was found may hold parameters that have left
            self._watch = self._found = None
            self._found = self._look(optimizer)
        return self._found

    def remember(self, optimizer):
        """Expect the next step to find what this one has found; called when its work is done."""
        if self._watch is None:
            assert self._found is not None
            rows = [r for buckets in self._found for bucket in buckets for r in bucket.entries()]
            self._watch = Watch(_lists(optimizer), optimizer._mappings(), rows)
            self._names = _names(optimizer)

    def find(self, optimizer, group, params, newcomers):
        """The buckets of some parameters of a group; see ``Buckets.find``."""
        if self.buckets.state is not optimizer.state:
            # the user replaced it, to start afresh
            owned = self.buckets.owned
            self.buckets = Buckets(optimizer.state, self.buckets.key)
            self.buckets.own(owned)
        names = state_names(optimizer.bases, group)
        return self.buckets.find(params, newcomers, names, group)

    def _holds(self, optimizer):
        return (
            self._watch is not None
            and self._names == _names(optimizer)
            and self._watch.unchanged(_lists(optimizer), optimizer._mappings())
            and not any(bucket.moved() for buckets in self._found or () for bucket in buckets)
        )

    def _look(self, optimizer):
        found, groups = with_gradients(optimizer), optimizer.param_groups
        everything = [p for group in groups for p in group["params"]]
        self.buckets.keep(set(everything))
        if not any(found):
            return None
        chosen = []
        for group, params in zip(groups, found, strict=True):
            newcomers = optimizer._newcomers(group) + self.buckets.left(group["params"])
            chosen.append(self.find(optimizer, group, params, newcomers))
        if not all(bucket.published for buckets in chosen for bucket in buckets):
            check_overlap(shards.locals_of(everything))
        return chosen


def _lists(optimizer):
    return [group["params"] for group in optimizer.param_groups]


def _names(optimizer):
    # with their number: a parameter that moves to the next group is still in its place among all
    return [(len(g["params"]), state_names(optimizer.bases, g)) for g in optimizer.param_groups]
