# SPDX-License-Identifier: MIT
"""What a saved group and a parameter's saved state must be to be loaded here."""

import math

import torch

from ..backends import shards, storage
from ..groups import check_fit, check_method, is_lookahead_entry, state_names
from ..methods.given import group_entries, method_of
from ..methods.method import NO_LOOKAHEAD
from ..state.bucket import forget_others, kind_of, shaped
from ..state.clock import CLOCK
from ..values import flag, real

# stands in a state dict for a callable, which no checkpoint can hold
CALLABLE = "callable: not saved"
# the entry of a saved group that says how it is to be read; without it, as format 1
VERSION, NEWEST = "lookahead_version", 1
# options that groups of only one kind of torch's optimizers have
TELLTALES = {"dampening": "SGD", "betas": "Adam", "ns_steps": "Muon"}
# modules that torch puts around others (DDP, compile, FSDP1, checkpointing): parts of names alone
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# parameters that a message lists
LISTED = 5


def is_callable(saved):
    """Whether a saved option was a callable."""
    # what users put into groups may compare in other ways
    return isinstance(saved, str) and saved == CALLABLE


def merged(optimizer, index, live, saved):
    """The saved group, completed from the live one by what is ours or an option's.

    What else it lacks stays away, as in torch: a scheduler's ``initial_lr``, a user's own entries.
    """
    params = live["params"]
    version = saved.get(VERSION, NEWEST)
    if version not in range(1, NEWEST + 1):
        raise ValueError(
            f"group {index} of the checkpoint has format {version!r} ({VERSION!r}), this emanest "
            f"reads formats up to {NEWEST}: it was written by a newer one, update this"
        )
    saved = {k: v for k, v in saved.items() if k != VERSION}
    _check_names(index, live, saved)
    if saved.get("base", live.get("base")) != live.get("base"):
        raise ValueError(
            f"group {index} of the checkpoint was stepped by {saved['base']!r}, this optimizer's "
            f"by {live.get('base')!r}: give it the same bases, or start without the checkpoint"
        )
    _check_writer(optimizer, index, saved, live)
    starts = saved.get("lookahead") is None
    if starts:
        # written without a lookahead, by us or by torch: this optimizer's starts
        saved = {k: v for k, v in saved.items() if k in CLOCK or not is_lookahead_entry(k)}
        saved = {**group_entries(method_of(live), live), **saved}
    for key, value in saved.items():
        if is_callable(value) and not callable(live.get(key)):
            raise ValueError(
                f"{key} of group {index} was a callable when the checkpoint was written: give this "
                "optimizer the same callable before loading"
            )
    saved = {k: live[k] if is_callable(v) else v for k, v in saved.items()}
    known = {k for k in optimizer._defaults(live) if not is_lookahead_entry(k)}
    same = not starts and saved["lookahead"] == live.get("lookahead")
    method = method_of({**live, **saved}) if same else NO_LOOKAHEAD
    known.update(method.settings())
    kept = {**{k: v for k, v in live.items() if k in known}, **CLOCK}
    # what an older version did not note shows in the base's options beside it
    kept.update(method.note_base({**kept, **saved}))
    # where a step runs, and what parameters are called, are matters of this program
    here = {k: live[k] for k in ("backend", "param_names") if k in live}
    base = optimizer._base(live)
    group = base.checked({**kept, **saved, **here})
    method = check_method(group, base)
    check_fit(index, {**group, "params": params}, base)
    flag("train_mode", group["train_mode"])
    for key in ("lookahead_t", *method.memory_entries):
        if key not in group:
            raise ValueError(f"group {index} of the checkpoint has no {key!r}")
        value = group[key]
        real(key, value.item() if isinstance(value, torch.Tensor) else value, 0)
    return group


def bare(name):
    """A parameter's name without the modules that torch puts around others."""
    *path, last = str(name).split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), last])


def _check_names(index, live, saved):
    """Refuse the state of parameters of other names, or of the same names in another order."""
    names, here = saved.get("param_names"), live.get("param_names")
    if not names:
        return
    if not isinstance(names, (list, tuple)):
        raise TypeError(f"param_names of group {index} of the checkpoint must be a list")
    if len(names) != len(live["params"]):
        raise ValueError(
            f"group {index} of the checkpoint has {len(names)} names for {len(live['params'])} "
            "parameters"
        )
    if here is None:
        return
    pairs = [(a, b) for a, b in zip(names, here, strict=False) if bare(a) != bare(b)]
    if not pairs:
        return
    how, fix = " in their order", "give this optimizer the parameters in that order"
    if sorted(map(bare, names)) != sorted(map(bare, here)):
        how, fix = "", "if only names have changed, remove 'param_names' from its groups"
    listed = "; ".join(f"saved {a!r}, here {b!r}" for a, b in pairs[:LISTED])
    more = f"; and {len(pairs) - LISTED} more" * (len(pairs) > LISTED)
    raise ValueError(
        f"parameter names of group {index} differ from the checkpoint's{how}: {listed}{more}; {fix}"
    )


def _check_writer(optimizer, index, saved, live):
    """Refuse a group of another optimizer of torch, whose state may go by the same names."""
    if "base" in saved:
        return
    options = optimizer._base(live).options
    here = sorted(k for k in TELLTALES if k in options)
    there = sorted(k for k in TELLTALES if k in saved)
    if here and there and not set(here) & set(there):
        raise ValueError(
            f"group {index} of the checkpoint is one of {TELLTALES[there[0]]}: it has "
            f"{there[0]!r} and lacks {sorted(options.keys() - saved.keys())}; start this optimizer "
            "without it"
        )


def is_finite(value):
    """Whether a tensor holds finite values only; of a sharded one those that are here."""
    here = getattr(value, "to_local", lambda: value)()
    # formats of 8 bits and tensor subclasses are an inner optimizer's own affair
    if type(here) is not torch.Tensor or here.dtype.itemsize == 1 or here.is_meta:
        return True
    return bool(here.isfinite().all())


def _check_storage(name, value):
    if isinstance(value, torch.Tensor):
        shards.check_storage(name, storage.waited(value))


def checked_entries(optimizer, where, group, p, entries, starts):
    """A parameter's saved state without empty entries, and the lookahead state that it lacks.

    Where the lookahead ``starts``, what is left of an earlier one goes.
    """
    entries, key = {k: v for k, v in entries.items() if v is not None}, optimizer.buckets.key
    if starts:
        forget_others(entries, key, ())
    method, base = method_of(group), optimizer._base(group)
    own = {key(name) for name in method.state}
    needed = state_names(group, method, base)
    shapes = {key(n): shaped(p, kind_of(n, p, group)).shape for n in (*needed, "y")}
    entries.setdefault(key("lookahead"), 0.0)
    if base.uncounted is not None:
        entries.setdefault(key("step"), base.uncounted)
    missing = {key(name) for name in (*needed, "step")} - own - entries.keys()
    if missing:
        raise ValueError(
            f"the checkpoint has no {sorted(missing)} for {where}, only {sorted(entries)}; was it "
            "written by another optimizer?"
        )
    for name, low in (("step", 0), ("lookahead", -math.inf)):
        what, value = f"{key(name)!r} of {where}", entries[key(name)]
        _check_storage(what, value)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        real(what, value, low)
    for name in shapes.keys() & entries.keys():
        what, value = f"{name!r} of {where}", entries[name]
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{what} must be a tensor, got {value!r}")
        if value.shape != shapes[name]:
            raise ValueError(
                f"{what} has shape {tuple(value.shape)} in the checkpoint, the parameter needs "
                f"{tuple(shapes[name])}"
            )
        _check_storage(what, value)
    return entries, own - entries.keys()
