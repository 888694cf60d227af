# SPDX-License-Identifier: MIT
"""What the table of bad inputs is made of: its rows, and the optimizers that each is tried on."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch.nn.parameter import is_lazy

import emanest
from helpers import LR, METHODS, bits, content, differing, parameters, params_of, run, set_gradients

EMA = METHODS["ema"]
SHAPES = [(4, 3), (3, 4), (2, 2)]

OURS = ("AdamW", "SGD", "Muon", "NorMuon")
ELEMENTWISE = ("AdamW", "SGD")
MATRICES = ("Muon", "NorMuon")
EVERY = (*OURS, "Wrap")


class Row(NamedTuple):
    """A row of the table: a number of CONTRACT 4.2, what is tried, and the check of it."""

    number: int
    what: str
    check: Callable[[str], None]  # of an optimizer, by its name
    on: tuple[str, ...] = EVERY
    marks: tuple = ()


def make(name, params, lookahead=EMA, inner=torch.optim.AdamW, **options):
    """An optimizer by its name."""
    # what is bad is so whatever the number of iterations, which take the most time
    few = {"ns_steps": 2} if name in MATRICES else {}
    options = {"lr": LR, **few, **options}
    if name == "Wrap":
        return emanest.Wrap(inner(params, **options), lookahead)
    return getattr(emanest, name)(params, lookahead=lookahead, **options)


def matrices(dtype=torch.float32):
    return parameters(dtype, SHAPES)


def ready(name, steps=2, build=make, dtype=torch.float32, **options):
    """An optimizer of two groups after some steps, with gradients for the next one."""
    first, *others = matrices(dtype)
    groups = [{"params": [first]}, {"params": others, "lr": LR / 2}]
    optimizer = build(name, groups, **options)
    run(optimizer, range(steps))
    set_gradients(params_of(optimizer), steps)
    return optimizer


@contextlib.contextmanager
def refused(optimizer, error, match):
    """What is done in a ``with`` block is an error that changes nothing."""
    before = content(optimizer)
    with pytest.raises(error, match=match):
        yield
    assert differing(content(optimizer), before) == []


def goes_on(optimizer, twin, steps=range(2, 5)):
    """Training goes on as that of a twin to which nothing has happened."""
    assert_same(optimizer, twin)
    for each in (optimizer, twin):
        run(each, steps)
    assert_same(optimizer, twin)


@functools.cache
def undisturbed(name, taken, **options):
    """Contents of ``ready(name, taken)``, and after three more steps: those of a twin for many."""
    twin = ready(name, taken, **options)
    before = content(twin)
    run(twin, range(taken, taken + 3))
    return before, content(twin)


def goes_on_undisturbed(optimizer, name, taken=2, **options):
    """Training of what was ``ready`` goes on as if nothing had happened to it."""
    before, after = undisturbed(name, taken, **options)
    assert differing(content(optimizer), before) == []
    run(optimizer, range(taken, taken + 3))
    assert differing(content(optimizer), after) == []


def assert_same(optimizer, other):
    assert differing(content(optimizer), content(other)) == []


def options_of(name):
    return inspect.signature(getattr(emanest, name)).parameters


def described(value):
    """Anything as text, tensors by their bits."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or is_lazy(value):
            return str((type(value), value.dtype))
        return str(bits(value.resolve_conj().resolve_neg()))
    if isinstance(value, dict):
        return str({k: described(v) for k, v in value.items()})
    if isinstance(value, (list, tuple, set)):
        return str([described(v) for v in value])
    return repr(value)


def options_for(name):
    """Torch's SGD inside a Wrap, where its AdamW cannot do what is asked."""
    return {"inner": torch.optim.SGD} if name == "Wrap" else {}


# ---- kinds of checks ----------------------------------------------------------------------------


def not_made(given, error, match, **options):
    """``make(name, given())`` is an error that leaves what was given as it was."""

    def check(name):
        params = given()
        before = described(params)
        with pytest.raises(error, match=match):
            make(name, params, **options)
        assert described(params) == before

    return check


def not_added(given, error, match, **options):
    """The group of ``given()`` is not added to an optimizer at work, which goes on."""

    def check(name):
        optimizer = ready(name, **options)
        with refused(optimizer, error, match):
            optimizer.add_param_group({"params": given()})
        goes_on_undisturbed(optimizer, name, **options)

    return check


def bad_option(option, value, error, match):
    """An option is refused by the constructor and in a late group."""

    def check(name):
        with pytest.raises(error, match=match):
            make(name, matrices(), **{option: value})
        optimizer = ready(name)
        with refused(optimizer, error, match):
            optimizer.add_param_group({"params": matrices(), option: value})
        goes_on_undisturbed(optimizer, name)

    return check


def not_stepped(spoil, error, match, mend=None, steps=(0, 2), **options):
    """A step is an error, the first one too; mended, training goes on.

    Without ``mend`` the groups are put back as they were.
    """

    def check(name):
        for taken in steps:
            optimizer = ready(name, taken, **options)
            groups = [dict(group) for group in optimizer.param_groups]
            spoil(optimizer)
            with refused(optimizer, error, match):
                optimizer.step()
            assert bool(optimizer.state) == (taken > 0)
            for group, old in zip(optimizer.param_groups, groups, strict=True):
                group.update({} if mend else old)
            if mend:
                mend(optimizer)
            goes_on_undisturbed(optimizer, name, taken, **options)

    return check


def not_loaded(corrupt, error, match):
    """A spoilt checkpoint is an error, and training goes on from before."""

    def check(name):
        source, optimizer = ready(name, 3), ready(name)
        with refused(optimizer, error, match):
            optimizer.load_state_dict(corrupt(source.state_dict()))
        goes_on_undisturbed(optimizer, name)

    return check
