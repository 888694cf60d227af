# SPDX-License-Identifier: MIT
"""Which bucket each parameter lives in."""

import contextlib
import itertools

import torch
from torch.nn.parameter import is_lazy

from ..backends import shards, storage
from ..backends.layout import dense_strides
from .bucket import Bucket, forget_others
from .edits import warn_once


class Buckets:
    """The buckets of an optimizer.

    Args:
        state: the optimizer's ``state``, where published buckets show their tensors.
        key: state name -> its key in ``state[p]``.
        owned: whether all that is written to parameters counts as ours.
    """

    def __init__(self, state, key, owned=False):
        self.state, self.key, self.owned = state, key, owned
        self._homes = {}  # parameter -> (bucket, index)
        self._published = {}  # the buckets in it, as keys
        self._displaced = {}  # parameter -> its ``Edits``, of buckets that were taken apart

    def find(self, params, candidates, names, group):
        """The buckets of some parameters of one group.

        Args:
            params: the parameters asked for.
            candidates: those to put into buckets, ``params`` among them, if they are in none.
            names: state that each of them needs; what another lookahead method kept is forgotten.
            group: theirs.

        Returns:
            Pairs of a bucket and the indices of ``params`` in it. New buckets are all there, not
            yet published.

        Raises:
            RuntimeError: a parameter changed shape, is on the meta device, or is a partial sum.
            TypeError: its values are not in its storage.
        """
        self._leave_misfits(params)
        homes, chosen = self._homes, {}
        # an evaluation under inference mode may come before the next step, which writes state
        with torch.inference_mode(False), storage.like(shards.local(next(iter(candidates), None))):
            if any(p not in homes for p in candidates):
                new = self._new_homes(candidates, names, group)
                homes, chosen = {**homes, **new}, {bucket: [] for bucket, _ in new.values()}
            for p in params:
                bucket, i = homes[p]
                chosen.setdefault(bucket, []).append(i)
            for bucket, indices in chosen.items():
                # all of them are the bucket as it is, which may have another order than its group
                indices.sort()
                bucket.forget_others(names, group["params"])
                # before more is allocated, which shows everything anew
                if bucket.published:
                    bucket.adopt()
                bucket.allocate(names, group)
        return list(chosen.items())

    def keep(self, params):
        """Let go of all parameters but these; to be called when groups may have changed.

        What is left of them in ``optimizer.state``, as in torch, is theirs alone from then on.
        Those that shared a bucket with them are put into new buckets.

        Args:
            params: the set of all parameters of all groups.
        """
        leaving = {}
        for p in self._homes.keys() - params:
            bucket, i = self._homes[p]
            leaving.setdefault(bucket, []).append(i)
        with torch.inference_mode(False):
            for bucket, indices in leaving.items():
                bucket.part_with(indices)
                self._take_apart(bucket)
        for p in self._displaced.keys() - params:
            del self._displaced[p]

    def displaced(self, params):
        """Those parameters whose bucket was taken apart and that are in none yet."""
        return [p for p in params if p in self._displaced]

    @contextlib.contextmanager
    def ours(self, parts=()):
        """What is written to parameters in a ``with`` block is no edit.

        Parameters that are views of one tensor share a version counter, and writing to one of them
        seems to write to all: those that were unedited before the block are so after it.

        Args:
            parts: what is written on purpose, edited or not: unedited afterwards, but if the block
                raises edited.
        """
        buckets = dict(self._published)
        for part in parts:
            buckets[part.bucket] = None
        unedited = {each: each.edits.unedited(range(len(each.params))) for each in buckets}
        try:
            yield
        except BaseException:
            for part in parts:
                written = set(part.indices)
                unedited[part.bucket] = [i for i in unedited[part.bucket] if i not in written]
            raise
        finally:
            # whatever we have written since
            for bucket, indices in unedited.items():
                bucket.edits.record(indices)
        for part in parts:
            # not twice those of a bucket of which all are recorded
            if len(unedited[part.bucket]) < len(part.bucket.params):
                part.bucket.edits.record(part.indices)

    def record_all(self):
        """Take all parameters for unedited: they have come with their state."""
        for bucket in self._published:
            bucket.edits.record(range(len(bucket.params)))

    def own(self, everything):
        """Take whatever is written to unedited parameters for ours, or no longer."""
        self.owned = everything
        for edits in (*(bucket.edits for bucket in self._published), *self._displaced.values()):
            edits.own(everything)

    def publish(self, parts):
        """Show the state of new buckets in ``optimizer.state`` and keep them."""
        for part in parts:
            bucket = part.bucket
            if not bucket.published:
                bucket.publish()
                for i, p in enumerate(bucket.params):
                    self._homes[p] = bucket, i
                    self._displaced.pop(p, None)
                self._published[bucket] = None

    def _new_homes(self, params, names, group):
        candidates = [p for p in dict.fromkeys(params) if p not in self._homes]
        for p in candidates:
            name = f"a parameter of shape {tuple(p.shape)}"
            if not storage.is_fake(shards.local(p)):
                shards.check_storage(name, p)
            shards.check_placements(p, name)
        for p in candidates:
            if p in self.state:
                forget_others(self.state[p], self.key, names)
        together = {}
        for p in candidates:
            fake = storage.is_fake(shards.local(p))
            kind = p.device, p.dtype, shards.mesh_of(p), fake, self._progress(p, group)
            together.setdefault(kind, []).append(p)
        buckets = [Bucket(same, self.state, self.key) for same in together.values()]
        homes = {p: (bucket, i) for bucket in buckets for i, p in enumerate(bucket.params)}
        for bucket in buckets:
            bucket.edits.own(self.owned)
        for p, (bucket, i) in homes.items():
            if p in self._displaced and not bucket.emptied(i):
                bucket.edits.take_over(i, self._displaced[p])
        return homes

    def _progress(self, p, group):
        """What parameters of a bucket have in common: that they begin, or have begun.

        On a device one plan serves a bucket: there they have been stepped equally often, too.
        """
        entries = self.state.get(p, {})
        begun = self.key("lookahead") in entries
        counted = begun and group.get("capturable", False)
        return float(entries.get(self.key("step"), 0)) if counted else begun

    def _take_apart(self, bucket):
        for i, p in enumerate(bucket.params):
            del self._homes[p]
            self._displaced[p] = bucket.edits.alone(i)
        del self._published[bucket]

    def _leave_misfits(self, params):
        """Take apart the buckets of parameters that moved, or whose state the user removed.

        State that is still there will be copied into new buckets, the rest starts afresh.
        """
        for bucket in dict.fromkeys(self._homes[p][0] for p in params if p in self._homes):
            # of all parameters: those that are not asked for may have lost their state, too
            held = [i for i in range(len(bucket.params)) if not bucket.emptied(i)]
            moved = [bucket.params[i] for i in held if not bucket.fits(i)]
            if moved or len(held) < len(bucket.params):
                self._take_apart(bucket)
            if moved:
                warn_once(
                    self,
                    "moved",
                    f"parameters moved from {bucket.param_dtype} on {bucket.device} to "
                    f"{moved[0].dtype} on {moved[0].device}; their state follows them",
                )


def all_fake(buckets):
    """Whether the parameters of buckets are fake; raise NotInStorage if only some of them are."""
    fakes = {bucket.fake for bucket in buckets}
    if len(fakes) > 1:
        raise storage.NotInStorage(
            "some parameters are fake tensors and others are not: fake tensors cannot be stepped"
        )
    return True in fakes


def check_overlap(params):
    """Raise ValueError if two parameters share memory: the one would be stepped on the other."""
    # only a dense tensor is known to fill the span of addresses between its ends
    params = [p for p in params if not is_lazy(p) and storage.in_storage(p)]
    dense = [p for p in params if p.numel() and dense_strides(p) == p.stride()]
    spans = sorted(
        (str(p.device), p.data_ptr(), p.data_ptr() + p.numel() * p.itemsize, i)
        for i, p in enumerate(dense)
    )
    for (device, _, end, i), (other_device, start, _, j) in itertools.pairwise(spans):
        if device == other_device and start < end:
            shapes = tuple(dense[i].shape), tuple(dense[j].shape)
            raise ValueError(
                f"parameters of shapes {shapes[0]} and {shapes[1]} share memory: pass one of them, "
                "or clone() the other"
            )
