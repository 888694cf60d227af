"""Parameters that are stepped together, and their state in flat buffers."""

import math
from typing import Any

import torch

from .layout import dense_strides
from .rules import POSITIONS, ROWWISE
from .watch import versions

# tensors in a flat buffer start at multiples of 16 bytes, for 128-bit loads
_ALIGNMENT = 16
# sets of parameters whose memos are kept
_MEMOS = 8
# no version counter has this value
_EDITED = -1


class Bucket:
    """Parameters of one group that share a device and a dtype, with their state.

    Each state name is one flat buffer, and ``optimizer.state[p][name]`` is the view of p, shaped
    and strided like it. State is float32 for parameters of 32 bits or fewer, else float64. Each
    parameter also carries two 0-d scalars, views of one vector each: ``step`` (base updates taken)
    and ``lookahead`` (how far its y is ahead of x; 0: it holds x).

    Nothing is visible in ``optimizer.state`` before ``publish``.

    Args:
        params: the parameters.
        state: the optimizer's ``state``; entries found there are copied.
        key: state name -> its key in ``state[p]``.
    """

    def __init__(self, params, state, key):
        self.params, self.state, self.key = params, state, key
        self.device, self.param_dtype = params[0].device, params[0].dtype
        self.dtype = torch.float64 if self.param_dtype.to_real() == torch.float64 else torch.float32
        self.published = False
        # version counters when we last read or wrote the parameters; None: not known
        found = [self.key("lookahead") in state.get(p, ()) for p in params]
        self.versions = [None if f else p._version for f, p in zip(found, params, strict=True)]
        self.shapes = [p.shape for p in params]
        # y before a step that another optimizer takes, and the version counters they belong to
        self.snapshots: list[torch.Tensor | None] = [None] * len(params)
        self.snapshot_versions: list[int | None] = [None] * len(params)
        self.views = {}
        self._memos = {}
        self.on_device = False  # where the scalars are
        self.device_plan: Any = None  # what finds a step's numbers there
        # lookahead in float64: the recurrence of a float64 parameter must see the exact number
        self.steps = self._scalars("step", torch.float32)
        self.lookaheads = self._scalars("lookahead", torch.float64)

    def _scalars(self, name, dtype):
        vector = torch.zeros(len(self.params), dtype=dtype, device="cpu")
        self.views[name] = list(vector.unbind())
        self._copy_existing(name)
        return vector

    def place_scalars(self, on_device):
        """Keep the scalars on the device, where one element serves all parameters, or on the host.

        On the device they must be the same for all parameters: see ``check_together``.
        """
        if on_device == self.on_device:
            return
        self.on_device = on_device
        self.steps = self._placed("step", self.steps)
        self.lookaheads = self._placed("lookahead", self.lookaheads)
        if self.published:
            self.publish()

    def _placed(self, name, vector):
        if self.on_device:
            vector = vector[:1].to(self.device, copy=True).expand(len(self.params))
        else:
            vector = vector.cpu().clone(memory_format=torch.contiguous_format)
        self.views[name] = list(vector.unbind())
        return vector

    def together(self, indices):
        """Whether all parameters are stepped, each as often as the others so far."""
        return self._all(indices) and (self.on_device or self._uniform())

    def check_together(self, indices):
        """Raise RuntimeError unless ``together``: where the device plans, one plan serves all."""
        if not self._all(indices):
            missing = min(set(range(len(self.params))) - set(indices))
            raise RuntimeError(
                "capturable=True needs a gradient for every parameter at every step; parameter of "
                f"shape {tuple(self.params[missing].shape)} has none"
            )
        if not self.together(indices):
            raise RuntimeError(
                "capturable=True needs parameters that were stepped equally often; these were not"
            )

    def _uniform(self):
        return all(bool((v == v[0]).all()) for v in (self.steps, self.lookaheads))

    def allocate(self, names):
        """Allocate the named state where it is missing: positions as copies, the rest as zeros."""
        for name in names:
            if name in self.views:
                continue
            complex_ = self.param_dtype.is_complex
            dtype = self.dtype.to_complex() if complex_ else self.dtype
            views = _views([shape_like(name, p) for p in self.params], dtype, self.device)
            if name in POSITIONS:
                for view, p in zip(views, self.params, strict=True):
                    view.copy_(p.detach())
            self.views[name] = views
            self._copy_existing(name)
            if self.published:
                self.publish()

    def _copy_existing(self, name):
        for view, p in zip(self.views[name], self.params, strict=True):
            existing = self.state[p].get(self.key(name)) if p in self.state else None
            if existing is not None:
                view.copy_(torch.as_tensor(existing))

    def publish(self):
        """Show the state in ``optimizer.state``."""
        for i, p in enumerate(self.params):
            self.state[p].update({self.key(name): v[i] for name, v in self.views.items()})
        self.published = True

    def entries(self):
        """For each parameter its entries in ``optimizer.state``, and those of them that we keep."""
        keys = [self.key(name) for name in self.views]
        for p, *views in zip(self.params, *self.views.values(), strict=True):
            yield self.state[p], dict(zip(keys, views, strict=True))

    def adopt(self):
        """Use state tensors that the user put in place of ours, as they are."""
        for name, views in self.views.items():
            key = self.key(name)
            for i, p in enumerate(self.params):
                found = self.state[p].get(key)
                if found is not views[i]:
                    self._adopt_one(name, key, i, found)

    def _adopt_one(self, name, key, i, found):
        p, views = self.params[i], self.views[name]
        if name in ("step", "lookahead"):
            # scalars advance as one vector, so their value is taken and the view put back
            if found is not None:
                views[i].copy_(torch.as_tensor(found))
            self.state[p][key] = views[i]
        elif found is None:
            self.state[p][key] = views[i]
        elif found.shape != views[i].shape:
            raise RuntimeError(
                f"state {key!r} of shape {tuple(views[i].shape)} was replaced by a tensor of shape "
                f"{tuple(found.shape)}"
            )
        else:
            views[i] = found

    def members(self, indices):
        """Some parameters."""
        return self._chosen(self.params, indices)

    def columns(self, names, indices):
        """For each name the state of some parameters, complex as pairs of reals."""
        return [self.reals(self._chosen(self.views[name], indices)) for name in names]

    def reals(self, tensors):
        """Tensors of the parameters' shapes as back ends take them: complex as pairs of reals."""
        return [real_view(t) for t in tensors] if self.param_dtype.is_complex else tensors

    def _chosen(self, tensors, indices):
        # usually the list itself: copies would cost as much as a call over small tensors
        return tensors if self._all(indices) else [tensors[i] for i in indices]

    def _all(self, indices):
        return len(indices) == len(self.params)

    def memo(self, indices):
        """What back ends keep about a set of parameters that is stepped together."""
        key = None if self._all(indices) else tuple(indices)
        if key not in self._memos:
            # parameters that fall out of step make new sets; a few recur
            if len(self._memos) >= _MEMOS:
                self._memos.clear()
            self._memos[key] = {}
        return self._memos[key]

    def by_scalars(self, indices):
        """Group parameters by (step, lookahead), read on the host: normally one entry."""
        if not indices:
            return {}
        if self._uniform():
            return {(self.steps[0].item(), self.lookaheads[0].item()): indices}
        steps, lookaheads = self.steps.tolist(), self.lookaheads.tolist()
        groups = {}
        for i in indices:
            groups.setdefault((steps[i], lookaheads[i]), []).append(i)
        return groups

    def advance(self, indices, counts, lookahead):
        """Record a step: base updates if it ``counts``, and how far the parameters are ahead."""
        if self._all(indices):
            self.steps += counts
            self.lookaheads.fill_(lookahead)
        else:
            index = torch.tensor(indices)
            self.steps[index] += counts
            self.lookaheads[index] = lookahead

    def take_snapshots(self, indices):
        """Make the snapshots equal to the parameters; they are, unless someone wrote to these."""
        for i in indices:
            if self.snapshots[i] is None:
                self.snapshots[i] = self.params[i].detach().clone()
            elif self.snapshot_versions[i] != self.params[i]._version:
                self.snapshots[i].copy_(self.params[i])

    def snapshots_taken(self, indices):
        """Record that the snapshots equal the parameters."""
        for i in indices:
            self.snapshot_versions[i] = self.params[i]._version

    def record(self, indices):
        """Remember the parameters as we left them."""
        now = versions(self.members(indices))
        if self._all(indices):
            self.versions = now
        else:
            for i, version in zip(indices, now, strict=True):
                self.versions[i] = version

    def edited(self, indices):
        """Those parameters that something else wrote since the last ``record``."""
        now = versions(self.members(indices))
        if self._all(indices) and now == self.versions:
            return []
        pairs = zip(indices, now, strict=True)
        return [i for i, version in pairs if self.versions[i] not in (None, version)]

    def unedited(self):
        """Those parameters that are known to be as we left them."""
        now = versions(self.params)
        if now == self.versions:
            return range(len(now))
        return [i for i, version in enumerate(now) if self.versions[i] == version]

    def forget(self, indices):
        """Make parameters count as edited."""
        for i in indices:
            self.versions[i] = self.snapshot_versions[i] = _EDITED

    def ahead(self, indices):
        """Group parameters by how far they are ahead; reads scalars that are on a device."""
        values, groups = self.lookaheads.tolist(), {}
        for i in indices:
            groups.setdefault(values[i], []).append(i)
        return groups

    def set_aside(self, i, y):
        """Keep a parameter's y in its state while it holds x."""
        self.state[self.params[i]][self.key("y")] = y

    def aside(self, i):
        """The y that was kept, or None."""
        return self.state[self.params[i]].get(self.key("y"))

    def take_back(self, i):
        """Forget the y that was kept."""
        self.state[self.params[i]].pop(self.key("y"), None)

    def emptied(self, i):
        """Whether someone removed a parameter's state, to start afresh."""
        return self.key("lookahead") not in self.state.get(self.params[i], ())

    def fits(self, i):
        """Whether a parameter still has the device and dtype that its state was made for.

        Raises:
            RuntimeError: its shape changed.
        """
        p = self.params[i]
        if p.shape != self.shapes[i]:
            raise RuntimeError(
                f"a parameter changed shape from {tuple(self.shapes[i])} to {tuple(p.shape)} since "
                "its state was created; make a new optimizer"
            )
        return p.dtype == self.param_dtype and p.device == self.device


def shape_like(name, p):
    """A tensor without values that has the shape and the strides of a parameter's state."""
    return torch.empty(len(p), 1, device="meta") if name in ROWWISE else p


def real_view(tensor):
    """A complex tensor as pairs of reals, any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _views(likes, dtype, device):
    """One zeroed buffer on a device, and a view of it for each tensor, laid out as that is."""
    step = math.ceil(_ALIGNMENT / dtype.itemsize)
    offsets, total = [], 0
    for t in likes:
        offsets.append(total)
        total += math.ceil(t.numel() / step) * step
    flat = torch.zeros(total, dtype=dtype, device=device)
    return [
        flat.as_strided(t.shape, dense_strides(t), offset)
        for t, offset in zip(likes, offsets, strict=True)
    ]
