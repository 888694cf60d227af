# SPDX-License-Identifier: MIT
"""Rows 71 to 74 of the table of bad inputs: no memory, interrupts, other defaults."""

import copy
import math
import sys

import pytest
import torch

import emanest
from bad_input import (
    EMA,
    Row,
    assert_same,
    goes_on,
    make,
    matrices,
    options_for,
    ready,
    refused,
)
from emanest import Wrap
from helpers import (
    LR,
    content,
    differing,
    gradients,
    params_of,
    run,
    set_gradients,
    values,
)

# ---- memory and interrupts ----------------------------------------------------------------------


def out_of_memory(name):
    """All state is allocated before any of it is shown, at each allocation that may fail."""

    def first(optimizer):
        set_gradients(params_of(optimizer), 0)
        return optimizer.step

    def check(optimizer, twin):
        assert not optimizer.state
        goes_on(optimizer, twin, range(3))

    fails_everywhere((emanest.state.bucket, "_views"), lambda: mixed(name), first, check)


def out_of_memory_in_eval(name):
    """Parameters of all groups are at y, or all at x."""

    def check(optimizer, twin):
        assert all(group["train_mode"] for group in optimizer.param_groups)
        goes_on(optimizer, twin)

    def trained():
        optimizer = mixed(name)
        run(optimizer, range(2))
        return optimizer

    fails_everywhere((emanest.backends, "call"), trained, lambda optimizer: optimizer.eval, check)


def out_of_memory_in_train(name):
    """Where weights were loaded meanwhile, y is computed from them, of all groups or of none."""

    def loaded():
        optimizer = mixed(name)
        run(optimizer, range(2))
        optimizer.eval()
        with torch.no_grad():
            for p in params_of(optimizer):
                p.mul_(2)
        return optimizer

    def check(optimizer, twin):
        assert not any(group["train_mode"] for group in optimizer.param_groups)
        optimizer.train()
        twin.train()
        goes_on(optimizer, twin)

    fails_everywhere((emanest.backends, "call"), loaded, lambda optimizer: optimizer.train, check)


def mixed(name):
    """An optimizer with four buckets, none of which share a call."""
    dtypes = torch.float32, torch.float64, torch.bfloat16, torch.float16
    params = [matrices(dtype)[0] for dtype in dtypes]
    return make(name, [{"params": params[::2]}, {"params": params[1::2]}])


def fails_everywhere(function, make_ready, prepared, check):
    """A call is an error that changes nothing, at whichever call of a function it fails."""
    failures = 0
    while True:
        optimizer, twin = make_ready(), make_ready()
        call = prepared(optimizer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*function, failing_at(getattr(*function), failures))
            try:
                with refused(optimizer, torch.OutOfMemoryError, "out of memory"):
                    call()
            except pytest.fail.Exception:
                break
        check(optimizer, twin)
        failures += 1
    assert failures >= 4


def failing_at(original, n):
    def replacement(*args, **options):
        nonlocal n
        n -= 1
        if n < 0:
            raise torch.OutOfMemoryError("out of memory")
        return original(*args, **options)

    return replacement


class Interrupt:
    """Raises KeyboardInterrupt before the n-th line of ours that runs in a ``with`` block."""

    def __init__(self, n):
        self.n, self.seen = n, 0

    def _trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(emanest.__path__[0]):
            return None
        if event == "line":
            if self.seen >= self.n:
                sys.settrace(None)
                raise KeyboardInterrupt
            self.seen += 1
        return self._trace

    def __enter__(self):
        self.before, self.nesting = sys.gettrace(), _nesting()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)
        # what interrupts a ``with`` where it ends is no error within it: autocast is not left, and
        # would keep its casts of weights from here on
        while _nesting() > self.nesting:
            torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


def _nesting():
    """How many blocks of autocast this is in."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def interrupted(work, check, times=15):
    """Interrupt ``work()`` before so many of its lines, evenly spread, and check each time."""
    call, *_ = work()
    with Interrupt(math.inf) as uninterrupted:
        call()
    lines = uninterrupted.seen
    assert lines > times
    for i in range(times):
        call, *rest = work()
        with pytest.raises(KeyboardInterrupt), Interrupt(i * lines // times):
            call()
        check(*rest)


def interrupted_construction(name):
    """The parameters, groups and an inner optimizer are as before, and can be used."""

    def work():
        params = matrices()
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        inner = torch.optim.AdamW(groups, lr=LR) if name == "Wrap" else None
        build = (lambda: Wrap(inner, EMA)) if inner else (lambda: make(name, groups))
        return build, build

    def trained(build):
        optimizer = build()
        run(optimizer, range(2))
        return content(optimizer)

    def check(build):
        assert differing(trained(build), expected) == []

    expected = trained(work()[1])
    interrupted(work, check)


def interrupted_first_step(name):
    """No parameter's state is half there, and what is saved before can be loaded after."""

    def work():
        optimizer = ready(name, 0)
        return optimizer.step, optimizer

    def check(optimizer):
        # an inner optimizer's own state is its own affair
        assert {ours(entries) for entries in optimizer.state.values()} <= {frozenset(), *complete}
        for p, start in zip(params_of(optimizer), values(before), strict=True):
            with torch.no_grad():
                p.copy_(start)
        optimizer.load_state_dict(copy.deepcopy(saved))
        goes_on(optimizer, ready(name, 2))

    def ours(entries):
        return frozenset(k for k in entries if name != "Wrap" or "lookahead" in k)

    complete = {ours(entries) for entries in ready(name, 1).state.values()}
    before = ready(name, 2)
    saved = before.state_dict()
    interrupted(work, check)


def interrupted_group(name):
    def work():
        optimizer = ready(name)
        late = {"params": matrices(), "lr": 0.5}
        return lambda: optimizer.add_param_group(late), optimizer

    def check(optimizer):
        goes_on(optimizer, ready(name))

    interrupted(work, check)


def interrupted_load(name):
    """All or nothing."""

    def work():
        optimizer = ready(name)
        return lambda: optimizer.load_state_dict(saved), optimizer

    def check(optimizer):
        goes_on(optimizer, ready(name))

    saved = ready(name, 4).state_dict()
    interrupted(work, check)


def interrupted_eval(name):
    """The parameters are at y or at x, and the mode says which."""

    def work():
        optimizer = ready(name)
        return optimizer.eval, optimizer

    def check(optimizer):
        optimizer.train()
        goes_on(optimizer, ready(name))

    interrupted(work, check)


def interrupted_train(name):
    """It can be called again, whether y was kept or weights were loaded meanwhile."""

    def work(load):
        optimizer = ready(name)
        optimizer.eval()
        if load:
            with torch.no_grad():
                params_of(optimizer)[0].mul_(2)
        return optimizer.train, optimizer

    for load in (False, True):
        expected = work(load)[1]
        expected.train()

        def check(optimizer, expected=expected):
            optimizer.train()
            goes_on(optimizer, copy.deepcopy(expected))

        interrupted(lambda load=load: work(load), check)


def out_of_memory_at_load(name):
    """While it is copied, and while buffers are made for it."""
    saved = ready(name, 4).state_dict()

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    for module, attribute in (
        (emanest.state.bucket, "_views"),
        (emanest.optimizers.checkpoint, "unpacked"),
    ):
        optimizer, twin = ready(name), ready(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, attribute, fail)
            with refused(optimizer, torch.OutOfMemoryError, "out of memory"):
                optimizer.load_state_dict(saved)
        goes_on(optimizer, twin)


# ---- defaults of torch --------------------------------------------------------------------------


def under_defaults(name):
    """Torch's own steps are counted in the default dtype, so here the inner one is SGD."""

    def trained():
        optimizer = make(name, matrices(), **options_for(name))
        run(optimizer, range(2))
        return optimizer

    def train(optimizer):
        for t in range(2, 4):
            for p, g in zip(params_of(optimizer), later[t], strict=True):
                p.grad = g
            optimizer.step()
            with optimizer.at_iterate():
                optimizer.state_dict()
        return content(optimizer)

    later = {t: gradients(matrices(), t) for t in (2, 3)}
    first = gradients(matrices(), 0)
    expected = train(trained())
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "meta")):
        optimizer, fresh = trained(), make(name, matrices(), **options_for(name))
        twin = make(name, matrices(), **options_for(name))
        for p, q, g in zip(params_of(fresh), params_of(twin), first, strict=True):
            p.grad, q.grad = g, g
        twin.step()
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        try:
            fresh.step()
            found = train(optimizer)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        assert differing(found, expected) == []
        assert_same(fresh, twin)


ROWS = [
    Row(71, "out of memory", out_of_memory),
    Row(71, "out of memory at a load", out_of_memory_at_load),
    Row(71, "out of memory in eval()", out_of_memory_in_eval),
    Row(71, "out of memory in train()", out_of_memory_in_train),
    Row(72, "construction", interrupted_construction),
    Row(72, "the first step", interrupted_first_step),
    Row(72, "a late group", interrupted_group),
    Row(72, "a load", interrupted_load),
    Row(72, "eval()", interrupted_eval),
    Row(72, "train()", interrupted_train),
    Row(74, "default dtype and device", under_defaults),
]
