# SPDX-License-Identifier: MIT
"""Parameters that are stepped together, and their state in flat buffers."""

import contextlib
import itertools
import math
from typing import Any

import torch

from ..backends import shards, storage
from ..backends.layout import dense_strides, same_bits
from ..rules import LOOKAHEAD_STATE, POINT_STATE, State
from .clock import SCALARS, Scalars
from .edits import Edits

# tensors in a flat buffer start at multiples of 16 bytes, for 128-bit loads
_ALIGNMENT = 16
# sets of parameters whose memos are kept
_MEMOS = 8
# a name for each bucket there ever was
_NUMBERS = itertools.count()


class Bucket:
    """Parameters of one group that share a device and a dtype, with their state.

    Each state name is one flat buffer, and ``optimizer.state[p][name]`` is the view of p, shaped
    and strided like it, or as its ``rules.State`` says. State is float32 for parameters of 32 bits
    or fewer, else float64. Each parameter also carries two 0-d ``Scalars``, ``step`` and
    ``lookahead``. Of a ``DTensor`` the local part is stepped, and the views are visible as
    ``DTensor`` too.

    Nothing is visible in ``optimizer.state`` before ``publish``.

    Args:
        params: the parameters.
        state: the optimizer's ``state``; entries found there are copied.
        key: state name -> its key in ``state[p]``.
    """

    def __init__(self, params, state, key):
        self.params, self.state, self.key = params, state, key
        # what is computed on: the parameters, or the parts of them that lie here
        self.tensors = shards.locals_of(params)
        self.mesh = shards.mesh_of(params[0])
        self.fake = storage.is_fake(self.tensors[0])
        self.device, self.param_dtype = params[0].device, params[0].dtype
        self.dtype = torch.float64 if self.param_dtype.to_real() == torch.float64 else torch.float32
        self.number = next(_NUMBERS)
        # what buckets have in common whose parameters share a call of a back end; text has its hash
        self.format = f"{self.param_dtype} on {self.device}"
        # whether gradients are what back ends take
        self.plain = self.mesh is None and not self.param_dtype.is_complex
        self.published = False
        found = [self.key("lookahead") in state.get(p, ()) for p in params]
        self.edits = Edits(params, self.tensors, found)
        self.shapes = [p.shape for p in params]
        self.views = {}  # name -> views as they are in ``optimizer.state``
        self._kinds = {}  # name of state -> its kind for each parameter; see ``kind_of``
        self._memos: dict[Any, dict] = {}
        self.device_plan: Any = None  # what finds a step's numbers on the device
        self.scalars = Scalars(len(params), self.device)
        for name, views in self.scalars.views().items():
            self.views[name] = views
            self._copy_existing(name)

    def place_scalars(self, on_device):
        """Keep the scalars on the device or on the host; see ``Scalars.place``."""
        if on_device == self.scalars.on_device:
            return
        self.scalars.place(on_device)
        self.views.update(self.scalars.views())
        if self.published:
            self.publish()

    def together(self, indices):
        """Whether all parameters are stepped, each as often as the others so far."""
        return len(indices) == len(self.params) and self.scalars.uniform()

    def check_together(self, indices):
        """Raise RuntimeError unless ``together``: where the device plans, one plan serves all."""
        if len(indices) != len(self.params):
            missing = min(set(range(len(self.params))) - set(indices))
            raise RuntimeError(
                "capturable=True needs a gradient for every parameter at every step; parameter of "
                f"shape {tuple(self.params[missing].shape)} has none"
            )
        if not self.scalars.uniform():
            raise RuntimeError(
                "capturable=True needs parameters that were stepped equally often; these were not"
            )

    def allocate(self, names, group):
        """Allocate the named state where it is missing: positions as copies, the rest as zeros."""
        for name in map(State, names):
            if name in self.views:
                continue
            self._kinds[name] = kinds = [kind_of(name, p, group) for p in self.params]
            complex_ = self.param_dtype.is_complex
            dtype = self.dtype.to_complex() if complex_ else self.dtype
            likes = [shaped(*each) for each in zip(self.tensors, kinds, strict=True)]
            order = range(len(likes))
            if any(kinds):
                # those of parameters of one shape evenly spaced: batches of matrices
                order = sorted(order, key=lambda i: (*likes[i].shape, *self.tensors[i].shape))
            views = _views(likes, dtype, self.device, order)
            if name.position:
                for view, t in zip(views, self.tensors, strict=True):
                    view.copy_(t.detach())
            self.views[name] = [self._visible(name, i, view) for i, view in enumerate(views)]
            self._copy_existing(name)
            if self.published:
                self.publish()

    def check_kinds(self, indices, group, names):
        """Raise ValueError if an option has changed that says how the named state is shaped."""
        for name in map(State, names):
            kinds = self._kinds[name]
            for i in indices:
                if kinds[i] is not None and kinds[i] != kind_of(name, self.params[i], group):
                    given = ", ".join(f"{key}={group.get(key)}" for key in name.options)
                    raise ValueError(
                        f"{given}: state {self.key(name)!r} of a parameter of shape "
                        f"{tuple(self.shapes[i])} was made with another: set it back, or make a "
                        "new optimizer"
                    )

    def forget_others(self, names, params):
        """Drop what lookahead methods kept that the group has left; see the function.

        Not where parameters are now in several groups, and another one may need it.
        """
        others = self.views.keys() & LOOKAHEAD_STATE.difference(names)
        if not others or not self.published or not set(params).issuperset(self.params):
            return
        for name in others:
            del self.views[name]
        for p in self.params:
            forget_others(self.state[p], self.key, names)

    def _visible(self, name, i, view):
        """A view as ``optimizer.state`` shows it."""
        p, kind = self.params[i], self._kind(name, i)
        like = shaped(p, kind)
        return shards.as_dtensor(view, p, like.shape, like.stride(), kind and kind[0])

    def _kind(self, name, i):
        """That of a parameter's state; what is kept aside is as the parameter."""
        return self._kinds[name][i] if name in self._kinds else None

    def _placed(self, name, i, tensor):
        """A tensor of the user's as a view."""
        if name not in SCALARS:
            kind = self._kind(name, i)
            tensor = shards.placed(tensor, self.params[i], kind and kind[0])
        if not (self.fake or storage.in_storage(tensor)):
            where = f"state {self.key(name)!r} of a parameter of shape {tuple(self.shapes[i])}"
            storage.refuse(where, tensor)
        return tensor

    def _copy_existing(self, name):
        for i, p in enumerate(self.params):
            existing = self.state[p].get(self.key(name)) if p in self.state else None
            if existing is not None:
                existing = _tensor(existing)
                if name not in SCALARS:
                    self._check_shape(name, i, existing)
                shards.local(self.views[name][i]).copy_(self._placed(name, i, existing))

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

    def part_with(self, indices):
        """Make the state of parameters that leave tensors of their own in ``optimizer.state``.

        Views would keep the buffers of all.
        """
        for i in indices:
            entries = self.state.get(self.params[i], {})
            for name, views in self.views.items():
                key = self.key(name)
                if entries.get(key) is views[i]:
                    entries[key] = views[i].clone()

    def adopt(self):
        """Use state tensors that the user put in place of ours, as they are."""
        for name, views in self.views.items():
            key = self.key(name)
            for i, p in enumerate(self.params):
                found = self.state[p].get(key)
                if found is not views[i]:
                    self._adopt_one(name, key, i, found)

    def _adopt_one(self, name, key, i, found):
        views = self.views[name]
        if found is not None and name in SCALARS:
            # scalars advance as one vector, so their value is taken and the view put back
            views[i].copy_(self._placed(name, i, _tensor(found)))
        elif found is not None:
            self._check_shape(name, i, found)
            placed = self._placed(name, i, found)
            # one that lies elsewhere was copied to where it belongs
            views[i] = found if placed is found else self._visible(name, i, placed)
        self.state[self.params[i]][key] = views[i]

    def _check_shape(self, name, i, found):
        expected = self.views[name][i].shape
        if found.shape != expected:
            raise RuntimeError(
                f"state {self.key(name)!r} of shape {tuple(expected)} was replaced by a tensor of "
                f"shape {tuple(found.shape)}"
            )

    def params_of(self, indices):
        """Some parameters, as the user has them."""
        everything = len(indices) == len(self.params)
        return self.params if everything else [self.params[i] for i in indices]

    def tensors_of(self, indices):
        """Some parameters, of a ``DTensor`` the part that lies here; complex as pairs of reals."""
        return self._column(self.tensors, indices)

    def snapshots_of(self, indices):
        """What ``tensors_of`` held before the step; see ``Edits.take_snapshots``."""
        return self._column(self.edits.snapshots, indices)

    def column(self, name, indices):
        """State of some parameters, complex as pairs of reals."""
        views = self.views[name]
        return self._column(views if self.mesh is None else shards.locals_of(views), indices)

    def gradients_of(self, indices, gradients):
        """Gradients of some parameters as back ends take them, like ``tensors_of``."""
        if self.mesh is not None:
            params = self.params_of(indices)
            gradients = [shards.placed(t, p) for t, p in zip(gradients, params, strict=True)]
        return self.reals(gradients) if self.param_dtype.is_complex else gradients

    def reals(self, tensors):
        """Tensors of the parameters' shapes as back ends take them: complex as pairs of reals."""
        return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]

    def _column(self, tensors, indices):
        # usually the list itself: copies would cost as much as a call over small tensors
        if len(indices) != len(self.params):
            tensors = [tensors[i] for i in indices]
        return self.reals(tensors) if self.param_dtype.is_complex else tensors

    def memo(self, *sets):
        """What back ends keep about parameters that are stepped together.

        Args:
            sets: pairs of a bucket, none of them newer than this one, and indices of parameters.
        """
        key = tuple(bucket._set(indices) for bucket, indices in sets)
        if key not in self._memos:
            # parameters that fall out of step make new sets; a few recur. That of whole buckets
            # stays: a captured graph may read what it holds
            if len(self._memos) >= _MEMOS:
                self._memos = {k: m for k, m in self._memos.items() if all(s is None for _, s in k)}
            self._memos[key] = {}
        return self._memos[key]

    def _set(self, indices):
        """A name for some parameters that no others ever have."""
        return self.number, None if len(indices) == len(self.params) else tuple(indices)

    def keep_y(self, i, y):
        """Keep a parameter's y in its state while it holds x."""
        self.state[self.params[i]][self.key("y")] = self._visible("y", i, y)

    def kept_y(self, i):
        """The y that was kept, or None."""
        y = self.state[self.params[i]].get(self.key("y"))
        return None if y is None else self._placed("y", i, y)

    def differing(self, xs):
        """Those parameters whose bits are not the ones they should be, in any process.

        Args:
            xs: pairs of an index and what should lie here; None: not known, which differs. Only
                one of them is needed at a time.
        """
        here = {
            i: x is None or not same_bits(self.tensors[i], x.to(self.tensors[i].dtype))
            for i, x in xs
        }
        if self.mesh is not None and here:
            flags = torch.tensor([*here.values()], dtype=torch.float32, device=self.device)
            here = dict(zip(here, shards.agree(flags, self.mesh).tolist(), strict=True))
        return [i for i, differs in here.items() if differs]

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
        if p.dtype != self.param_dtype or p.device != self.device:
            return False
        return self.mesh is None or self._still_here(i, p)

    def _still_here(self, i, p):
        """Whether a ``DTensor`` still has its part; one put in its place is taken if it fits."""
        part, before = shards.local(p), self.tensors[i]
        if part is not before:
            if p.device_mesh != self.mesh or part.shape != before.shape:
                return False
            self.edits.replaced(i, part)
        return True

    def moved(self):
        """Whether a ``DTensor`` has another part than before, or one that is not in its storage."""
        return not all(map(_in_place, self.params, self.tensors))


def _in_place(p, part):
    """Whether a ``DTensor`` and its gradient have parts in their storage, it the one given."""
    gradient = None if p.grad is None else shards.local(p.grad)
    return shards.local(p) is part and all(
        t is None or storage.in_storage(t) for t in (part, gradient)
    )


def _tensor(value):
    # a number goes to the CPU, not to a user's default device
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")


@contextlib.contextmanager
def restored_by_errors(mappings):
    """Where a ``with`` block raises, dicts hold again what they held before it."""
    before = [dict(each) for each in mappings]
    try:
        yield
    except BaseException:
        for each, old in zip(mappings, before, strict=True):
            each.clear()
            each.update(old)
        raise


def kind_of(name, p, group):
    """How a parameter's state is shaped, as ``rules.State.shape`` says; None: as the parameter."""
    shape: Any = State(name).shape
    return None if shape is None else shape(p, group)


def shaped(p, kind):
    """A tensor that has the shape and the strides of a parameter's state; of no other use."""
    if kind is None:
        return p
    dims, sizes, *layout = kind
    shape = *p.shape[:dims], *sizes
    if any(layout[:1]):
        return torch.empty((*shape[:-2], shape[-1], shape[-2]), device="meta").mT
    return torch.empty(shape, device="meta")


def forget_others(entries, key, names):
    """Drop from a parameter's state what lookahead methods kept that its group has left.

    If that said where x is, and the group's own method has not begun, or it has none now, x is
    where the parameter is: no y is kept, and nothing is ahead.

    Args:
        entries: the state, changed in place.
        key: state name -> its key there.
        names: the state that the group needs.
    """
    stay = LOOKAHEAD_STATE.intersection(names)
    gone = {n for n in LOOKAHEAD_STATE - stay if entries.pop(key(n), None) is not None}
    began = any(key(n) in entries for n in stay & POINT_STATE)
    if not stay or (gone & POINT_STATE and not began):
        entries.pop(key("y"), None)
        if key("lookahead") in entries:
            entries[key("lookahead")] = 0.0


def _views(likes, dtype, device, order):
    """One zeroed buffer on a device, and a view of it for each tensor, laid out as that is.

    Args:
        likes: tensors of the shapes and strides.
        dtype, device: of the buffer.
        order: of the tensors in it, their indices.
    """
    step = math.ceil(_ALIGNMENT / dtype.itemsize)
    offsets, total = [0] * len(likes), 0
    for i in order:
        offsets[i] = total
        total += math.ceil(likes[i].numel() / step) * step
    flat = torch.zeros(total, dtype=dtype, device=device)
    return [
        flat.as_strided(t.shape, dense_strides(t), offset)
        for t, offset in zip(likes, offsets, strict=True)
    ]
