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
    original = emanest.bucket._views

    def failing_at(n):
        def views(*args):
            nonlocal n
            n -= 1
            if n < 0:
                raise torch.OutOfMemoryError("out of memory")
            return original(*args)

        return views

    def mixed():
        params = [*matrices(), *matrices(torch.float64)]
        return make(name, [{"params": params[::2]}, {"params": params[1::2]}])

    failures = 0
    while True:
        optimizer, twin = mixed(), mixed()
        set_gradients(params_of(optimizer), 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(emanest.bucket, "_views", failing_at(failures))
            try:
                with refused(optimizer, torch.OutOfMemoryError, "out of memory"):
                    optimizer.step()
            except pytest.fail.Exception:
                break
        assert not optimizer.state
        goes_on(optimizer, twin, range(3))
        failures += 1
    assert failures >= 4


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
        self.before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)


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


def out_of_memory_at_load(name):
    """While it is copied, and while buffers are made for it."""
    saved = ready(name, 4).state_dict()

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    for module, attribute in ((emanest.bucket, "_views"), (emanest.checkpoint, "unpacked")):
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
    Row(72, "construction", interrupted_construction),
    Row(72, "the first step", interrupted_first_step),
    Row(72, "a late group", interrupted_group),
    Row(72, "a load", interrupted_load),
    Row(74, "default dtype and device", under_defaults),
]
