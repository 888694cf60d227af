# SPDX-License-Identifier: MIT
"""Weights written in eval mode with the bits that were there: no edit, whoever wrote them."""

import copy
import weakref

import pytest
import torch
from torch import nn

import helpers
from emanest import GPA, ScheduleFree, Wrap
from emanest.state import modes
from helpers import ALONG, METHODS, adamw, content, differing, params_of, run, same, values

# with these x and y are one, but neither is z
ALL = {**METHODS, "gpa at x": GPA(0.9, 1.0), "schedule free at x": ScheduleFree(1.0)}
BASES = {
    "adamw": adamw,
    "sgd": helpers.sgd,
    "wrap": lambda params, method: Wrap(torch.optim.SGD(params, lr=helpers.LR), method),
}

each_method = pytest.mark.parametrize("method", ALL)


@torch.no_grad()
def swap(optimizer):
    """As averages of weights are evaluated: others in, the old ones back."""
    params, before = params_of(optimizer), values(optimizer)
    for p in params:
        p.mul_(0.5)
    for p, value in zip(params, before, strict=True):
        p.copy_(value)


def load(optimizer):
    model = nn.ParameterList(params_of(optimizer))
    best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


def swap_data(optimizer):
    """Where no trace is left, and say so."""
    params, before = params_of(optimizer), values(optimizer)
    for p, value in zip(params, before, strict=True):
        p.data = value
    optimizer.resync()


RUNS = [
    *(("adamw", write, torch.float32) for write in (swap, load, swap_data)),
    *(("adamw", swap, dtype) for dtype in (torch.bfloat16, torch.complex64)),
    *(("wrap", swap, dtype) for dtype in (torch.float32, torch.bfloat16)),
    ("sgd", load, torch.float32),
]


def parameters(dtype):
    params = helpers.parameters(dtype, [(3, 5), (7,), ()])
    with torch.no_grad():
        params[1][:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    return params


@each_method
@pytest.mark.parametrize(("base", "write", "dtype"), RUNS)
def test_a_run_with_weights_written_back_equals_a_run_without(method, base, write, dtype):
    """At every step: ahead, at rest, at syncs and before the first one."""
    optimizer, plain = (BASES[base](parameters(dtype), ALL[method]) for _ in range(2))
    for t in range(7):
        with optimizer.at_iterate():
            write(optimizer)
        for each in (optimizer, plain):
            run(each, [t])
        assert differing(content(optimizer), content(plain)) == []


@each_method
@pytest.mark.parametrize("steps", [4, 5, 6])
def test_in_a_copy_as_in_the_original(method, steps):
    optimizer = adamw(helpers.parameters(), ALL[method])
    run(optimizer, range(steps))
    before = content(optimizer)
    optimizer.eval()
    for each in (copy.deepcopy(optimizer), optimizer):
        swap(each)
        each.train()
        assert differing(content(each), before) == []


@each_method
@pytest.mark.parametrize("base", ["adamw", "wrap"])
@pytest.mark.parametrize("steps", [4, 5])
def test_an_edit_is_one_of_those_parameters_whose_bits_changed(method, base, steps):
    """In one element, by the least that there is; the others have been written, too."""
    optimizer, plain = (BASES[base](helpers.parameters(), ALL[method]) for _ in range(2))
    for each in (optimizer, plain):
        run(each, range(steps))
        each.eval()
        first = params_of(each)[0]
        if each is optimizer:
            swap(each)
        with torch.no_grad():
            first[1, 1] = torch.nextafter(first[1, 1], first.new_tensor(9.0))
        new = first.detach().clone()
        each.train()
        if method not in ALONG:
            # all positions are there now
            assert torch.equal(first, new)
    assert differing(content(optimizer), content(plain)) == []
    run(optimizer, range(steps, 9))
    run(plain, range(steps, 9))
    assert same(optimizer, plain)


@each_method
def test_what_is_kept_to_compare_with_is_freed(method):
    optimizer = adamw(helpers.parameters(), ALL[method])
    for t in range(6):
        run(optimizer, [t])
        before = {p: list(entries) for p, entries in optimizer.state.items()}
        with optimizer.at_iterate():
            swap(optimizer)
        assert {p: list(entries) for p, entries in optimizer.state.items()} == before


def test_one_copy_is_made_at_a_time(monkeypatch):
    """Of what may be a whole model that was loaded."""
    alive, most = [], []
    x_of = modes.x_of

    def watched(*args):
        x = x_of(*args)
        alive.append(weakref.ref(x))
        most.append(sum(each() is not None for each in alive))
        return x

    optimizer = adamw(helpers.parameters(shapes=[(4,)] * 6), METHODS["ema"])
    run(optimizer, range(3))
    optimizer.eval()
    swap(optimizer)
    monkeypatch.setattr(modes, "x_of", watched)
    optimizer.train()
    assert len(most) == 6
    # the last one and its successor
    assert max(most) <= 2
