# SPDX-License-Identifier: MIT
"""The optimizers inside a ``Wrap``: which can be there, their state, their steps and loads."""

import contextlib
import inspect
import itertools
import weakref
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.weak import WeakTensorKeyDictionary

from ..groups import is_lookahead_entry
from .checkpoint import unpacked

# optimizer -> a weak reference to its Wrap; no attribute of it, which its pickles would take along
_WRAPPERS = weakref.WeakKeyDictionary()
# the Wrap that is stepping what is inside it, on this thread
_STEPPING: ContextVar[Any] = ContextVar("_STEPPING", default=None)


class States(MutableMapping):
    """The states of several optimizers as one mapping, parameter -> its state."""

    def __init__(self, optimizers):
        self._optimizers = optimizers
        # parameter -> its optimizer; weak: one that has left its group would be kept
        self._owners = WeakTensorKeyDictionary()

    def _owner(self, p):
        """The optimizer that has state of a parameter, or shall have it."""
        for optimizer in self._optimizers:
            if p in optimizer.state:
                return optimizer
        if p not in self._owners:
            groups = [(o, group) for o in self._optimizers for group in o.param_groups]
            self._owners = WeakTensorKeyDictionary({q: o for o, g in groups for q in g["params"]})
        # an entry may belong to no parameter
        return self._owners[p] if p in self._owners else self._optimizers[0]

    def __getitem__(self, p):
        return self._owner(p).state[p]

    def __setitem__(self, p, entries):
        self._owner(p).state[p] = entries

    def __delitem__(self, p):
        del self._owner(p).state[p]

    def __contains__(self, p):
        return any(p in o.state for o in self._optimizers)

    def get(self, p, default=None):
        """A parameter's state; unlike ``[]`` this creates nothing."""
        return next((o.state[p] for o in self._optimizers if p in o.state), default)

    def __iter__(self):
        return (p for o in self._optimizers for p in o.state)

    def __len__(self):
        return sum(len(o.state) for o in self._optimizers)


def needs_closure(optimizer):
    """Whether the step of an optimizer cannot do without a function that evaluates the loss."""
    parameters = inspect.signature(type(optimizer).step).parameters
    return any(p.name == "closure" and p.default is p.empty for p in parameters.values())


_REFUSED = (
    (lambda o: hasattr(o, "at_iterate"), "is ours: give it lookahead=... instead"),
    (lambda o: hasattr(o, "train") and hasattr(o, "eval"), "has train and eval modes of its own"),
    (needs_closure, "evaluates the loss itself, several times per step"),
    (lambda o: hasattr(o, "first_step"), "takes two gradients per step"),
    (lambda o: isinstance(o, torch.optim.SparseAdam), "takes sparse gradients only"),
)


def check_inner(optimizer):
    """Refuse what cannot be wrapped.

    Raises:
        TypeError: not an optimizer, or one that steps in another way than from gradients once.
        ValueError: wrapped already.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer or a list of them, got "
            f"{type(optimizer).__name__}"
        )
    for matches, reason in _REFUSED:
        if matches(optimizer):
            raise TypeError(f"{type(optimizer).__name__} cannot be wrapped: it {reason}")
    if any("lookahead_t" in group for group in optimizer.param_groups):
        reference = _WRAPPERS.get(optimizer)
        how = "is wrapped already: step its Wrap"
        if reference is None or reference() is None:
            how = "was in a Wrap, or is the copy of one that was: make a new one of the parameters"
        raise ValueError(f"this {type(optimizer).__name__} {how}")


def guard(optimizer, wrapper):
    """From now on the optimizer is stepped by the wrapper only, as long as there is one."""
    _WRAPPERS[optimizer] = weakref.ref(wrapper)
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    # a subclass may have left out torch's constructor, and then has no hooks
    if hooks is not None and _only_by_its_wrapper not in hooks.values():
        optimizer.register_step_pre_hook(_only_by_its_wrapper)


def _only_by_its_wrapper(optimizer, args, kwargs):
    reference = _WRAPPERS.get(optimizer)
    wrapper = reference and reference()
    if wrapper is not None and _STEPPING.get() is not wrapper:
        raise RuntimeError(
            f"this {type(optimizer).__name__} is inside a Wrap: its own step() would leave the "
            "lookahead out; call step() of the Wrap, and give that to GradScaler.step"
        )


def is_ours(key):
    """Whether an entry of a group or of a parameter's state is the wrapper's."""
    return is_lookahead_entry(key) or key == "train_mode"


def step_all(wrapper, excluded):
    """Step the inner optimizers, without those parameters whose gradient is not for them.

    Args:
        wrapper: the ``Wrap``; what a GradScaler gave to it for this step is handed down.
        excluded: parameters that are to stay as they are, whatever their gradient.
    """
    scaling = {k: v for k, v in vars(wrapper).items() if k in ("grad_scale", "found_inf")}
    excluded, optimizers = set(excluded), wrapper.optimizers
    kept = {p: p.grad for p in excluded}
    for p in excluded:
        p.grad = None
    try:
        for inner in optimizers:
            params = [p for group in inner.param_groups for p in group["params"]]
            # a step in which all its gradients are excluded does not happen for it
            nothing = not excluded or excluded.isdisjoint(params)
            if nothing or any(p.grad is not None for p in params):
                vars(inner).update(scaling)
                with _no_global_hooks(wrapper):
                    inner.step()
    finally:
        for inner in optimizers:
            for name in scaling:
                vars(inner).pop(name, None)
        for p, grad in kept.items():
            p.grad = grad


class _NotInside:
    """A global step hook that leaves out what a ``Wrap`` steps: it has run with the ``Wrap``."""

    def __init__(self, hook):
        self._hook = hook

    def __call__(self, optimizer, *args):
        wrapper = _STEPPING.get()
        # of others it is not asked, so that a step which was interrupted in between leaves them be
        inside = wrapper is not None and any(each is optimizer for each in wrapper.optimizers)
        return None if inside else self._hook(optimizer, *args)


@contextlib.contextmanager
def _no_global_hooks(wrapper):
    """Torch runs its global step hooks in every optimizer's step, as often as subclasses call it.

    Taking them away would take them from other threads, too.
    """
    for hooks in (_global_optimizer_pre_hooks, _global_optimizer_post_hooks):
        for key, hook in list(hooks.items()):
            if not isinstance(hook, _NotInside):
                hooks[key] = _NotInside(hook)
    token = None
    try:
        token = _STEPPING.set(wrapper)
        yield
    finally:
        if token is not None:
            _STEPPING.reset(token)


def shared_out(optimizers, param_groups):
    """Pairs of an optimizer and its share of groups, as many as it has; a single one takes all."""
    if len(optimizers) == 1:
        return [(optimizers[0], param_groups)]
    counts = [len(inner.param_groups) for inner in optimizers]
    if sum(counts) != len(param_groups):
        raise ValueError(f"{len(param_groups)} param_groups for optimizers with {counts} groups")
    remaining = iter(param_groups)
    shares = [list(itertools.islice(remaining, count)) for count in counts]
    return zip(optimizers, shares, strict=True)


def load_all(optimizers, state, param_groups):
    """Hand a checked state dict of the wrapper to the inner optimizers."""
    for inner, its in shared_out(optimizers, param_groups):
        groups, packed, ours, start = [], {}, {}, 0
        for group in its:
            indices = range(start, start := start + len(group["params"]))
            groups.append({**group, "params": list(indices)})
            for i, p in zip(indices, group["params"], strict=True):
                entries = unpacked(state.get(p, {}))
                ours[p] = {k: v for k, v in entries.items() if is_ours(k)}
                packed[i] = {k: v for k, v in entries.items() if not is_ours(k)}
        packed = {i: entries for i, entries in packed.items() if entries}
        # entries that belong to no parameter go where such an entry is, or where all goes
        alone = len(optimizers) == 1
        others = {k: v for k, v in state.items() if not isinstance(k, torch.Tensor)}
        packed |= {k: v for k, v in others.items() if alone or k in inner.state}
        inner.load_state_dict({"state": packed, "param_groups": groups})
        for p, entries in ours.items():
            if entries:
                inner.state[p].update(entries)
