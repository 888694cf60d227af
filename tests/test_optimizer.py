# SPDX-License-Identifier: MIT
"""What users of ``torch.optim`` rely on: closures, missing and broken gradients, hooks."""

import collections

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import emanest
import helpers
from helpers import METHODS, bits, content, differing, params_of, run

BASES = {"adamw": helpers.adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}

each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("base", BASES)


def make(base, method, dtype=torch.float32, steps=0):
    optimizer = BASES[base](helpers.parameters(dtype), METHODS[method])
    run(optimizer, range(steps))
    return optimizer


# ---- closures and gradients ---------------------------------------------------------------------


@each_method
@each_base
def test_a_closure_is_called_once_at_y(method, base):
    with_closure, without = make(base, method, steps=5), make(base, method, steps=5)
    ys = [bits(p) for p in params_of(without)]
    calls, loss = [], torch.tensor(3.0)

    def closure():
        calls.append((torch.is_grad_enabled(), [bits(p) for p in params_of(with_closure)] == ys))
        helpers.set_gradients(params_of(with_closure), 5)
        return loss

    with_closure.zero_grad()
    with torch.no_grad():
        assert with_closure.step(closure=closure) is loss
    assert calls == [(True, True)]
    run(without, [5])
    assert differing(content(with_closure), content(without)) == []
    assert without.step() is None


@each_method
@each_base
def test_a_closure_that_raises_changes_nothing(method, base):
    def closure():
        helpers.set_gradients(params_of(optimizer), 5)
        raise ZeroDivisionError

    for steps in (0, 5):
        optimizer = make(base, method, steps=steps)
        before = content(optimizer)
        with pytest.raises(ZeroDivisionError):
            optimizer.step(closure)
        assert differing(content(optimizer), before) == []


@each_method
@each_base
def test_a_parameter_without_gradient_is_left_out(method, base):
    """It keeps its value, state and scalars; the others do not notice."""
    optimizer, other = make(base, method, steps=5), make(base, method, steps=5)
    left = params_of(optimizer)[0]
    kept = {k: bits(v) for k, v in {"p": left, **optimizer.state[left]}.items()}
    for each in (optimizer, other):
        helpers.set_gradients(params_of(each), 5)
    left.grad = None
    for each in (optimizer, other):
        each.step()
    assert {k: bits(v) for k, v in {"p": left, **optimizer.state[left]}.items()} == kept
    mine, theirs = content(optimizer), content(other)
    for key in differing(mine, theirs):
        assert key.startswith(("/values/0", "/state/0"))


def with_lazy_layer(base, lazy):
    """A run whose second layer takes part from the second step on, and has no shape before."""
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), (nn.LazyLinear(2) if lazy else nn.Linear(4, 2))
    optimizer = BASES[base](nn.Sequential(*layers).parameters(), METHODS["ema"])
    for t in range(4):
        hidden = layers[0](torch.full((1, 3), t + 1.0))
        if t == 1:
            layers[1](hidden)
            for p in layers[1].parameters():
                nn.init.constant_(p, 0.5)
        optimizer.zero_grad()
        (layers[1](hidden) if t else hidden).square().sum().backward()
        optimizer.step()
        with optimizer.at_iterate():
            pass
    return content(optimizer)


@each_base
@pytest.mark.parametrize("watch", ["C++", "Python"])
def test_a_lazy_parameter_is_stepped_once_it_has_a_shape(base, watch, monkeypatch):
    """As torch steps it; until then the others go on without it."""
    if watch == "Python":
        monkeypatch.setattr(emanest.step.select, "Guard", emanest.backends.guards._Guard)
    assert differing(with_lazy_layer(base, True), with_lazy_layer(base, False)) == []


@each_method
@each_base
def test_to_maximize_is_to_minimize_the_opposite(method, base):
    upwards, downwards = make(base, method), make(base, method)
    for group in upwards.param_groups:
        group["maximize"] = True
    for t in range(9):
        for optimizer in (upwards, downwards):
            helpers.set_gradients(params_of(optimizer), t)
        for p in params_of(upwards):
            p.grad.neg_()
        for optimizer in (upwards, downwards):
            optimizer.step()
    assert set(differing(content(upwards), content(downwards))) == {"/param_groups/0/maximize"}


# ---- gradients that are not finite --------------------------------------------------------------


def poison(optimizer, t, value):
    helpers.set_gradients(params_of(optimizer), t)
    params_of(optimizer)[0].grad[0, 1] = value


@each_method
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("make", [helpers.adamw, helpers.sgd])
def test_a_skipped_step_did_not_happen(method, value, make):
    optimizer, without = (
        make(helpers.parameters(), METHODS[method], nonfinite="skip") for _ in range(2)
    )
    for t in range(9):
        if t % 2:
            before = content(optimizer)
            poison(optimizer, t, value)
            optimizer.step()
            assert differing(content(optimizer), before) == []
        for each in (optimizer, without):
            run(each, [t])
    assert differing(content(optimizer), content(without)) == []


@pytest.mark.parametrize("make", [helpers.adamw, helpers.sgd])
def test_one_group_that_skips_skips_all(make):
    a, b, _ = helpers.parameters()
    groups = [{"params": [b]}, {"params": [a], "nonfinite": "skip"}]
    optimizer = make(groups, METHODS["ema"])
    run(optimizer, range(2))
    before = content(optimizer)
    helpers.set_gradients(params_of(optimizer), 2)
    a.grad[0, 1] = float("nan")
    optimizer.step()
    assert differing(content(optimizer), before) == []


@each_method
@pytest.mark.parametrize("make", [helpers.adamw, helpers.sgd])
def test_raise_names_the_parameters_and_changes_nothing(method, make):
    named = list(zip("abc", helpers.parameters(), strict=True))
    optimizer = make(named, METHODS[method], nonfinite="raise")
    run(optimizer, range(2))
    before = content(optimizer)
    poison(optimizer, 2, float("nan"))
    params_of(optimizer)[2].grad.fill_(float("inf"))
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 \('a'\), .* 2 .* \('c'\)$"):
        optimizer.step()
    assert differing(content(optimizer), before) == []


@each_method
@each_base
def test_nan_spreads_to_its_own_element_only(method, base):
    optimizer, other = make(base, method, steps=2), make(base, method, steps=2)
    poison(optimizer, 2, float("nan"))
    helpers.set_gradients(params_of(other), 2)
    for each in (optimizer, other):
        each.step()
    for i, (p, q) in enumerate(zip(params_of(optimizer), params_of(other), strict=True)):
        poisoned = torch.zeros_like(p, dtype=torch.bool)
        if i == 0:
            poisoned[0, 1] = True
        assert torch.equal(p.isnan(), poisoned)
        assert torch.equal(p[~poisoned], q[~poisoned])


# ---- hooks, zero_grad, repr ---------------------------------------------------------------------


@each_base
def test_hooks_run_once_per_step(base):
    optimizer = make(base, "ema", steps=1)
    inner = getattr(optimizer, "optimizers", [])
    counts = collections.Counter()

    def count(name):
        return lambda *_: counts.update([name])

    handles = [
        register_optimizer_step_pre_hook(count("global pre")),
        register_optimizer_step_post_hook(count("global post")),
        *(o.register_step_pre_hook(count(f"pre {i}")) for i, o in enumerate([optimizer, *inner])),
        *(o.register_step_post_hook(count(f"post {i}")) for i, o in enumerate([optimizer, *inner])),
    ]
    try:
        run(optimizer, range(1, 4))
    finally:
        for handle in handles:
            handle.remove()
    assert set(counts.values()) == {3}
    assert len(counts) == len(handles)
    run(optimizer, [4])
    assert set(counts.values()) == {3}


@each_base
def test_a_pre_hook_may_replace_the_closure(base):
    optimizer, plain = make(base, "ema"), make(base, "ema")

    def closure():
        helpers.set_gradients(params_of(optimizer), 0)
        return 5.0

    # as in torch, a hook sees the optimizer among the arguments
    optimizer.register_step_pre_hook(lambda _, args, kwargs: ((*args, closure), kwargs))
    assert optimizer.step() == 5.0
    run(plain, [0])
    assert differing(content(optimizer), content(plain)) == []


@each_base
def test_zero_grad_is_torchs(base):
    optimizer = make(base, "ema", steps=1)
    grads = [p.grad for p in params_of(optimizer)]
    optimizer.zero_grad(set_to_none=False)
    assert all(
        p.grad is g and not g.any() for p, g in zip(params_of(optimizer), grads, strict=True)
    )
    optimizer.zero_grad()
    assert [p.grad for p in params_of(optimizer)] == [None] * 3


@each_base
def test_repr_shows_the_options_of_every_group(base):
    optimizer = make(base, "ema")
    lines = [line.strip() for line in repr(optimizer).splitlines()]
    assert lines[0] == f"{type(optimizer).__name__} ("
    group = optimizer.param_groups[0]
    assert {f"{k}: {v}" for k, v in group.items() if k != "params"} <= set(lines)
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("cls", [emanest.AdamW, emanest.SGD, emanest.Muon, emanest.NorMuon])
def test_a_class_of_the_users_between_an_optimizer_and_its_base_is_initialised(cls):
    class Between(emanest.Optimizer):
        def __init__(self, params, defaults, lookahead=None):
            super().__init__(params, defaults, lookahead)
            self.given = defaults["lr"], lookahead

    method = METHODS["ema"]
    mine = type("Mine", (cls, Between), {})
    assert mine([nn.Parameter(torch.ones(2, 2))], 0.5, lookahead=method).given == (0.5, method)
