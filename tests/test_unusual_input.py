"""Unusual input that is fine: it gives the same bits as the usual one."""

import decimal
import fractions

import numpy
import pytest
import torch
from torch import nn

import emanest
import helpers
from emanest import AdamW, EMANesterov
from helpers import bits, content, differing, params_of, run, set_gradients

EMA = EMANesterov(0.5, 0.9)
MAKERS = {"fused": helpers.adamw, "wrap": helpers.wrap_adamw}

each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
NUMBERS = [numpy.float64(0.125), numpy.float32(0.125), decimal.Decimal("0.125")]


@pytest.mark.parametrize(
    "lr", [*NUMBERS, fractions.Fraction(1, 8)], ids=lambda lr: type(lr).__name__
)
def test_numbers_of_any_kind_become_floats(lr):
    """numpy's would keep a checkpoint from being loaded with weights_only."""
    optimizer, plain = (
        AdamW(helpers.parameters(), lr=each, weight_decay=each, lookahead=EMA)
        for each in (lr, 0.125)
    )
    assert [type(optimizer.param_groups[0][k]) for k in ("lr", "weight_decay")] == [float, float]
    run(optimizer, range(3))
    run(plain, range(3))
    assert differing(content(optimizer), content(plain)) == []


def in_float32(p, g):
    p.grad = None
    p.grad_dtype = torch.float32
    p.grad = g.float()


def strided(p, g):
    p.grad = torch.stack([g, g + 1], dim=-1)[..., 0]


# torch's AdamW does not take gradients of another dtype itself
GIVEN = [(helpers.adamw, in_float32), (helpers.adamw, strided), (helpers.wrap_adamw, strided)]


@pytest.mark.parametrize(("make", "give"), GIVEN)
def test_gradients_may_have_another_dtype_or_layout(make, give):
    optimizer, plain = (make(helpers.parameters(torch.bfloat16), EMA) for _ in range(2))
    for t in range(4):
        grads = helpers.gradients(params_of(optimizer), t)
        for p, g in zip(params_of(optimizer), grads, strict=True):
            give(p, g)
        optimizer.step()
        run(plain, [t])
    assert differing(content(optimizer), content(plain)) == []


@each_maker
def test_gradients_may_belong_to_a_graph(make):
    optimizer, plain = (make(helpers.parameters(), EMA) for _ in range(2))
    for _ in range(4):
        for p in params_of(optimizer):
            p.grad = torch.autograd.grad(p.pow(3).sum(), p, create_graph=True)[0]
            assert p.grad.requires_grad
        for p in params_of(plain):
            p.grad = torch.autograd.grad(p.pow(3).sum(), p)[0]
        optimizer.step()
        plain.step()
    assert differing(content(optimizer), content(plain)) == []


@each_maker
def test_empty_parameters_are_stepped_with_the_others(make):
    sizes = [(0,), (3, 5), (0, 4), (7,), ()]
    optimizer, plain = make(helpers.parameters(shapes=sizes), EMA), make(helpers.parameters(), EMA)
    for t in range(4):
        set_gradients(params_of(plain), t)
        full = [p for p in params_of(optimizer) if p.numel()]
        set_gradients(full, t)
        for p in params_of(optimizer):
            p.grad = torch.zeros_like(p) if p.numel() == 0 else p.grad
        optimizer.step()
        plain.step()
        with optimizer.at_iterate():
            pass
    assert [bits(p) for p in full] == [bits(p) for p in params_of(plain)]


@each_maker
def test_a_group_may_mix_dtypes(make):
    dtypes = [torch.float64, torch.bfloat16, torch.complex64, torch.float32]
    mixed = make([p for dtype in dtypes for p in helpers.parameters(dtype, [(4,)])], EMA)
    for t in range(4):
        set_gradients(params_of(mixed), t)
        mixed.step()
    for p, dtype in zip(params_of(mixed), dtypes, strict=True):
        alone = make(helpers.parameters(dtype, [(4,)] * len(dtypes))[:1], EMA)
        q = params_of(alone)[0]
        for t in range(4):
            # the noise of a parameter depends on those before it
            place = [torch.empty(4, dtype=d) for d in dtypes[: dtypes.index(dtype)]]
            q.grad = helpers.gradients([*place, q], t)[-1]
            alone.step()
        assert bits(p) == bits(q)


@each_maker
def test_the_default_dtype_does_not_matter(make):
    def trained():
        optimizer = make(helpers.parameters(), EMA)
        run(optimizer, range(4))
        # torch's own steps are counted in the default dtype
        return {
            k: v for k, v in content(optimizer).items() if make is helpers.adamw or "/step" not in k
        }

    expected = trained()
    torch.set_default_dtype(torch.float64)
    try:
        assert differing(trained(), expected) == []
    finally:
        torch.set_default_dtype(torch.float32)


@each_maker
def test_parameters_that_changed_places_are_noticed_by_their_names(make):
    first, second, third = helpers.parameters(shapes=[(3,)] * 3)
    source = make([("a", first), ("b", second)], EMA)
    run(source, range(2))
    target = make([("b", second), ("a", third)], EMA)
    before = content(target)
    with pytest.raises(ValueError, match="parameter names of group 0 differ"):
        target.load_state_dict(source.state_dict())
    assert differing(content(target), before) == []


@each_maker
def test_running_out_of_memory_at_the_first_step_leaves_nothing(make, monkeypatch):
    """The state of all groups is allocated before any of it is used."""

    def views(params, dtype, device):
        allocated.append(dtype)
        if len(allocated) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return original(params, dtype, device)

    allocated, original = [], emanest.bucket._views
    mixed = [*helpers.parameters(), *helpers.parameters(torch.float64)]
    optimizer = make(mixed, EMA)
    set_gradients(mixed, 0)
    before = content(optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(emanest.bucket, "_views", views)
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step()
    assert differing(content(optimizer), before) == []
    assert not optimizer.state
    plain = make([nn.Parameter(p.detach().clone()) for p in mixed], EMA)
    for each in (optimizer, plain):
        run(each, range(3))
    assert differing(content(optimizer), content(plain)) == []
