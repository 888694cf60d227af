"""Parameters that are stepped together, and their state in flat buffers."""

import math

import torch

from .layout import dense_strides
from .rules import POSITIONS
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
        on_device: keep the scalars on the parameters' device (``capturable``).
    """

    def __init__(self, params, state, key, on_device=False):
        self.params, self.state, self.key = params, state, key
        self.device, self.param_dtype = params[0].device, params[0].dtype
        self.dtype = torch.float64 if self.param_dtype.to_real() == torch.float64 else torch.float32
        self.on_device = on_device
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
        device = self.device if on_device else "cpu"
        # lookahead in float64: the recurrence of a float64 parameter must see the exact number
        self.steps = self._scalars("step", torch.float32, device)
        self.lookaheads = self._scalars("lookahead", torch.float64, device)
        if on_device and any(found) and not self._uniform():
            raise RuntimeError(
                "capturable=True needs parameters that were stepped equally often; these were not"
            )

    def _scalars(self, name, dtype, device):
        vector = torch.zeros(len(self.params), dtype=dtype, device=device)
        self.views[name] = list(vector.unbind())
        self._copy_existing(name)
        return vector

    def _uniform(self):
        return all(bool((v == v[0]).all()) for v in (self.steps, self.lookaheads))

    def allocate(self, names):
        """Allocate the named state where it is missing: positions as copies, the rest as zeros."""
        for name in names:
            if name in self.views:
                continue
            complex_ = self.param_dtype.is_complex
            views = _views(self.params, self.dtype.to_complex() if complex_ else self.dtype)
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
        elif found.shape != p.shape:
            raise RuntimeError(
                f"state {key!r} of a parameter of shape {tuple(p.shape)} was replaced by a tensor "
                f"of shape {tuple(found.shape)}"
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
        """Group parameters by (step, lookahead): normally one entry.

        With the scalars on the device their values are not read: the one entry holds 0-d tensors,
        and all parameters must be stepped together.
        """
        if not indices:
            return {}
        if self.on_device:
            if not self._all(indices):
                missing = sorted(set(range(len(self.params))) - set(indices))
                raise RuntimeError(
                    "capturable=True needs a gradient for every parameter at every step; parameter "
                    f"of shape {tuple(self.params[missing[0]].shape)} has none"
                )
            return {(self.steps[0].double(), self.lookaheads[0]): indices}
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


def real_view(tensor):
    """A complex tensor as pairs of reals, any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _views(params, dtype):
    """One zeroed buffer, and a view of it for each parameter with the parameter's layout."""
    step = math.ceil(_ALIGNMENT / dtype.itemsize)
    offsets, total = [], 0
    for p in params:
        offsets.append(total)
        total += math.ceil(p.numel() / step) * step
    flat = torch.zeros(total, dtype=dtype, device=params[0].device)
    return [
        flat.as_strided(p.shape, dense_strides(p), offset)
        for p, offset in zip(params, offsets, strict=True)
    ]
