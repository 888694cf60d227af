# SPDX-License-Identifier: MIT
"""Optimizer state: which tensors, of which dtype, where; and what users may do to it."""

import collections
import gc
import itertools

import pytest
import torch
from torch import nn

import helpers
from helpers import METHODS, adamw, content, differing, params_of, run, values

BASES = {"adamw": adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}

each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("base", BASES)
fused = pytest.mark.parametrize("base", ["adamw", "sgd"])

SCALARS = {"step": torch.float32, "lookahead": torch.float64}
STATE_DTYPE = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
}


def names(base, method):
    """The state of a parameter, in the words of the rules."""
    momentum = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}[base]
    if method == "schedule free" and base == "sgd":
        momentum = ()
    return {*momentum, *METHODS[method].state}


@each_method
@fused
@pytest.mark.parametrize("dtype", STATE_DTYPE, ids=str)
def test_state_has_the_width_of_float32_at_least(method, base, dtype):
    optimizer = BASES[base](helpers.parameters(dtype), METHODS[method])
    run(optimizer, range(2))
    for p in params_of(optimizer):
        state = {name: (v.dtype, v.shape) for name, v in optimizer.state[p].items()}
        assert state == {
            **dict.fromkeys(names(base, method), (STATE_DTYPE[dtype], p.shape)),
            **{name: (scalar, ()) for name, scalar in SCALARS.items()},
        }


@each_method
@fused
def test_state_of_a_name_is_one_flat_buffer(method, base):
    """With 16-byte alignment, laid out as the parameters are; one per dtype."""
    shapes = [(3, 5), (7,), (), (2, 3, 4, 5)]
    single, half = (
        helpers.parameters(torch.float32, shapes),
        helpers.parameters(torch.float16, shapes),
    )
    single.append(nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)))
    single.append(nn.Parameter(torch.randn(6, 4).t()))
    optimizer = BASES[base]([*single, *half], METHODS[method])
    run(optimizer, range(2))
    for name in (*names(base, method), *SCALARS):
        storages = []
        for params in (single, half):
            views = [optimizer.state[p][name] for p in params]
            storages.append({v.untyped_storage().data_ptr() for v in views})
            if name not in SCALARS:
                assert [v.stride() for v in views] == [p.stride() for p in params]
                assert all(v.data_ptr() % 16 == 0 for v in views)
            spans = sorted((v.data_ptr(), v.data_ptr() + v.numel() * v.itemsize) for v in views)
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert [len(s) for s in storages] == [1, 1]
        assert storages[0] != storages[1]


@each_method
@each_base
def test_only_parameters_that_can_have_gradients_have_state(method, base):
    a, b, frozen = helpers.parameters()
    frozen.requires_grad_(False)
    optimizer = BASES[base]([a, b, frozen], METHODS[method])
    a.grad = torch.ones_like(a)
    optimizer.step()
    # an inner optimizer of torch has state from the first gradient on
    assert set(optimizer.state) == ({a} if base == "wrap" else {a, b})
    assert frozen not in optimizer.state
    with optimizer.at_iterate():
        pass
    assert len(optimizer.state) == (1 if base == "wrap" else 2)


# ---- what users do to it ------------------------------------------------------------------------


@each_method
@fused
def test_state_that_a_user_puts_in_is_used_as_it_is(method, base):
    """Whatever its strides; and it is advanced in place."""
    optimizer, other = (BASES[base](helpers.parameters(), METHODS[method]) for _ in range(2))
    for each in (optimizer, other):
        run(each, range(5))
    p, q = params_of(optimizer)[0], params_of(other)[0]
    mine = {}
    for name in names(base, method):
        mine[name] = torch.randn(5, 3).t()
        optimizer.state[p][name] = mine[name]
        other.state[q][name].copy_(mine[name])
    for each in (optimizer, other):
        run(each, range(5, 9))
    assert all(optimizer.state[p][name] is tensor for name, tensor in mine.items())
    assert differing(content(optimizer), content(other)) == []


@pytest.mark.parametrize("value", [40, 40.0, torch.tensor(40.0), torch.tensor(40)], ids=repr)
def test_step_may_be_set(value):
    optimizer, other = (adamw(helpers.parameters(), METHODS["ema"]) for _ in range(2))
    for each in (optimizer, other):
        run(each, range(5))
    optimizer.state[params_of(optimizer)[1]]["step"] = value
    other.state[params_of(other)[1]]["step"].fill_(40.0)
    for each in (optimizer, other):
        run(each, range(5, 9))
    assert differing(content(optimizer), content(other)) == []
    assert other.state[params_of(other)[1]]["step"].item() == 44


@fused
def test_state_of_another_shape_is_an_error(base):
    optimizer = BASES[base](helpers.parameters(), METHODS["nag"])
    run(optimizer, range(2))
    p = params_of(optimizer)[0]
    optimizer.state[p]["velocity"] = torch.zeros(5, 3)
    before = content(optimizer)
    with pytest.raises(RuntimeError, match=r"'velocity' .* shape \(3, 5\) .* of shape \(5, 3\)"):
        run(optimizer, [2])
    assert differing(content(optimizer), before) == []


def clear(optimizer):
    optimizer.state.clear()


def delete(optimizer):
    for p in params_of(optimizer):
        del optimizer.state[p]


def replace(optimizer):
    optimizer.state = collections.defaultdict(dict)


def empty(optimizer):
    for p in params_of(optimizer):
        optimizer.state[p] = {}


@each_method
@pytest.mark.parametrize(
    ("base", "remove"),
    [(base, remove) for base in ("adamw", "wrap") for remove in (clear, delete, replace, empty)],
)
def test_without_its_state_an_optimizer_starts_afresh(method, base, remove):
    """All but the clock of its groups."""
    optimizer = BASES[base](helpers.parameters(), METHODS[method])
    run(optimizer, range(5))
    remove(optimizer)
    fresh = BASES[base]([nn.Parameter(v) for v in values(optimizer)], METHODS[method])
    clock = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    fresh.param_groups[0].update(clock)
    for each in (optimizer, fresh):
        run(each, range(5, 9))
    assert differing(content(optimizer), content(fresh)) == []


def evaluated(optimizer):
    with optimizer.at_iterate():
        pass


# what may happen before the parameter has a gradient again
BETWEEN = {
    "evaluated": evaluated,
    "measured": lambda optimizer: optimizer.metrics(),
    "saved": lambda optimizer: optimizer.state_dict(),
    "stepped without it": lambda optimizer: None,
}


@each_method
@each_base
@pytest.mark.parametrize("between", BETWEEN)
def test_a_parameter_without_its_state_starts_afresh_whatever_comes_first(method, base, between):
    """And is not moved by it; the others go on."""
    optimizer, plain = (BASES[base](helpers.parameters(), METHODS[method]) for _ in range(2))
    for each in (optimizer, plain):
        run(each, range(5))
        del each.state[params_of(each)[0]]
    before = values(optimizer)
    BETWEEN[between](optimizer)
    assert all(map(torch.equal, values(optimizer), before))
    for each in (optimizer, plain):
        helpers.set_gradients(params_of(each), 5)
        params_of(each)[0].grad = None
        each.step()
    run(optimizer, range(6, 9))
    run(plain, range(6, 9))
    assert differing(content(optimizer), content(plain)) == []
    if base == "adamw":
        # NALA's raw step is no step of the base
        steps = optimizer.state[params_of(optimizer)[0]]["step"].item()
        assert steps == (2 if method == "nala" else 3)


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "method"), [("adamw", "ema"), ("sgd", "gpa"), ("wrap", "nala")])
def test_memory_is_flat_over_300_steps(base, method):
    def in_use():
        gc.collect()
        everything = gc.get_objects()
        # type(): isinstance would wake lazy modules
        tensors = [o for o in everything if issubclass(type(o), torch.Tensor)]
        bytes_ = sum(t.untyped_storage().nbytes() for t in tensors)
        return len(tensors), bytes_, len(everything)

    def go(steps):
        for t in steps:
            optimizer.step()
            if t % 10 == 0:
                with optimizer.at_iterate():
                    optimizer.state_dict()

    optimizer = BASES[base](helpers.parameters(), METHODS[method])
    helpers.set_gradients(params_of(optimizer), 0)
    go(range(20))
    *first, objects = in_use()
    grown = []
    for start in (20, 120, 220):
        go(range(start, start + 100))
        *now, more = in_use()
        assert now == first
        grown.append(more - objects)
        objects = more
    # whatever is kept at each step grows every time, by 100 objects or more; the interpreter and
    # other threads make some of their own now and then
    assert min(grown) < 50
