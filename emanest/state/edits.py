# SPDX-License-Identifier: MIT
"""Who wrote to parameters: we, or someone else since; and what follows from an edit."""

from typing import Any

import torch

from ..backends import capture, shards
from ..backends.guards import versions
from ..values import warn

# no version counter has this value
_EDITED = -1


class Edits:
    """Version counters of some parameters when we last read or wrote them, and snapshots.

    Args:
        params: the parameters.
        tensors: what lies here of each: the parameter itself, or the part of a ``DTensor``.
        unknown: whether, of each, it is not known what its values were.
        ours: whether all that is written to those that are not edited yet counts as ours.
    """

    def __init__(self, params, tensors, unknown, ours=False):
        self._params, self._tensors = params, tensors
        now = self._now(range(len(params)))
        self._versions: Any = [None if u else v for u, v in zip(unknown, now, strict=True)]
        # y before a step that another optimizer takes, and the counters they belong to
        self.snapshots: Any = [None] * len(params)
        self._snapshot_versions: Any = [None] * len(params)
        self._ours = ours

    def _now(self, indices):
        everything = len(indices) == len(self._params)
        found = versions(self._tensors if everything else [self._tensors[i] for i in indices])
        if self._params is self._tensors:
            return found
        # a write to a DTensor counts there, one to its part counts at the part
        wholes = versions([self._params[i] for i in indices])
        return [ours + theirs for ours, theirs in zip(found, wholes, strict=True)]

    def own(self, everything):
        """Stop, or resume, counting writes to unedited parameters as edits."""
        if everything:
            # the only ones that count as edited from now on
            self.forget(self.edited(range(len(self._params))))
        elif self._ours:
            known = enumerate(self._versions)
            self.record([i for i, version in known if version not in (None, _EDITED)])
        self._ours = everything

    def record(self, indices):
        """Remember the parameters as we left them."""
        self._versions = self._noted(self._versions, indices)

    def _noted(self, versions, indices):
        """Version counters, up to date for some parameters."""
        now = self._now(indices)
        if len(indices) == len(self._params):
            return now
        for i, version in zip(indices, now, strict=True):
            versions[i] = version
        return versions

    def edited(self, indices):
        """Those parameters that something else wrote since the last ``record``."""
        if self._ours:
            return [i for i in indices if self._versions[i] == _EDITED]
        return self.written(indices)

    def written(self, indices):
        """Those that were written since ``record``, by us or by something else."""
        moved = self._moved(indices, self._versions)
        return [i for i in moved if self._versions[i] is not None]

    def unedited(self, indices):
        """Those parameters that are known to be as we left them."""
        moved = self._moved(indices, self._versions)
        return sorted(set(indices).difference(moved)) if moved else indices

    def _moved(self, indices, versions):
        """Those parameters whose version counter is not the one that was noted, or none was."""
        now = self._now(indices)
        if len(indices) == len(self._params) and now == versions:
            return []
        return [i for i, version in zip(indices, now, strict=True) if versions[i] != version]

    def forget(self, indices):
        """Make parameters count as edited."""
        for i in indices:
            self._versions[i] = self._snapshot_versions[i] = _EDITED

    def replaced(self, i, tensor):
        """Take another tensor in place of one; its values are not known."""
        self._tensors[i] = tensor
        self._versions[i] = self.snapshots[i] = self._snapshot_versions[i] = None

    def alone(self, i):
        """What is known of one parameter, for those who go on with it."""
        params = [self._params[i]]
        tensors = params if self._tensors is self._params else [self._tensors[i]]
        found = Edits(params, tensors, [True], self._ours)
        found.take_over(0, self, i)
        return found

    def take_over(self, i, other, j=0):
        """Go on from what others knew of a parameter, if it is still the same tensor."""
        tensor, snapshot = self._tensors[i], other.snapshots[j]
        if tensor is not other._tensors[j]:
            return
        self._versions[i] = other._versions[j]
        # its dtype or its device may have changed in place
        kind = tensor.dtype, tensor.device
        if snapshot is not None and (snapshot.dtype, snapshot.device) == kind:
            self.snapshots[i], self._snapshot_versions[i] = snapshot, other._snapshot_versions[j]

    def take_snapshots(self, indices):
        """Make the snapshots equal to the parameters; they are, unless someone wrote to these."""
        # where there is no snapshot there is no version of one
        for i in self._moved(indices, self._snapshot_versions):
            if self.snapshots[i] is None:
                self.snapshots[i] = self._tensors[i].detach().clone()
            else:
                self.snapshots[i].copy_(self._tensors[i])

    def snapshots_taken(self, indices):
        """Record that the snapshots equal the parameters."""
        self._snapshot_versions = self._noted(self._snapshot_versions, indices)


def restart_edited(optimizer, parts):
    """Have methods that keep positions restart from parameters that were edited.

    For the others x and y have moved together and nothing is to be done.
    """
    counts = {}
    for part in parts:
        method, bucket = part.method, part.bucket
        if not method.positions:
            continue
        edited = bucket.edits.edited(part.indices)
        if edited:
            name = type(method).__name__
            capture.refuse(
                bucket.device.type,
                f"{len(edited)} parameters were written since the last step, and every replay "
                f"would restart {name} from where they are; write them inside "
                "`with opt.part_of_step():`, or before a step outside of the capture",
            )
            restart_at(part._replace(indices=edited))
            counts[name] = counts.get(name, 0) + len(edited)
    for name, count in counts.items():
        warn_once(
            optimizer,
            ("edited", name),
            f"{count} parameters were written since the last step; {name} restarts from their new "
            "values. What belongs to every step (clamping, SAM) is to be written inside `with "
            "opt.part_of_step():`, which keeps its state",
        )


@torch.no_grad()
def restart_at(part):
    """Put all positions of parameters where the parameters are: x = y = z."""
    bucket = part.bucket
    for i in part.indices:
        for name in part.method.positions:
            shards.local(bucket.views[name][i]).copy_(bucket.tensors[i])
        bucket.scalars.arrive(i)


def warn_once(holder, kind, message):
    """Warn of a kind of thing once in the life of an object, which holds what it was warned of."""
    told = vars(holder).setdefault("_told", set())
    if kind not in told:
        told.add(kind)
        warn(message)
