# SPDX-License-Identifier: MIT
"""Parameters that are replaced in their group, or whose group is popped: they go, others stay."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch import nn

import helpers
from bad_input import EVERY, make, matrices
from emanest import AdamW
from emanest.state.edits import Edits
from helpers import METHODS, adamw, bits, content, differing, params_of, run

BASES = {"adamw": adamw, "wrap": helpers.wrap_adamw}

each_method = pytest.mark.parametrize("method", METHODS)
each_optimizer = pytest.mark.parametrize("name", [*EVERY, "Wrap of two"])


def built(name, params, method="ema"):
    """Of two groups; the second has more than one parameter."""
    first, *others = params
    if name == "Wrap of two":
        return helpers.wrap_two([first, *others], METHODS[method])
    return make(name, [{"params": [first]}, {"params": others}], lookahead=METHODS[method])


def new_like(p):
    return nn.Parameter(p.detach().clone())


def replace(optimizer, group, j):
    """Another parameter in place of one, whose state goes."""
    params = optimizer.param_groups[group]["params"]
    old, params[j] = params[j], new_like(params[j])
    optimizer.state.pop(old, None)
    return [old]


def replace_and_move_state(optimizer, group, j):
    params = optimizer.param_groups[group]["params"]
    old, params[j] = params[j], new_like(params[j])
    optimizer.state[params[j]] = optimizer.state.pop(old)
    return [old]


def replace_all(optimizer, group, j):
    params = optimizer.param_groups[group]["params"]
    return [old for k in range(len(params)) for old in replace(optimizer, group, k)]


def pop_group(optimizer, group, j):
    holder = optimizer
    if len(getattr(optimizer, "optimizers", ())) > 1:
        holder, group = optimizer.optimizers[group], 0
    if len(holder.param_groups) == 1:
        holder.param_groups.append({**holder.param_groups[0], "params": matrices()[:1]})
    old = holder.param_groups.pop(group)["params"]
    for p in old:
        del optimizer.state[p]
    return old


WAYS = [replace, replace_and_move_state, replace_all, pop_group]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("group", "j"), [(0, 0), (1, 1)], ids=["alone", "with others"])
@each_optimizer
def test_what_left_is_freed_by_the_next_step(name, group, j, way):
    """At once, not by the garbage collector, with all buffers that its state was in."""
    optimizer = built(name, matrices())
    run(optimizer, range(3))
    with optimizer.at_iterate():
        pass
    old = optimizer.param_groups[group]["params"][j]
    views = [v for v in optimizer.state[old].values() if getattr(v, "_base", None) is not None]
    watched = list(map(weakref.ref, [old, *views, *(v._base for v in views)]))
    gc.disable()
    try:
        del old, views
        way(optimizer, group, j)
        run(optimizer, [3])
        assert [each() for each in watched] == [None] * len(watched)
    finally:
        gc.enable()


def tensors_in_use():
    gc.collect()
    # type(): isinstance would wake lazy modules
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
    tensors += [p.grad for p in tensors if p.is_leaf and p.grad is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def growth(optimizer, leaves, size=4096):
    """Bytes per replacement of a parameter, and its own bytes as the unit of it."""
    before = tensors_in_use()
    for t in range(10):
        params = optimizer.param_groups[0]["params"]
        old, params[1] = params[1], nn.Parameter(torch.ones(size))
        leaves(optimizer.state, old)
        del old
        run(optimizer, [t])
    return round((tensors_in_use() - before) / 10 / (4 * size), 1)


@pytest.mark.parametrize("wrapped", [False, True], ids=["fused", "wrapped"])
@pytest.mark.parametrize("leaves", [dict.pop, lambda state, old: None], ids=["popped", "kept"])
def test_only_state_that_the_user_leaves_stays_and_as_much_as_torchs(wrapped, leaves):
    """The parameter, its gradient, two moments, and one more value; not its neighbours'."""

    def pop(state, old):
        return leaves(state, old) if leaves is not dict.pop else state.pop(old)

    def params():
        return [nn.Parameter(torch.ones(4096)) for _ in range(5)]

    theirs, ours = torch.optim.AdamW(params()), (helpers.wrap_adamw if wrapped else adamw)
    ours = ours(params(), METHODS["ema"])
    for each in (theirs, ours):
        run(each, range(3))
    expected = growth(theirs, pop)
    assert expected == (0 if leaves is dict.pop else 4)
    assert growth(ours, pop) == expected + (expected > 0)


@pytest.mark.filterwarnings("ignore:emanest. .* restarts from their new values")
@pytest.mark.parametrize("way", WAYS[:2])
@each_method
@pytest.mark.parametrize("base", BASES)
def test_those_that_stay_go_on_bit_for_bit(base, method, way):
    """State, counts and what is known of edits; in either mode."""

    def build():
        first, *others = matrices()
        return BASES[base]([{"params": [first]}, {"params": others}], METHODS[method])

    optimizer, plain = build(), build()
    run(optimizer, range(5))
    run(plain, range(5))
    gone = len(params_of(optimizer)) - 1
    last = len(optimizer.param_groups[1]["params"]) - 1
    for each in (optimizer, plain):
        with torch.no_grad():
            params_of(each)[1].mul_(0.5)
    way(optimizer, 1, last)

    def others(each):
        found = {}
        for i, p in enumerate(params_of(each)[:gone]):
            entries = {k: v for k, v in each.state[p].items() if isinstance(v, torch.Tensor)}
            found |= {(i, k): bits(v) for k, v in {**entries, "values": p.detach()}.items()}
        return found

    for t in range(5, 12):
        for each in (optimizer, plain):
            run(each, [t])
            with each.at_iterate():
                if t == 8 and each is optimizer:
                    way(optimizer, 1, last)
        assert others(optimizer) == others(plain)


@each_optimizer
def test_a_parameter_that_comes_back_with_its_state_goes_on(name):
    """As if it had had no gradient meanwhile; what was left of its state was its own."""
    optimizer, plain = (built(name, matrices()) for _ in range(2))
    run(optimizer, range(4))
    run(plain, range(4))
    away = optimizer.param_groups[1]["params"].pop()
    run(optimizer, [4])
    views = [v for v in optimizer.state[away].values() if v.dim()]
    assert all(v.untyped_storage().nbytes() == v.numel() * v.itemsize for v in views)
    helpers.set_gradients(params_of(plain), 4)
    params_of(plain)[-1].grad = None
    plain.step()
    optimizer.param_groups[1]["params"].append(away)
    for each in (optimizer, plain):
        run(each, range(5, 9))
    assert differing(content(optimizer), content(plain)) == []


def storages(optimizer, name="exp_avg"):
    return len(
        {optimizer.state[p][name].untyped_storage().data_ptr() for p in params_of(optimizer)}
    )


def test_parameters_that_can_be_stepped_together_are_housed_together():
    optimizer = adamw(matrices(), METHODS["ema"])
    run(optimizer, range(3))
    for j in range(len(params_of(optimizer))):
        replace_and_move_state(optimizer, 0, j)
        run(optimizer, [3 + j])
    assert storages(optimizer) == 1
    # one that begins has taken fewer steps
    replace(optimizer, 0, 0)
    run(optimizer, [9])
    assert storages(optimizer) == 2
    replace_all(optimizer, 0, 0)
    run(optimizer, [10])
    assert storages(optimizer) == 1


def test_replacing_goes_with_capturable():
    """All of a bucket have to be stepped equally often there."""
    optimizer = AdamW(matrices(), lookahead=METHODS["ema"], capturable=True)
    other = AdamW(matrices(), lookahead=METHODS["ema"])
    for each in (optimizer, other):
        run(each, range(3))
        replace(each, 0, 0)
        replace(each, 0, 1)
        run(each, range(3, 5))
        # one of those that began together, and one of the others
        replace(each, 0, 0)
        replace(each, 0, 2)
        run(each, range(5, 7))
    assert helpers.same(optimizer, other)


def test_a_frozen_neighbour_keeps_no_buffer():
    """It has no gradient and will have none: nothing else asks for it."""
    optimizer = adamw(matrices(), METHODS["ema"])
    run(optimizer, range(3))
    second = params_of(optimizer)[1]
    second.requires_grad_(False)
    second.grad = None
    buffer = weakref.ref(optimizer.state[second]["exp_avg"]._base)
    before = bits(optimizer.state[second]["exp_avg"])
    replace(optimizer, 0, 0)
    others = [p for p in params_of(optimizer) if p is not second]
    helpers.set_gradients(others, 3)
    optimizer.step()
    assert buffer() is None
    assert bits(optimizer.state[second]["exp_avg"]) == before


@pytest.mark.parametrize("k", [0, 1])
def test_a_neighbour_whose_state_was_removed_may_have_another_shape(k):
    params = [nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(3, 5))]
    optimizer = AdamW(params)
    helpers.set_gradients(params, 0)
    optimizer.step()
    optimizer.state.clear()
    params[k].grad, params[k].data = None, torch.ones(2, 2)
    optimizer.step()
    assert all(entries["exp_avg"].shape == p.shape for p, entries in optimizer.state.items())
    assert float(optimizer.state[params[1 - k]]["step"]) == 1


def test_a_neighbour_without_a_gradient_keeps_nothing_of_what_left():
    first, second, third = helpers.parameters(shapes=[(3,)] * 3)
    optimizer = adamw([{"params": [first, second]}, {"params": [third]}], METHODS["ema"])
    run(optimizer, range(3))
    optimizer.param_groups[0]["params"] = [second]
    del optimizer.state[first]
    second.grad, left = None, weakref.ref(first)
    del first
    helpers.set_gradients([third], 3)
    optimizer.step()
    gc.collect()
    assert left() is None


@pytest.mark.filterwarnings("ignore:emanest. .* restarts from their new values")
@pytest.mark.parametrize("inside", [False, True], ids=["edited", "after part_of_step"])
def test_a_step_that_fails_forgets_no_edit(inside):
    """It has noticed that a parameter left; those that stay are edited before the next one."""
    optimizer, plain = (adamw(matrices(), METHODS["snoo"]) for _ in range(2))
    for each in (optimizer, plain):
        run(each, range(4))
        replace(each, 0, 0)
    with optimizer.part_of_step() if inside else contextlib.nullcontext():
        new = optimizer.param_groups[0]["params"][0]
        optimizer.param_groups[0]["params"].append(new.detach()[:2])
        optimizer.param_groups[0]["params"][-1].requires_grad_()
        with pytest.raises(ValueError, match="share memory"):
            run(optimizer, [4])
        optimizer.param_groups[0]["params"].pop()
    for each in (optimizer, plain):
        with torch.no_grad():
            params_of(each)[1].mul_(0.5)
        run(each, range(4, 8))
    assert differing(content(optimizer), content(plain)) == []


@pytest.mark.parametrize("base", BASES)
@each_method
def test_a_bucket_may_have_another_order_than_its_group(base, method):
    """A parameter without a gradient is housed last where another one is replaced meanwhile."""
    found = []
    for replaced in (False, True):
        params = [nn.Parameter(torch.linspace(k, k + 1, 3)) for k in range(3)]
        optimizer = BASES[base](params, METHODS[method])
        missing = {4: params[0], 5: params[1]}
        for t in range(8):
            if replaced and t == 4:
                replace(optimizer, 0, 2)
            for k, p in enumerate(params_of(optimizer)):
                p.grad = None if p is missing.get(t) else torch.full_like(p, 1.0 + t + k)
            # a warning of written parameters would be an error
            optimizer.step()
        optimizer.eval()
        found.append([bits(p) for p in params[:2]])
    assert found[0] == found[1]


def test_a_part_in_place_of_another_has_a_snapshot_of_its_own():
    """Of a ``DTensor``, say: its counter may stand where that of the part before it stood."""
    parts = [torch.ones(2), torch.ones(2)]
    writes = Edits(parts, list(parts), [False, False])
    writes.take_snapshots([0, 1])
    writes.snapshots_taken([0, 1])
    new = torch.full((2,), 3.0)
    assert new._version == parts[1]._version
    writes.replaced(1, new)
    writes.take_snapshots([0, 1])
    assert torch.equal(writes.snapshots[1], new)
