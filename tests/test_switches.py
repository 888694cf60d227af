# SPDX-License-Identifier: MIT
"""Methods that are switched off, on, or for others in the middle of a run, by a group's entries."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import emanest
import helpers
from emanest import Wrap
from emanest.methods.given import group_entries
from helpers import LR, METHODS, bits, params_of, run, values

# without momentum, for Schedule-Free
STILL = {"lr": LR, "betas": (0.0, 0.99), "weight_decay": 0.1}
SGD = {"lr": LR, "weight_decay": 0.1}

BASES = {
    "adamw": lambda params, method: emanest.AdamW(params, **STILL, lookahead=method),
    "sgd": lambda params, method: emanest.SGD(params, **SGD, lookahead=method),
    "wrap": lambda params, method: Wrap(torch.optim.AdamW(params, **STILL), method),
    "wrap two": lambda params, method: Wrap(
        [torch.optim.SGD(params[:1], **SGD), torch.optim.AdamW(params[1:], **STILL)], method
    ),
    "on device": lambda params, method: emanest.AdamW(
        params, **STILL, lookahead=method, capturable=True
    ),
}

each_method = pytest.mark.parametrize("method", METHODS)
each_mode = pytest.mark.parametrize("mode", ["train", "eval"])
few_bases = pytest.mark.parametrize("base", ["adamw", "wrap"])
# every method on one of our own and in a Wrap, some on the others
PAIRS = [
    *itertools.product(["adamw", "wrap"], METHODS),
    *itertools.product(["sgd", "wrap two"], ["ema", "snoo", "gpa"]),
    *itertools.product(["on device"], ["ema", "schedule free"]),
]


def evaluate(optimizer):
    with optimizer.at_iterate():
        pass


def made(base, method, params=None):
    return BASES[base](params or helpers.parameters(), method and METHODS[method])


def switch(optimizer, method):
    """As users do it: group entries are what a state dict has of a method."""
    for group in optimizer.param_groups:
        group.update(group_entries(method and METHODS[method]))


# all that a method may keep of a parameter
KEPT = {"y", *(name for method in METHODS.values() for name in method.state)}


def kept(optimizer):
    """What is there of it."""
    names = {name for entries in optimizer.state.values() for name in entries}
    return {name.removeprefix("lookahead_") for name in names} & KEPT


def twin_of(optimizer, base, method, saved=None):
    """A new optimizer that begins with the method where the other one is, from its base's state."""
    saved = saved or copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["lookahead"] = None
    for entries in saved["state"].values():
        for name in {n for n in entries if n.removeprefix("lookahead_") in KEPT}:
            del entries[name]
        entries["lookahead"] = 0.0
    return loaded(optimizer, base, method, saved)


def loaded(optimizer, base, method, saved):
    twin = made(base, method, [nn.Parameter(v) for v in values(optimizer)])
    twin.load_state_dict(saved)
    return twin


def state(optimizer):
    return [
        [
            *((name, bits(torch.as_tensor(v))) for name, v in sorted(optimizer.state[p].items())),
            *([bits(p)]),
        ]
        for p in params_of(optimizer)
    ]


def stay(*optimizers, steps=range(5, 9)):
    """They go on alike, with evaluations, and end at the same x."""
    for optimizer in optimizers:
        optimizer.train()
        run(optimizer, steps, each=lambda optimizer=optimizer: evaluate(optimizer))
    first, *others = map(state, optimizers)
    assert all(other == first for other in others)


@pytest.mark.parametrize(("base", "method"), PAIRS)
@each_mode
def test_a_method_that_is_switched_off_leaves_nothing(base, method, mode):
    """In eval mode the run goes on from x, in train mode from y, with the base alone."""
    optimizer = made(base, method)
    run(optimizer, range(5))
    getattr(optimizer, mode)()
    here = values(optimizer)
    switch(optimizer, None)
    # a file that is written now still holds what the method has kept
    assert kept(optimizer)
    twins = twin_of(optimizer, base, None), loaded(optimizer, base, None, optimizer.state_dict())
    for call in (optimizer.eval, optimizer.train, optimizer.metrics):
        call()
        assert all(map(torch.equal, values(optimizer), here))
    assert kept(optimizer) == set()
    assert {float(entries["lookahead"]) for entries in optimizer.state.values()} == {0.0}
    stay(optimizer, *twins)


@pytest.mark.parametrize(("base", "method"), PAIRS)
def test_a_step_may_be_the_first_thing_after_it(base, method):
    optimizer = made(base, method)
    run(optimizer, range(5))
    switch(optimizer, None)
    twin = twin_of(optimizer, base, None)
    run(optimizer, [5])
    run(twin, [5])
    assert state(optimizer) == state(twin)


@each_method
@few_bases
@each_mode
@pytest.mark.filterwarnings("ignore:emanest. the checkpoint has no lookahead state")
def test_switched_on_again_it_starts_afresh(base, method, mode):
    """Not with what it knew: positions of then would pull the parameters back."""
    optimizer = made(base, method)
    run(optimizer, range(5))
    getattr(optimizer, mode)()
    switch(optimizer, None)
    optimizer.train()
    run(optimizer, [5])
    twin = twin_of(optimizer, base, method)
    for group in optimizer.param_groups:
        # its settings have stayed
        group["lookahead"] = METHODS[method].name
    stay(optimizer, twin, steps=range(6, 13))


@each_method
@few_bases
def test_it_leaves_nothing_where_a_parameter_is_replaced_in_the_same_step(base, method):
    optimizer = made(base, method)
    run(optimizer, range(4))
    switch(optimizer, None)
    params = optimizer.param_groups[0]["params"]
    old, params[0] = params[0], nn.Parameter(params[0].detach().clone())
    del optimizer.state[old]
    run(optimizer, [4])
    assert kept(optimizer) == set()


# methods that say in other words where x is; each is left once, and taken up once
CHANGES = [
    *(("ema", "nag"), ("nag", "lookahead"), ("lookahead", "gpa"), ("gpa", "nala")),
    *(("nala", "schedule free"), ("schedule free", "snoo"), ("snoo", "ema window")),
    *(("ema window", "long horizon"), ("long horizon", "ema")),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
@few_bases
@each_mode
@pytest.mark.filterwarnings("ignore:emanest. the checkpoint has no lookahead state")
def test_another_method_starts_where_the_parameters_are(base, before, after, mode):
    optimizer = made(base, before)
    run(optimizer, range(5))
    getattr(optimizer, mode)()
    switch(optimizer, after)
    twin = twin_of(optimizer, base, after)
    here = values(optimizer)
    optimizer.train()
    assert all(map(torch.equal, values(optimizer), here))
    stay(optimizer, twin)


# methods that keep the same positions; nothing is in the way of going on with them
KIN = [("lookahead", "snoo"), ("snoo", "lookahead"), ("gpa", "schedule free")]


@pytest.mark.parametrize(("before", "after"), KIN)
@few_bases
@each_mode
def test_a_method_of_the_same_positions_goes_on_with_them(base, before, after, mode):
    optimizer = made(base, before)
    run(optimizer, range(5))
    y = values(optimizer)
    optimizer.eval()
    x = values(optimizer)
    getattr(optimizer, mode)()
    switch(optimizer, after)
    optimizer.train()
    assert [bits(p) for p in values(optimizer)] == [bits(p) for p in y]
    optimizer.eval()
    assert [bits(p) for p in values(optimizer)] == [bits(p) for p in x]
    optimizer.train()
    run(optimizer, range(5, 9), each=lambda: evaluate(optimizer))
    assert kept(optimizer) == set(METHODS[after].state)


@pytest.mark.parametrize("method", ["ema", "snoo", "gpa"])
@few_bases
@each_mode
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_made_right_then_goes_on_alike(base, method, mode, clone):
    optimizer = made(base, method)
    run(optimizer, range(5))
    getattr(optimizer, mode)()
    switch(optimizer, None)
    copied = clone(optimizer)
    copied.train()
    assert kept(copied) == set()
    stay(optimizer, copied)


@each_method
@few_bases
def test_a_parameter_that_moves_to_a_group_without_a_method_leaves_the_others_theirs(base, method):
    optimizer, still = (
        BASES[base](
            [{"params": helpers.parameters()}, {"params": helpers.parameters(), "lookahead": None}],
            METHODS[method],
        )
        for _ in range(2)
    )
    for each in (optimizer, still):
        run(each, range(5))
    optimizer.eval()
    moved = optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups[1]["params"].insert(0, moved)
    optimizer.train()
    run(still, range(5, 9))
    run(optimizer, range(5, 9), each=lambda: evaluate(optimizer))
    assert state(optimizer)[:2] == state(still)[:2]
    assert {"y", "lookahead_y"}.isdisjoint(optimizer.state[moved])
    assert float(optimizer.state[moved]["lookahead"]) == 0.0


@few_bases
@each_mode
def test_a_parameter_that_moved_to_another_method_is_saved_with_that_ones_x_and_y(base, mode):
    """Beside what the first one has left, for the sake of its neighbours."""
    params = helpers.parameters()

    def grouped(params, count):
        groups = [{"params": params[:count]}, {"params": params[count:]}]
        groups[1]["lookahead"] = METHODS["snoo"]
        return BASES[base](groups, METHODS["ema"])

    optimizer = grouped(params, 2)
    run(optimizer, range(5))
    first, second = optimizer.param_groups
    second["params"].insert(0, first["params"].pop())
    run(optimizer, [5, 6])
    getattr(optimizer, mode)()
    other = grouped([nn.Parameter(v) for v in values(optimizer)], 1)
    other.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other):
        each.train()
        run(each, range(7, 9), each=lambda each=each: evaluate(each))
        each.eval()
    assert [bits(p) for p in params_of(optimizer)] == [bits(p) for p in params_of(other)]


@few_bases
def test_the_state_of_the_base_is_not_copied(base):
    optimizer = made(base, "snoo")
    run(optimizer, range(5))
    before = {
        (p, k): v.data_ptr() for p in params_of(optimizer) for k, v in optimizer.state[p].items()
    }
    switch(optimizer, None)
    run(optimizer, [5])
    assert kept(optimizer) == set()
    for p in params_of(optimizer):
        for name, value in optimizer.state[p].items():
            assert value.data_ptr() == before[p, name]
