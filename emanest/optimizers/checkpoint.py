# SPDX-License-Identifier: MIT
"""What goes into a state dict and how it comes back: exact, and all or nothing."""

import inspect
import numbers

import torch

from ..groups import is_lookahead_entry, parameter_name
from ..methods.method import METHODS
from ..options import CHECKS, SEQUENCES
from ..state.bucket import restored_by_errors
from ..values import items, warn
from .saved import CALLABLE, LISTED, NEWEST, VERSION, checked_entries, is_finite, merged

# entries of a dict for ``__setstate__`` that change what the buckets hold
HOUSED = {"state", "param_groups"}


class _Kept:
    """Hides a value from torch's loader, which would cast state and copy callables."""

    def __init__(self, value):
        self.value = value

    def __deepcopy__(self, memo):
        return self


def plain(_, state_dict):
    """Make the groups of a state dict plain, note its format; a state_dict post-hook."""
    groups = [
        {
            **{k: (_plain_items if k in SEQUENCES else _plain)(v) for k, v in group.items()},
            VERSION: NEWEST,
        }
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def _plain(value):
    if callable(value):
        return CALLABLE
    # NumPy's, Decimals and fractions, which torch's loader takes for objects
    if isinstance(value, numbers.Number) and type(value) not in (bool, int, float, complex):
        make = int if isinstance(value, numbers.Integral) else float
        return make(value)  # pyright: ignore[reportArgumentType]
    return value


def _plain_items(value):
    """The numbers of an inner optimizer's array, or of one that was set since, as tuples."""
    found = items(value)
    return _plain(value) if found is None else tuple(map(_plain_items, found))


def check_dict(state_dict):
    """Raise TypeError for what is not a dict; hooks may still make a state dict of it."""
    if not isinstance(state_dict, dict):
        raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")


def check_kind(state_dict):
    """Raise TypeError or ValueError for what is not an optimizer's state dict."""
    check_dict(state_dict)
    for key in ("param_groups", "state"):
        if key not in state_dict:
            raise ValueError(f"not an optimizer state dict: missing {key!r}")
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, (list, tuple)) or not isinstance(state, dict):
        raise TypeError(
            "not an optimizer state dict: param_groups must be a list and state a dict, got "
            f"{type(groups).__name__} and {type(state).__name__}"
        )
    for i, group in enumerate(groups):
        if not isinstance(group, dict) or not isinstance(group.get("params"), (list, tuple)):
            raise TypeError(f"group {i} of the state dict must be a dict with a list of params")


def all_or_nothing(optimizers):
    """Where a ``with`` block that gives optimizers other groups and state raises, it has not."""
    held = [vars(optimizer) for optimizer in optimizers]
    # a Wrap writes to groups that are there
    return restored_by_errors(
        [*held, *(group for each in held for group in each.get("param_groups", ()))]
    )


def prepare(optimizer, state_dict):
    """Check a state dict against the optimizer and complete it; a load_state_dict pre-hook.

    Returns:
        A state dict whose groups are complete and whose state torch passes on untouched.

    Raises:
        ValueError: other groups, other shapes, or state of the base optimizer missing.
    """
    check_kind(state_dict)
    live, saved = optimizer.param_groups, state_dict["param_groups"]
    sizes = [[len(g["params"]) for g in groups] for groups in (live, saved)]
    if len(live) != len(saved):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved)}, the optimizer has {len(live)}"
        )
    if sizes[0] != sizes[1]:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: sizes {sizes[1]}, the optimizer's are {sizes[0]}"
        )
    groups = [merged(optimizer, i, *pair) for i, pair in enumerate(zip(live, saved, strict=True))]
    state, fresh, spoilt = dict(state_dict["state"]), set(), []
    for index, (group, mine) in enumerate(zip(groups, live, strict=True)):
        starts = saved[index].get("lookahead") is None
        for j, (key, p) in enumerate(zip(group["params"], mine["params"], strict=True)):
            where = f"parameter {j} of group {index}"
            if isinstance(state.get(key), _Kept):
                raise ValueError(f"the checkpoint has {where} twice: it is number {key!r} of all")
            if not isinstance(state.get(key, {}), dict):
                raise TypeError(f"state of {where} must be a dict, got {state[key]!r}")
            if state.get(key):
                entries, missing = checked_entries(optimizer, where, group, p, state[key], starts)
                state[key] = _Kept(entries)
                fresh |= missing
                found = [repr(name) for name, value in entries.items() if not is_finite(value)]
                if found:
                    name = parameter_name(mine, index, j)
                    spoilt.append(f"{', '.join(found)} of {name}")
    _warn_of_others(live, saved)
    if fresh:
        warn(f"the checkpoint has no lookahead state {sorted(fresh)}; it starts afresh")
    if spoilt:
        more = f" and of {len(spoilt) - LISTED} more parameters" * (len(spoilt) > LISTED)
        warn(
            "the checkpoint holds NaN or infinite values, which training will keep: "
            f"{'; '.join(spoilt[:LISTED])}{more}"
        )
    groups = [{k: _Kept(v) if callable(v) else v for k, v in group.items()} for group in groups]
    return {**state_dict, "state": state, "param_groups": groups}


def _warn_of_others(live, saved):
    """Say which methods a checkpoint brings that the optimizer was not given."""
    names, found = {None: "none", **{k: v.__name__ for k, v in METHODS.items()}}, {}
    for index, (mine, group) in enumerate(zip(live, saved, strict=True)):
        here, there = mine.get("lookahead"), group.get("lookahead")
        if there is not None and there != here:
            # what a user has put into a live group may be no name
            here = names[here] if here in list(names) else repr(here)
            found.setdefault(f"{names[there]} in place of {here}", []).append(index)
    if found:
        listed = "; ".join(f"{change} in groups {indices}" for change, indices in found.items())
        warn(
            f"the checkpoint brings another lookahead than this optimizer has: {listed}; to keep "
            "this one's, set group['lookahead'] = None for the groups of the state dict before "
            "loading it: the lookahead then starts afresh"
        )


def unpacked(entries):
    """A parameter's state as ``prepare`` packed it, copied; other state as it is."""
    if not isinstance(entries, _Kept):
        return entries
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in entries.value.items()}


def complete(optimizer):
    """Give what an older version pickled, or torch, the options that it did not know."""
    name, base = next(iter(optimizer.bases.items()))
    arguments = inspect.signature(type(optimizer)).parameters.items()
    shared = {k: v.default for k, v in arguments if k in CHECKS or k == "backend"}
    for key, default in {"base": name, **base.options, **shared}.items():
        optimizer.defaults.setdefault(key, default)
    for group in optimizer.param_groups:
        # a group of torch's has no lookahead, not even none
        bare = "lookahead" not in group
        for key, value in optimizer._defaults(group).items():
            if bare or not is_lookahead_entry(key):
                group.setdefault(key, value)


def adopt(optimizer):
    """Move loaded or unpickled state into buckets of its own."""
    for group in optimizer.param_groups:
        group.update({k: v.value for k, v in group.items() if isinstance(v, _Kept)})
    for p, entries in optimizer.state.items():
        optimizer.state[p] = unpacked(entries)
    key = optimizer.buckets.key

    def has_all(group, method):
        keys = {key(name) for name in method.state}
        held = (optimizer.state[p].keys() for p in group["params"] if p in optimizer.state)
        return all(map(keys.issubset, held))

    # positions that are missing start where the parameters are at the first step, not now
    optimizer.with_state(has_all)
