# SPDX-License-Identifier: MIT
"""Evaluations never change a run: eval() writes x, train() brings back y."""

import contextlib
import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import helpers
from emanest import EMANesterov, Lookahead, backends
from helpers import METHODS, adamw, content, differing, params_of, run, same, ulp, values
from optimizer_database import DATABASE

BASES = {"adamw": adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Triton is among them where it interprets: test_triton runs this file so
BACKENDS = [name for name in backends.BACKENDS if backends.find(name, "cpu")[0]]


def quick(backend, entry, dtype, interval):
    """Every dtype on the one back end, everything else in float32."""
    usual = backend == "cpp" and (interval == 1 or dtype == torch.float32)
    return usual or (dtype == torch.float32 and interval == 1)


RUNS = [
    pytest.param(
        *row,
        marks=[] if quick(*row) else [pytest.mark.slow],
        id="-".join(map(str, (*row[:3], "always" if row[3] == 1 else "at times"))),
    )
    for row in itertools.product(BACKENDS, DATABASE.values(), [*DTYPES, torch.complex64], [1, 3])
    if row[1].supports_complex or not row[2].is_complex
]

each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("base", BASES)


def make(base, method, dtype=torch.float32, steps=0, shapes=helpers.SHAPES):
    """An optimizer that has taken some steps; 5 of them leave every method ahead of x."""
    optimizer = BASES[base](helpers.parameters(dtype, shapes), METHODS[method])
    run(optimizer, range(steps))
    return optimizer


def only_the_mode_differs(a, b):
    return {path.rpartition("/")[2] for path in differing(a, b)} == {"train_mode"}


@pytest.mark.parametrize(("backend", "entry", "dtype", "interval"), RUNS)
@each_method
def test_a_run_with_evaluations_equals_a_run_without(
    backend, entry, dtype, interval, method, monkeypatch
):
    """Every step, or every third; bit for bit, and so for all that it leaves behind."""
    monkeypatch.setenv("EMANEST_BACKEND", backend)
    shapes = [(3, 5), (4, 4)] if entry.supports_complex else [(3, 4), (4, 2), (3, 4)]
    evaluated, plain = (
        entry.make(helpers.parameters(dtype, shapes), METHODS[method], lr=helpers.LR)
        for _ in range(2)
    )
    elsewhere = interval > 1
    for t in range(6):
        if t % interval == 0:
            with evaluated.at_iterate():
                elsewhere |= not same(evaluated, plain)
        run(evaluated, [t])
        run(plain, [t])
    # evaluated every time, some were not at y
    assert elsewhere
    assert differing(content(evaluated), content(plain)) == []


@each_method
@pytest.mark.parametrize("base", ["adamw", "wrap"])
def test_a_thousand_evaluations_do_not_drift(method, base):
    optimizer = make(base, method, steps=5, shapes=[(33,)])
    before = content(optimizer)
    optimizer.eval()
    at_x = content(optimizer)
    for _ in range(1000):
        optimizer.train()
        optimizer.eval()
    assert differing(content(optimizer), at_x) == []
    optimizer.train()
    assert differing(content(optimizer), before) == []


@each_method
def test_x_in_float32_is_within_two_ulp_of_y(method):
    # away from zero, where y has the scale of x
    params = [nn.Parameter(p.detach() + 4) for p in helpers.parameters()]
    optimizer = adamw(params, METHODS[method])
    run(optimizer, range(5))
    ys = values(optimizer)
    exact = adamw([nn.Parameter(y.double()) for y in ys], METHODS[method])
    exact.load_state_dict(optimizer.state_dict())
    optimizer.eval()
    exact.eval()
    for x, wide, y in zip(values(optimizer), values(exact), ys, strict=True):
        assert ((x.double() - wide).abs() <= 2 * ulp(y)).all()


@each_method
@each_base
def test_a_second_call_does_nothing(method, base):
    optimizer = make(base, method, steps=5)

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function)
            return function(*args, **(kwargs or {}))

    for mode in (optimizer.eval, optimizer.train):
        mode()
        before, calls = content(optimizer), []
        with Count():
            mode()
        assert calls == []
        assert differing(content(optimizer), before) == []


@each_method
@each_base
def test_before_the_first_step_x_is_y(method, base):
    optimizer = make(base, method)
    before = content(optimizer)
    with optimizer.at_iterate():
        assert len(optimizer.state) == 0
        assert only_the_mode_differs(content(optimizer), before)
    assert differing(content(optimizer), before) == []


@each_method
@each_base
def test_a_first_step_in_eval_mode_ends_at_x(method, base):
    optimizer, plain = make(base, method), make(base, method, steps=1)
    optimizer.eval()
    run(optimizer, [0])
    with plain.at_iterate():
        assert differing(content(optimizer), content(plain)) == []
    optimizer.train()
    assert differing(content(optimizer), content(plain)) == []


@each_method
@each_base
def test_at_iterate_ends_in_the_mode_it_began_in(method, base):
    optimizer = make(base, method, steps=5)
    for enter in (optimizer.train, optimizer.eval):
        enter()
        before = content(optimizer)
        with contextlib.suppress(ZeroDivisionError), optimizer.at_iterate() as inside:
            assert inside is optimizer
            assert not optimizer.param_groups[0]["train_mode"]
            raise ZeroDivisionError
        assert differing(content(optimizer), before) == []


@each_method
@each_base
def test_step_in_eval_mode_is_an_error_and_changes_nothing(method, base):
    optimizer = make(base, method, steps=5)
    optimizer.eval()
    helpers.set_gradients(params_of(optimizer), 5)
    before = content(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode.*train\(\)"):
        optimizer.step(lambda: pytest.fail("the closure was called"))
    assert differing(content(optimizer), before) == []


@each_base
def test_where_y_is_x_nothing_is_copied(base):
    resting = BASES[base](helpers.parameters(), EMANesterov(0.5, 0.9, warmup=100))
    synced = BASES[base](helpers.parameters(), Lookahead(5, 0.5))
    for optimizer in (resting, synced):
        run(optimizer, range(5))
        before = content(optimizer)
        optimizer.eval()
        assert only_the_mode_differs(content(optimizer), before)


@each_method
@each_base
def test_train_frees_the_copy(method, base):
    optimizer = make(base, method, steps=5)
    optimizer.eval()
    key = "lookahead_y" if base == "wrap" else "y"
    copies = [weakref.ref(optimizer.state[p][key]) for p in params_of(optimizer)]
    optimizer.train()
    assert [copy() for copy in copies] == [None] * len(copies)
    assert not any(key in state for state in optimizer.state.values())
