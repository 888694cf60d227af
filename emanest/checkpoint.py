"""What goes into a state dict and how it comes back: exact, and all or nothing."""

import contextlib
import inspect
import warnings

import torch

from .bucket import shape_like
from .checks import CHECKS
from .gradients import parameter_name
from .groups import (
    CLOCK,
    check_fit,
    check_method,
    defaults_of,
    is_lookahead_entry,
    state_names,
)
from .lookahead import method_of
from .options import flag, real

# stands in a state dict for a callable, which no checkpoint can hold
CALLABLE = "callable: not saved"
# the entry of a saved group that says how it is to be read; without it, as format 1
VERSION, NEWEST = "lookahead_version", 1
# options that groups of only one kind of torch's optimizers have
TELLTALES = {"dampening": "SGD", "betas": "Adam", "ns_steps": "Muon"}
# parameters that a message lists
_LISTED = 5


class _Raw:
    """Hides state from torch's loader, which would cast it to the parameter's dtype."""

    def __init__(self, entries):
        self.entries = entries


def plain(_, state_dict):
    """Replace callables in the groups of a state dict, note its format; a state_dict post-hook."""
    groups = [
        {**{k: CALLABLE if callable(v) else v for k, v in group.items()}, VERSION: NEWEST}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


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


@contextlib.contextmanager
def all_or_nothing(optimizers):
    """Where a ``with`` block that gives optimizers other groups and state raises, it has not."""
    before = [dict(vars(optimizer)) for optimizer in optimizers]
    try:
        yield
    except BaseException:
        for optimizer, attributes in zip(optimizers, before, strict=True):
            vars(optimizer).update(attributes)
        raise


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
    groups = [_merged(optimizer, i, *pair) for i, pair in enumerate(zip(live, saved, strict=True))]
    state, fresh, spoilt = dict(state_dict["state"]), set(), []
    for index, (group, mine) in enumerate(zip(groups, live, strict=True)):
        for j, (key, p) in enumerate(zip(group["params"], mine["params"], strict=True)):
            where = f"parameter {j} of group {index}"
            if not isinstance(state.get(key, {}), dict):
                raise TypeError(f"state of {where} must be a dict, got {state[key]!r}")
            if state.get(key):
                entries, missing = _checked_entries(optimizer, where, group, p, state[key])
                state[key] = _Raw(entries)
                fresh |= missing
                found = [repr(name) for name, value in entries.items() if not _finite(value)]
                if found:
                    name = parameter_name(mine, index, j)
                    spoilt.append(f"{', '.join(found)} of {name}")
    if fresh:
        warnings.warn(
            f"emanest: the checkpoint has no lookahead state {sorted(fresh)}; it starts afresh",
            stacklevel=4,
        )
    if spoilt:
        more = f" and of {len(spoilt) - _LISTED} more parameters" * (len(spoilt) > _LISTED)
        warnings.warn(
            "emanest: the checkpoint holds NaN or infinite values, which training will keep: "
            f"{'; '.join(spoilt[:_LISTED])}{more}",
            stacklevel=4,
        )
    return {**state_dict, "state": state, "param_groups": groups}


def _merged(optimizer, index, live, saved):
    """The saved group, completed from the live one."""
    params = live["params"]
    version = saved.get(VERSION, NEWEST)
    if version not in range(1, NEWEST + 1):
        raise ValueError(
            f"group {index} of the checkpoint has format {version!r} ({VERSION!r}), this emanest "
            f"reads formats up to {NEWEST}: it was written by a newer one, update this"
        )
    saved = {k: v for k, v in saved.items() if k != VERSION}
    if saved.get("param_names") and live.get("param_names") not in (None, saved["param_names"]):
        raise ValueError(f"parameter names of group {index} differ from the checkpoint's")
    if saved.get("base", live.get("base")) != live.get("base"):
        raise ValueError(
            f"group {index} of the checkpoint was stepped by {saved['base']!r}, this optimizer's "
            f"by {live.get('base')!r}: give it the same bases, or start without the checkpoint"
        )
    _check_writer(optimizer, index, saved, live)
    if saved.get("lookahead") is None:
        # written without a lookahead, by us or by torch: this optimizer's starts
        saved = {k: v for k, v in saved.items() if k in CLOCK or not is_lookahead_entry(k)}
    else:
        live = {
            k: v for k, v in live.items() if not is_lookahead_entry(k) or saved.get(k) == CALLABLE
        }
    for key, value in saved.items():
        if value == CALLABLE and not callable(live.get(key)):
            raise ValueError(
                f"{key} of group {index} was a callable when the checkpoint was written: give this "
                "optimizer the same callable before loading"
            )
    saved = {k: live[k] if v == CALLABLE else v for k, v in saved.items()}
    # where a step runs is a matter of this machine
    here = {"backend": live["backend"]} if "backend" in live else {}
    group = optimizer._checked({**live, **saved, **here})
    method = check_method(group)
    if optimizer.bases:
        check_fit(index, {**group, "params": params}, optimizer.bases)
    flag("train_mode", group["train_mode"])
    for name in ("t", *(method.memory if method else ())):
        key = f"lookahead_{name}"
        if key not in group:
            raise ValueError(f"group {index} of the checkpoint has no {key!r}")
        value = group[key]
        real(key, value.item() if isinstance(value, torch.Tensor) else value, 0)
    return group


def _check_writer(optimizer, index, saved, live):
    """Refuse a group of another optimizer of torch, whose state may go by the same names."""
    if "base" in saved or "base" not in live:
        return
    options = optimizer.bases[live["base"]].options
    here = sorted(k for k in TELLTALES if k in options)
    there = sorted(k for k in TELLTALES if k in saved)
    if there and not set(here) & set(there):
        raise ValueError(
            f"group {index} of the checkpoint is one of {TELLTALES[there[0]]}: it has "
            f"{there[0]!r} and lacks {sorted(options.keys() - saved.keys())}; start this optimizer "
            "without it"
        )


def _finite(value):
    """Whether a tensor holds finite values only; of a sharded one those that are here."""
    here = getattr(value, "to_local", lambda: value)()
    # formats of 8 bits and tensor subclasses are an inner optimizer's own affair
    if type(here) is not torch.Tensor or here.dtype.itemsize == 1 or here.is_meta:
        return True
    return bool(here.isfinite().all())


def _checked_entries(optimizer, where, group, p, entries):
    """A parameter's saved state without empty entries, and the lookahead state that it lacks."""
    entries = {k: v for k, v in entries.items() if v is not None}
    method = method_of(group)
    own = {optimizer._key(name) for name in (method.state if method else ())}
    needed = state_names(optimizer.bases, group)
    names = {optimizer._key(name) for name in needed}
    shapes = {optimizer._key(name): shape_like(name, p).shape for name in (*needed, "y")}
    entries.setdefault(optimizer._key("lookahead"), 0.0)
    uncounted = optimizer._uncounted(group)
    if uncounted is not None:
        entries.setdefault(optimizer._key("step"), uncounted)
    missing = (names | {optimizer._key("step")}) - own - entries.keys()
    if missing:
        raise ValueError(
            f"the checkpoint has no {sorted(missing)} for {where}, only {sorted(entries)}; was it "
            "written by another optimizer?"
        )
    for key in (optimizer._key("step"), optimizer._key("lookahead")):
        value = entries[key]
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        real(f"{key!r} of {where}", value)
    for key in shapes.keys() & entries.keys():
        if not isinstance(entries[key], torch.Tensor):
            raise TypeError(f"{key!r} of {where} must be a tensor, got {entries[key]!r}")
        if entries[key].shape != shapes[key]:
            raise ValueError(
                f"{key!r} of {where} has shape {tuple(entries[key].shape)} in the checkpoint, the "
                f"parameter needs {tuple(shapes[key])}"
            )
    return entries, own - entries.keys()


def unpacked(entries):
    """A parameter's state as ``prepare`` packed it, copied; other state as it is."""
    if not isinstance(entries, _Raw):
        return entries
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in entries.entries.items()}


def complete(optimizer):
    """Give what an older version pickled the options that it did not know."""
    optimizer.defaults.setdefault("base", next(iter(optimizer.bases), None))
    for name, argument in inspect.signature(type(optimizer)).parameters.items():
        known = name in CHECKS or name == "backend"
        if known and argument.default is not argument.empty:
            optimizer.defaults.setdefault(name, argument.default)
    for group in optimizer.param_groups:
        for key, value in defaults_of(group, optimizer).items():
            if not is_lookahead_entry(key):
                group.setdefault(key, value)


def adopt(optimizer):
    """Move loaded or unpickled state into buckets of its own."""
    for p, entries in optimizer.state.items():
        optimizer.state[p] = unpacked(entries)
    for group in optimizer.param_groups:
        method = method_of(group)
        keys = {optimizer._key(name) for name in (method.state if method else ())}
        # positions that are missing start where the parameters are at the first step, not now
        if all(keys <= optimizer.state[p].keys() for p in group["params"] if p in optimizer.state):
            optimizer.housed(group)
