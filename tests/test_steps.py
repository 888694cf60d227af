# SPDX-License-Identifier: MIT
"""What one training step is: taken from y, accumulated, skipped, begun late, shared.

Numbers in the docstrings are those of the properties in ALGORITHMS, section 6.
"""

import functools

import pytest
import torch
from torch import nn

import emanest
import helpers
from emanest import EMANesterov, Wrap
from helpers import (
    LR,
    METHODS,
    bits,
    content,
    differing,
    flat,
    gradients,
    params_of,
    run,
    set_gradients,
    textbook_adamw,
    values,
)

OPTIMIZERS = {
    "adamw": helpers.adamw,
    "sgd": helpers.sgd,
    "wrap": helpers.wrap_adamw,
    "wrap two": helpers.wrap_two,
    # unscales and skips in its own kernel
    "wrap fused": functools.partial(helpers.wrap_adamw, fused=True),
}

each_method = pytest.mark.parametrize("method", METHODS)
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS)
adamw_or_wrap = pytest.mark.parametrize("make", ["adamw", "wrap"])
each_kind = pytest.mark.parametrize("wrapped", [False, True])


def made(make, method, dtype=torch.float32):
    return OPTIMIZERS[make](helpers.parameters(dtype), METHODS[method])


def begun(name, x, m, method, wrapped, **options):
    """A run that has reached step 0 with iterate x and average m, and y ahead of them."""
    y = nn.Parameter(x + method.stepsize * m)
    if wrapped:
        optimizer = Wrap(getattr(torch.optim, name)([y], lr=0.0, **options), method)
    else:
        optimizer = getattr(emanest, name)([y], lr=0.0, **options, lookahead=method)
    y.grad = torch.zeros_like(y)
    optimizer.step()
    optimizer.state[y][optimizer.buckets.key("exp_avg_update")].copy_(m)
    optimizer.state[y]["lookahead"].fill_(method.stepsize)
    optimizer.param_groups[0]["lookahead_t"] = 0
    return optimizer, y


# ---- where the gradient is taken ----------------------------------------------------------------


@each_kind
def test_the_step_goes_from_y(wrapped):
    """17: on x * x / 2 exactly x' = (x + b m)(1 - lr); a restart from x would give 0.6875."""
    x, m = torch.tensor([1.0]), torch.tensor([0.5])
    optimizer, y = begun("SGD", x, m, EMANesterov(0.5, 0.5), wrapped)
    optimizer.param_groups[0]["lr"] = 0.25
    (y * y / 2).sum().backward()
    optimizer.step()
    with optimizer.at_iterate():
        assert y.item() == (1 + 0.5 * 0.5) * (1 - 0.25)
    # ahead along m' = (m + x' - x) / 2
    assert y.item() == 0.9375 + 0.5 * (0.5 - 0.0625) / 2


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@each_kind
def test_the_decay_acts_at_y(name, wrapped):
    """18: without a gradient x' = (1 - lr * decay)(x + b m), to 1 ulp in float32."""
    x, m = torch.randn(2, 1000)
    # at rest from step 1 on: then y is x
    method = EMANesterov(0.5, 0.9, rest=1)
    optimizer, y = begun(name, x, m, method, wrapped, weight_decay=0.3)
    optimizer.param_groups[0]["lr"] = 0.1
    expected = (1 - 0.1 * 0.3) * (x + 0.5 * m).double()
    optimizer.step()
    assert ((y.detach() - expected).abs() <= helpers.ulp(expected.float())).all()


@each_method
@adamw_or_wrap
def test_evaluations_and_saved_weights_are_those_of_x(method, make):
    """11: after 50 steps in float32 the loss and the weights are the textbook's to 1e-6."""
    model, data = nn.Linear(8, 4), torch.randn(16, 8)
    twin = textbook_adamw(method, list(model.parameters()))
    optimizer = OPTIMIZERS[make](model.parameters(), METHODS[method])
    for t in range(50):
        run(optimizer, [t])
        twin.step(gradients(twin.y, t), LR)
    weight, bias = twin.x
    expected = (data.double() @ weight.T + bias).square().mean()
    with optimizer.at_iterate():
        loss, saved = model(data).square().mean(), model.state_dict()
        assert (loss - expected).abs() <= 1e-6 * expected
        assert (flat(saved.values()) - flat(twin.x)).norm() <= 1e-6 * flat(twin.x).norm()


@each_method
@adamw_or_wrap
def test_accumulated_gradients_are_one_step(method, make):
    """19: 4 micro-batches are one batch to 1e-6, and the lookahead moves once."""
    inputs, targets = torch.randn(2, 32, 1, 4)
    models = [nn.Linear(4, 4), nn.Linear(4, 4)]
    models[1].load_state_dict(models[0].state_dict())
    parts, whole = [OPTIMIZERS[make](m.parameters(), METHODS[method]) for m in models]
    for _ in range(10):
        whole.zero_grad()
        (models[1](inputs) - targets).square().mean().backward()
        whole.step()
        parts.zero_grad()
        for x, target in zip(inputs.chunk(4), targets.chunk(4), strict=True):
            ((models[0](x) - target).square().mean() / 4).backward()
        parts.step()
    a, b = (flat(params_of(optimizer)) for optimizer in (parts, whole))
    assert (a - b).norm() <= 1e-6 * b.norm()
    a, b = ([o.state[p]["lookahead"] for p in params_of(o)] for o in (parts, whole))
    assert a == b
    assert parts.param_groups[0]["lookahead_t"] == 10


# ---- steps that do not happen -------------------------------------------------------------------


@each_method
@each_optimizer
def test_a_step_that_overflowed_changes_nothing(method, make):
    """20: bit for bit, and the next one is right; before every step of every method."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    scaler.scale(torch.ones(()))
    scaled, plain = made(make, method), made(make, method)
    for t in range(12):
        set_gradients(params_of(scaled), t)
        params_of(scaled)[1].grad[2] = torch.inf
        before = content(scaled)
        scaler.step(scaled)
        scaler.update()
        assert differing(content(scaled), before) == []
        set_gradients(params_of(scaled), t)
        for p in params_of(scaled):
            p.grad *= scaler.get_scale()
        scaler.step(scaled)
        scaler.update()
        run(plain, [t])
        assert differing(content(scaled), content(plain)) == []
    assert scaler.get_scale() == 2.0**28


@each_method
@each_optimizer
@pytest.mark.parametrize("closure", [None, lambda: torch.ones(())])
def test_a_step_without_gradients_changes_nothing(method, make, closure):
    """20: bit for bit, at any time; the closure's loss is returned."""
    optimizer = made(make, method)
    for t in range(8):
        optimizer.zero_grad()
        before = content(optimizer)
        assert optimizer.step(closure) == (closure and closure())
        assert differing(content(optimizer), before) == []
        run(optimizer, [t])


@each_method
@each_optimizer
def test_a_parameter_without_gradients_stays_as_it_is(method, make):
    """21: x, y and every number of its state, bit for bit; others go on."""
    optimizer = made(make, method)
    params = params_of(optimizer)
    run(optimizer, range(4))

    def frozen():
        here = [params[1], *optimizer.state[params[1]].values()]
        with optimizer.at_iterate():
            return [bits(value) for value in (*here, params[1])]

    before, moving = frozen(), values(optimizer)
    for t in range(4, 10):
        set_gradients(params, t)
        params[1].grad = None
        optimizer.step()
        assert frozen() == before
    assert [torch.equal(*pair) for pair in zip(params, moving, strict=True)] == [False, True, False]


# ---- parameters and groups ----------------------------------------------------------------------


@each_method
@each_optimizer
def test_weights_may_be_loaded_before_the_first_step(method, make):
    """23: as if they had been there before the optimizer, bit for bit; m starts at 0."""
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    early = OPTIMIZERS[make](model.parameters(), METHODS[method])
    model.load_state_dict(other.state_dict())
    late = OPTIMIZERS[make](other.parameters(), METHODS[method])
    for t in range(8):
        run(early, [t])
        run(late, [t])
        assert differing(content(early), content(late)) == []


@each_method
@pytest.mark.parametrize("make", ["adamw", "sgd"])
def test_a_repeated_parameter_is_updated_once(method, make):
    """24: torch warns of it, and updates it twice."""
    once = made(make, method)
    params = helpers.parameters()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        twice = OPTIMIZERS[make]([*params, params[1]], METHODS[method])
    run(once, range(8))
    run(twice, range(8))
    assert differing(content(once), content(twice)) == []


@each_method
@pytest.mark.parametrize("make", ["wrap", "wrap two"])
def test_a_schedule_may_act_on_the_wrapper_or_inside(method, make):
    """24: they share their groups, bit for bit."""
    outside, inside = made(make, method), made(make, method)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 3) for o in (outside, *inside.optimizers)]
    for t in range(8):
        for optimizer in (outside, inside):
            run(optimizer, [t])
        for scheduler in schedulers:
            scheduler.step()
    assert outside.param_groups[0]["lr"] == pytest.approx(LR / 100)
    assert differing(content(outside), content(inside)) == []


@each_method
def test_a_group_may_be_added_to_the_wrapper_or_inside(method):
    """24: in the middle of a run, bit for bit."""
    outside, inside = made("wrap", method), made("wrap", method)
    for optimizer, owner in ((outside, outside), (inside, inside.optimizers[0])):
        run(optimizer, range(4))
        owner.add_param_group({"params": helpers.parameters(shapes=[(4,)])})
        run(optimizer, range(4, 12))
    assert differing(content(outside), content(inside)) == []
