# SPDX-License-Identifier: MIT
"""Wrapped steps that cannot be taken change nothing, and training goes on afterwards."""

import copy

import pytest
import torch
from torch import nn, optim

import helpers
from emanest import NAG, Wrap
from helpers import METHODS, content, differing, params_of, run, set_gradients

LR = 0.05


def parameters():
    return helpers.parameters(shapes=[(4, 3), (3,)])


def sgd(params):
    return optim.SGD(params, lr=LR, momentum=0.9)


def ready(steps=2):
    """AdamW over one parameter and SGD over the other, with gradients for the next step."""
    first, second = parameters()
    optimizer = Wrap([optim.AdamW([first], lr=LR), sgd([second])], METHODS["ema"])
    run(optimizer, range(steps))
    set_gradients(params_of(optimizer), steps)
    return optimizer


def entry(index, key, value):
    return lambda optimizer: optimizer.param_groups[index].update({key: value})


def sparse(optimizer):
    p = params_of(optimizer)[0]
    p.grad = torch.ones(p.shape).to_sparse()


def reshape(optimizer):
    p = params_of(optimizer)[1]
    p.grad, p.data = None, torch.ones(5)
    p.grad = torch.ones(5)


# what goes wrong -> error; the last of them is raised by the inner optimizer
SPOILS = {
    "lr": (entry(1, "lr", "fast"), TypeError, "lr of group 1 must be a float.*got 'fast'"),
    "lr nan": (entry(1, "lr", torch.nan), ValueError, "Invalid learning rate: nan .lr of group 1"),
    "stepsize": (entry(1, "lookahead_stepsize", 1.0), ValueError, "stepsize must be in"),
    "method": (entry(1, "lookahead", "ema"), ValueError, "lookahead must be one of .*'ema'"),
    "callable": (
        entry(1, "lookahead_stepsize", lambda t: "far"),
        TypeError,
        r"stepsize\(\d\) must be a number, got 'far'",
    ),
    "shape": (reshape, RuntimeError, r"changed shape from \(3,\) to \(5,\)"),
    "eval": (lambda optimizer: optimizer.eval(), RuntimeError, r"step\(\) in eval mode"),
    "sparse": (sparse, RuntimeError, "AdamW.* not support sparse gradients|sparse"),
}


@pytest.mark.parametrize(("spoil", "error", "match"), SPOILS.values(), ids=SPOILS)
def test_a_step_that_cannot_be_taken_changes_nothing(spoil, error, match):
    optimizer = ready()
    spoil(optimizer)
    before = content(optimizer)
    with pytest.raises(error, match=match):
        optimizer.step()
    assert differing(content(optimizer), before) == []


@pytest.mark.parametrize("name", sorted(SPOILS.keys() - {"shape", "eval"}))
@pytest.mark.parametrize("steps", [0, 2])
def test_training_goes_on_after_a_refused_step(name, steps):
    optimizer, plain = ready(steps=steps), ready(steps=steps)
    groups = [{**group} for group in optimizer.param_groups]
    spoil, error, _ = SPOILS[name]
    spoil(optimizer)
    with pytest.raises(error):
        optimizer.step()
    for group, old in zip(optimizer.param_groups, groups, strict=True):
        group.update(old)
    for each in (optimizer, plain):
        run(each, range(steps, 6))
    assert differing(content(optimizer), content(plain)) == []


def before_a_raw_step():
    """NALA about to take a raw step for the first parameter only; the second missed its turn."""
    optimizer = Wrap(sgd(parameters()), METHODS["nala"])
    run(optimizer, range(2))
    set_gradients(params_of(optimizer), 2)
    params_of(optimizer)[1].grad = None
    optimizer.step()
    set_gradients(params_of(optimizer), 3)
    return optimizer


def test_gradients_come_back_if_the_inner_optimizer_fails_beside_a_raw_step():
    """They are taken away from it for a moment."""
    optimizer, plain = before_a_raw_step(), before_a_raw_step()
    grads, before = [p.grad for p in params_of(optimizer)], content(optimizer)
    seen = []

    def fail(*_):
        seen.extend(p.grad for p in params_of(optimizer))
        raise RuntimeError("out of memory")

    handle = optimizer.optimizers[0].register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    handle.remove()
    assert seen[0] is None
    assert seen[1] is grads[1]
    assert all(p.grad is g for p, g in zip(params_of(optimizer), grads, strict=True))
    assert differing(content(optimizer), before) == []
    for each in (optimizer, plain):
        run(each, range(3, 8))
    assert differing(content(optimizer), content(plain)) == []


@pytest.mark.parametrize("steps", [0, 2])
def test_if_the_second_inner_optimizer_fails_the_first_has_stepped(steps):
    """Which then is an edit of its parameters, and training goes on."""
    optimizer, other = ready(steps), ready(steps)

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = optimizer.optimizers[1].register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    handle.remove()
    assert optimizer.param_groups[0]["lookahead_t"] == steps
    alone = copy.deepcopy(other.optimizers[0])
    for p, q in zip(params_of(alone), params_of(other), strict=False):
        p.grad = q.grad
    alone.step()
    with torch.no_grad():
        for p, q in zip(params_of(alone), params_of(other), strict=False):
            q.copy_(p)
            other.state[q].update(alone.state[p])
    for each in (optimizer, other):
        run(each, range(steps, 6))
    assert differing(content(optimizer), content(other)) == []


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW, lambda p: optim.Adagrad(p, lr=0.1)])
def test_parameters_on_the_meta_device_are_refused_at_the_step(make):
    p = nn.Parameter(torch.ones(3, device="meta"))
    optimizer = Wrap(make([p]), NAG(0.5))
    p.grad = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError, match="on the meta device: materialise the model"):
        optimizer.step()
    assert "lookahead" not in optimizer.state.get(p, {})


def test_what_was_stepped_before_another_one_failed_counts_as_edited():
    """A method that keeps a position restarts there, and says so; the other parameter goes on."""
    first, second = parameters()
    optimizer = Wrap([sgd([first]), sgd([second])], METHODS["lookahead"])
    run(optimizer, range(2))
    set_gradients(params_of(optimizer), 2)
    slow = optimizer.state[second]["lookahead_x"].clone()

    def fail(*_):
        raise RuntimeError("out of memory")

    optimizer.optimizers[1].register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    stepped = first.detach().clone()
    with pytest.warns(UserWarning, match="1 parameters were written since the last step"):
        optimizer.eval()
    assert torch.equal(first, stepped)
    assert torch.equal(optimizer.state[first]["lookahead_x"], stepped)
    assert torch.equal(optimizer.state[second]["lookahead_x"], slow)
