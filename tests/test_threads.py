# SPDX-License-Identifier: MIT
"""Threads that step different optimizers at once get the bits that one thread gets."""

import sys
import threading
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import helpers
from bad_input import EVERY, make, matrices
from emanest import backends
from emanest.backends import eager
from emanest.methods import given
from helpers import METHODS, content, differing, run

THREADS = 8
STEPS = range(8)

LOOKAHEADS = [METHODS[name] for name in ("ema", "nag", "lookahead", "snoo", "gpa", "nala")]
BACKENDS = [name for name in ("cpp", "eager") if backends.find(name, "cpu")[0]]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No back end chosen, no method built yet, and threads that interrupt each other often."""
    monkeypatch.delenv("EMANEST_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_picked", {})
    given._cached.cache_clear()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(works):
    """What some functions return, each called in a thread of its own, all at the same time."""
    start = threading.Barrier(len(works))

    def begin(work):
        torch.set_num_threads(1)
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))


def trained(name, method):
    optimizer = make(name, matrices(), lookahead=method)

    def evaluate():
        with optimizer.at_iterate():
            optimizer.state_dict()

    run(optimizer, STEPS, evaluate)
    return content(optimizer)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_threads_change_no_bit(backend, monkeypatch):
    """First steps and the choice of a back end included."""
    if backend is not None:
        monkeypatch.setenv("EMANEST_BACKEND", backend)
    cases = [(name, method) for method in LOOKAHEADS for name in EVERY]
    expected = [trained(*case) for case in cases]
    for start in range(0, len(cases) - THREADS + 1, THREADS):
        backends._picked.clear()
        given._cached.cache_clear()
        some = slice(start, start + THREADS)
        found = at_once([lambda case=case: trained(*case) for case in cases[some]])
        assert [differing(*pair) for pair in zip(found, expected[some], strict=True)] == [
            []
        ] * THREADS


def failing(together):
    """A back end of which every call of a step waits for the others, and raises."""
    module = types.ModuleType("stub_broken")

    def apply_(*args, **options):
        together.wait(timeout=30)
        raise RuntimeError("no")

    module.apply_ = apply_  # pyright: ignore[reportAttributeAccessIssue]
    return module


def stepped():
    optimizer = helpers.sgd(helpers.parameters(), METHODS["nag"])
    run(optimizer, range(3))
    return content(optimizer)


def messages_of(works):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = at_once(works)
    return found, [str(w.message) for w in caught]


def test_threads_that_meet_a_failure_at_once_warn_once(monkeypatch):
    monkeypatch.setenv("EMANEST_BACKEND", "eager")
    expected = stepped()
    monkeypatch.delenv("EMANEST_BACKEND")
    monkeypatch.setitem(sys.modules, "stub_broken", failing(threading.Barrier(THREADS)))
    rows = {"broken": backends.Backend("stub_broken", ()), "eager": backends.BACKENDS["eager"]}
    monkeypatch.setattr(backends, "BACKENDS", rows)
    found, messages = messages_of([stepped] * THREADS)
    assert messages == [
        "emanest: back end 'broken' failed: RuntimeError: no; 'cpu' tensors use 'eager'"
    ]
    assert all(differing(each, expected) == [] for each in found)
    assert backends.pick("cpu") is eager


def test_threads_that_choose_at_once_warn_once(monkeypatch):
    """Of a back end that takes its time to fail to load."""
    load = backends.importlib.import_module
    begun = threading.Event()

    def slow(name):
        if name == "stub_absent":
            begun.wait(0.05)
            raise ImportError("not here")
        return load(name)

    rows = {"absent": backends.Backend("stub_absent", ()), "eager": backends.BACKENDS["eager"]}
    monkeypatch.setattr(backends, "BACKENDS", rows)
    monkeypatch.setattr(backends.importlib, "import_module", slow)
    found, messages = messages_of([lambda: backends.pick("cpu")] * THREADS)
    assert found == [eager] * THREADS
    assert len(messages) == 1
    assert "'absent' cannot be loaded: not here" in messages[0]
