# SPDX-License-Identifier: MIT
"""``probe_lookahead``: the losses along m, and nothing else."""

import itertools

import pytest
import torch

import emanest
import helpers
from helpers import ALONG, METHODS, adamw, content, differing, params_of, run, values

BASES = {"adamw": adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}
# the x-vs-y probe of the paper's figures
STEPSIZES = [i / 4 for i in range(-4, 9)]

each_along = pytest.mark.parametrize("method", ALONG)
each_base = pytest.mark.parametrize("base", BASES)
each_mode = pytest.mark.parametrize("mode", ["train", "eval"])


def make(base, method, dtype=torch.float32, steps=5):
    optimizer = BASES[base](helpers.parameters(dtype), METHODS[method])
    run(optimizer, range(steps))
    return optimizer


def loss_at(points):
    return sum(((p.double() - i) ** 2).sum() + p.double().sin().sum() for i, p in enumerate(points))


def loss_of(optimizer):
    return lambda: loss_at(params_of(optimizer))


def direction(optimizer):
    """m, by the names that it has in the state of either kind of optimizer."""
    names = ("exp_avg_update", "velocity", "lookahead_exp_avg_update", "lookahead_velocity")
    return [
        next(state[name] for name in names if name in state)
        for state in (optimizer.state[p] for p in params_of(optimizer))
    ]


@each_along
@each_base
@each_mode
def test_losses_are_those_at_x_plus_b_m(method, base, mode):
    optimizer = make(base, method, torch.float64)
    ms = [m.clone() for m in direction(optimizer)]
    bs = [optimizer.state[p]["lookahead"].item() for p in params_of(optimizer)]
    assert all(bs)
    xs = [y - b * m for y, b, m in zip(values(optimizer), bs, ms, strict=True)]
    expected = [loss_at([x + b * m for x, m in zip(xs, ms, strict=True)]).item() for b in STEPSIZES]
    getattr(optimizer, mode)()
    losses = emanest.probe_lookahead(optimizer, loss_of(optimizer), STEPSIZES)
    assert [type(loss) for loss in losses] == [float] * len(STEPSIZES)
    assert losses == pytest.approx(expected, rel=0, abs=1e-12)
    # the losses differ by far more than that
    assert min(abs(a - b) for a, b in itertools.pairwise(losses)) > 1e-3


@each_along
@each_base
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_present_b_is_the_loss_at_y(method, base, dtype):
    optimizer = make(base, method, dtype)
    b = optimizer.state[params_of(optimizer)[0]]["lookahead"].item()
    at_y = loss_of(optimizer)().item()
    assert emanest.probe_lookahead(optimizer, loss_of(optimizer), [-1, b, 2])[1] == at_y
    with optimizer.at_iterate():
        at_x = loss_of(optimizer)().item()
        assert emanest.probe_lookahead(optimizer, loss_of(optimizer), [2, 0])[1] == at_x


@each_along
@each_base
@each_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_a_run_with_probes_equals_a_run_without(method, base, mode, dtype):
    probed, plain = make(base, method, dtype, 0), make(base, method, dtype, 0)

    def loss():
        assert not torch.is_grad_enabled()
        return sum(p.abs().sum() for p in params_of(probed))

    def probe():
        getattr(probed, mode)()
        grads = [p.grad for p in params_of(probed)]
        before = content(probed)
        emanest.probe_lookahead(probed, loss, STEPSIZES)
        assert differing(content(probed), before) == []
        assert all(p.grad is g for p, g in zip(params_of(probed), grads, strict=True))
        probed.train()

    probe()
    run(probed, range(9), each=probe)
    run(plain, range(9))
    assert differing(content(probed), content(plain)) == []


@each_along
@each_base
@each_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_come_back_when_the_loss_raises(method, base, mode, dtype):
    optimizer, plain = make(base, method, dtype), make(base, method, dtype)
    getattr(optimizer, mode)()
    before = content(optimizer)
    losses = iter([1.0, 2.0])
    with pytest.raises(StopIteration):
        emanest.probe_lookahead(optimizer, lambda: next(losses), STEPSIZES)
    assert differing(content(optimizer), before) == []
    optimizer.train()
    for each in (optimizer, plain):
        run(each, range(5, 9))
    assert differing(content(optimizer), content(plain)) == []


@each_along
@each_base
@each_mode
def test_a_probe_does_not_hide_an_edit(method, base, mode):
    probed, plain = make(base, method), make(base, method)
    for optimizer in (probed, plain):
        getattr(optimizer, mode)()
        with torch.no_grad():
            for p in params_of(optimizer):
                p.mul_(0.5).add_(1.0)
    emanest.probe_lookahead(probed, loss_of(probed), STEPSIZES)
    for optimizer in (probed, plain):
        optimizer.train()
        run(optimizer, range(5, 9))
    assert differing(content(probed), content(plain)) == []


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ALONG])
def test_groups_without_a_direction_stay_where_they_are(method):
    a, b, c = helpers.parameters(torch.float64)
    groups = [{"params": [a, b]}, {"params": [c], "lookahead": METHODS[method]}]
    base = {"betas": (0.0, 0.99)}
    mixed = emanest.AdamW(groups, **base, lookahead=METHODS["ema"])
    run(mixed, range(5))
    before, kept = content(mixed), c.detach().clone()
    seen = []
    emanest.probe_lookahead(mixed, lambda: seen.append(values(mixed)) or 0.0, STEPSIZES)
    assert all(torch.equal(c_, kept) for _, _, c_ in seen)
    assert len({tuple(a_.flatten().tolist()) for a_, _, _ in seen}) == len(STEPSIZES)
    assert differing(content(mixed), before) == []


def test_before_the_first_step_every_b_is_x():
    optimizer = make("adamw", "ema", steps=0)
    assert len(set(emanest.probe_lookahead(optimizer, loss_of(optimizer), STEPSIZES))) == 1


@pytest.mark.parametrize("method", [None, *(m for m in METHODS if m not in ALONG)])
def test_a_method_without_a_direction_is_an_error(method):
    optimizer = adamw(helpers.parameters(), METHODS.get(method))
    run(optimizer, range(2))
    with pytest.raises(ValueError, match=r"no group .* EMANesterov and NAG have one"):
        emanest.probe_lookahead(optimizer, loss_of(optimizer), STEPSIZES)


def test_another_optimizer_is_an_error():
    optimizer = torch.optim.AdamW(helpers.parameters())
    with pytest.raises(TypeError, match="optimizer must be one of emanest, got AdamW"):
        emanest.probe_lookahead(optimizer, lambda: 0.0, STEPSIZES)


@pytest.mark.parametrize(
    ("bad", "error"),
    [(float("nan"), ValueError), (float("inf"), ValueError), ("1", TypeError), (True, TypeError)],
)
def test_bad_stepsizes_are_named_before_anything_moves(bad, error):
    optimizer = make("adamw", "ema")
    before = content(optimizer)
    with pytest.raises(error, match="stepsizes must be"):
        emanest.probe_lookahead(optimizer, lambda: pytest.fail("evaluated"), [0.0, bad])
    assert differing(content(optimizer), before) == []
