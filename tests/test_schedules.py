# SPDX-License-Identifier: MIT
"""How far ahead each gradient is taken: windows, learning rates, beginnings, limits.

Numbers in the docstrings are those of the properties in ALGORITHMS, section 6.
"""

import math

import pytest
import torch
from torch.optim import lr_scheduler

import emanest
import helpers
from emanest import (
    GPA,
    NAG,
    NALA,
    SNOO,
    EMANesterov,
    LongHorizon,
    Lookahead,
    ScheduleFree,
    rules,
    schedules,
)
from emanest.methods.method import METHODS
from helpers import content, differing, flat, gradients, on, params_of, run, set_gradients

each_kind = pytest.mark.parametrize("wrapped", [False, True])


def ahead(optimizer):
    """How far each group is ahead now."""
    first = [group["params"][0] for group in optimizer.param_groups]
    return [optimizer.state[p]["lookahead"].item() for p in first]


def steps_ahead(optimizer, steps, each=lambda: None):
    """How far the first group is ahead at the gradients of steps 1, 2, ..."""
    found = []
    run(optimizer, range(steps), lambda: (found.append(ahead(optimizer)[0]), each()))
    return found


# ---- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "rest"), [(5, 9), (1, 2), (0, 3), (7, None), (0, None)])
@pytest.mark.parametrize("stepsize", [0.3, -0.7, lambda t: 0.3])
@each_kind
def test_window_edges_are_exact(warmup, rest, stepsize, wrapped):
    """7: from step ``warmup`` on, and no more at step ``rest``, counted from 0."""
    optimizer = on("sgd", EMANesterov(stepsize, 0.9, warmup, rest), wrapped=wrapped)
    inside = 0.3 if callable(stepsize) else stepsize
    expected = [inside if warmup <= t < (rest or 99) else 0.0 for t in range(1, 13)]
    assert steps_ahead(optimizer, 12) == expected


# ---- learning rates -----------------------------------------------------------------------------


def warm_up_and_decay(t):
    return min(t / 10, 1 - t / 40) * 1.5


def test_default_follows_the_rate_of_the_step_before():
    """8, convention B: exactly stepsize * lr / (largest so far), fixed when the step ends."""
    optimizer = on("adamw", EMANesterov(0.3, 0.9))
    peak, expected = 0.0, []
    for t in range(30):
        lr = optimizer.param_groups[0]["lr"] = warm_up_and_decay(t)
        peak = max(peak, lr)
        run(optimizer, [t])
        expected = 0.3 * (lr / peak if peak else 1.0)
        assert ahead(optimizer) == [expected]


@pytest.mark.parametrize("warmup", [0, 5])
@each_kind
def test_proportional_follows_the_rate_of_the_step_itself(warmup, wrapped):
    """8, convention A: the authors' wrapper under a scheduler, x to 1e-12 and b exactly."""
    lr, largest = 0.05, 1.5 * 40 / 50
    stepsize = schedules.proportional(0.6, warm_up_and_decay, largest)
    optimizer = on("sgd", EMANesterov(stepsize, 0.9, warmup, 25), wrapped=wrapped)
    params = params_of(optimizer)
    scheduler = lr_scheduler.LambdaLR(optimizer, warm_up_and_decay)
    x, m, found = [p.detach().clone() for p in params], [0.0] * len(params), 0.0
    for t in range(30):
        factor = warm_up_and_decay(t)
        # the wrapper reads lr before the step
        b = 0.6 * (factor / largest) if warmup <= t < 25 else 0.0
        assert found == b or t == 0
        y = [p + b * direction for p, direction in zip(x, m, strict=True)]
        last, x = x, [p - lr * factor * g for p, g in zip(y, gradients(y, t), strict=True)]
        m = [0.9 * old + 0.1 * (a - b) for old, a, b in zip(m, x, last, strict=True)]
        run(optimizer, [t])
        scheduler.step()
        found = ahead(optimizer)[0]
        with optimizer.at_iterate():
            torch.testing.assert_close(flat(params), flat(x), rtol=0, atol=1e-12)


def test_every_group_follows_its_own_rate():
    """8: exactly."""
    a, b = helpers.parameters(torch.float64, [(3,), (3,)])
    groups = [{"params": [a], "lr": 0.4}, {"params": [b], "lr": 0.1}]
    optimizer = emanest.AdamW(groups, lookahead=EMANesterov(0.6, 0.9))
    lambdas = [lambda t: 0.5**t, lambda t: 1 / (t + 1)]
    scheduler = lr_scheduler.LambdaLR(optimizer, lambdas)
    for t in range(8):
        run(optimizer, [t])
        rates = [lr * f(t) for lr, f in zip((0.4, 0.1), lambdas, strict=True)]
        assert ahead(optimizer) == [0.6 * (rates[0] / 0.4), 0.6 * (rates[1] / 0.1)]
        scheduler.step()


@pytest.mark.parametrize("tensor", [False, True])
def test_a_warm_up_from_rate_0(tensor):
    """8: without a scheduler 0 / 0 is 1; ``initial_lr`` counts as a rate that was there."""
    lr = torch.tensor(0.0) if tensor else 0.0
    alone = emanest.SGD(helpers.parameters(), lr, lookahead=EMANesterov(0.5, 0.9))
    assert steps_ahead(alone, 3) == [0.5] * 3
    lr = torch.tensor(0.25) if tensor else 0.25
    scheduled = emanest.SGD(helpers.parameters(), lr, lookahead=EMANesterov(0.5, 0.9))
    scheduler = lr_scheduler.LambdaLR(scheduled, lambda t: min(t / 4, 1))
    expected = [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    assert steps_ahead(scheduled, 6, scheduler.step) == expected


def test_one_cycle_does_not_explode():
    """8: its ``initial_lr`` is 1/25 of its peak, so lr / initial_lr would reach 25."""
    optimizer = on("adamw", EMANesterov(0.5, 0.9))
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)
    rates = []
    found = steps_ahead(
        optimizer, 39, lambda: (rates.append(optimizer.param_groups[0]["lr"]), scheduler.step())
    )
    assert found == [0.5 * (lr / max(rates[: t + 1])) for t, lr in enumerate(rates)]
    assert max(found) == 0.5
    assert max(rates) > 24 * rates[0]


def test_the_ratio_may_be_ignored():
    optimizer = on("sgd", EMANesterov(0.5, 0.9, follow_lr=False))
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert steps_ahead(optimizer, 5, scheduler.step) == [0.5] * 5


# ---- beginnings ---------------------------------------------------------------------------------


def averages(init, steps, decay=0.9):
    """m after every step, and the displacements, without lookahead."""
    optimizer = on("adamw", EMANesterov(0.0, decay, init=init))
    params, ms, deltas = params_of(optimizer), [], []
    for t in range(steps):
        before = flat(params)
        run(optimizer, [t])
        deltas.append(flat(params) - before)
        ms.append(flat(optimizer.state[p]["exp_avg_update"] for p in params))
    return ms, deltas


def test_the_average_starts_at_zero_at_a_copy_or_corrected():
    """9: to 1e-12; the difference decays as decay ** t."""
    zero, deltas = averages("zero", 100)
    copy, debias = (averages(init, 100)[0] for init in ("copy", "debias"))

    def close(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)

    close(zero[0], 0.1 * deltas[0])
    close(copy[0], deltas[0])
    close(debias[0], deltas[0])
    for t in range(100):
        close(copy[t] - zero[t], 0.9 ** (t + 1) * deltas[0])
        close(debias[t] * (1 - 0.9 ** (t + 1)), zero[t])


# ---- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_stepsize_is_limited_by_stability(decay):
    """14: without updates m grows by |1 - (1 - decay)(1 - b)|, which is 1 at both limits."""
    weight, low = 1 - decay, -(1 + decay) / (1 - decay)
    for b, growth in [(1.0, 1.0), (low, -1.0)]:
        _, (m,) = rules.ema_nesterov(0.0, 0.0, (1.0,), (weight, b, b))
        assert m == pytest.approx(growth, rel=1e-12)
        with pytest.raises(ValueError, match=r"stepsize must be in \("):
            EMANesterov(b, decay)
        EMANesterov(b * (1 - 1e-9), decay)


NAN, INF = math.nan, math.inf
# method -> setting -> values that are refused, values at the ends that are not
RANGES = {
    EMANesterov: {
        "stepsize": ([1.0, 1.5, -199.0, NAN, INF, -INF], [0.999, 0.0, -0.2, -198.9]),
        "decay": ([1.0, 1.1, -0.1, NAN, INF], [0.999, 0.3333, 0.4]),
        "warmup": ([-1], [0, 5]),
        "rest": ([-1, 0], [1, None]),
    },
    NAG: {"momentum": ([1.0, -1.0, NAN, INF], [0.999, -0.999, 0.0])},
    Lookahead: {"every": ([0, -1], [1]), "alpha": ([-0.1, 2.0, NAN, INF], [0.0, 1.0, 1.999])},
    LongHorizon: {"every": ([0, -1], [1]), "stepsize": ([1.0, -1.0, NAN], [0.999, -0.999])},
    SNOO: {
        "every": ([0, -1], [1]),
        "lr": ([0.0, 2.0, NAN, INF], [0.001, 1.999]),
        "momentum": ([-0.1, 1.0, NAN, INF], [0.0, 0.999]),
    },
    GPA: {"mu_x": ([-0.1, 1.0, NAN], [0.0, 0.999]), "mu_y": ([0.0, 1.1, NAN], [0.001, 1.0])},
    ScheduleFree: {
        "momentum": ([0.0, 1.1, NAN], [0.001, 1.0]),
        "r": ([-0.1, NAN, INF], [0.0, 9.0]),
        "weight_lr_power": ([-0.1, NAN, INF], [0.0, 9.0]),
    },
    NALA: {
        "every": ([0, -1], [1]),
        "lr": ([-0.1, NAN, INF], [0.0, 9.0]),
        "mu": ([1.0, -1.0, NAN], [0.999, -0.999]),
    },
}
REQUIRED = {NAG: {"momentum": 0.9}, LongHorizon: {"every": 5}, SNOO: {"every": 5}}


def test_a_peak_of_zero_is_no_peak():
    with pytest.raises(ValueError, match="peak must be above 0, got 0"):
        schedules.proportional(0.5, lambda t: 1.0, peak=0)


@pytest.mark.parametrize("method", METHODS.values())
def test_settings_out_of_range_are_named(method):
    """14: NaN and infinity included; every setting of every method is here."""
    settings = method(**REQUIRED.get(method, {})).settings()
    numbers = {name for name, value in settings.items() if type(value) in (int, float, type(None))}
    assert numbers == {f"lookahead_{name}" for name in RANGES[method]}
    for name, (refused, accepted) in RANGES[method].items():
        for value in refused:
            with pytest.raises(ValueError, match=f"^{name} must be"):
                method(**{**REQUIRED.get(method, {}), name: value})
        for value in accepted:
            assert getattr(method(**{**REQUIRED.get(method, {}), name: value}), name) == value


@pytest.mark.parametrize("bad", [1.0, -3.0, NAN, INF])
@each_kind
def test_a_callable_is_held_to_the_same_range(bad, wrapped):
    """14: the step names it and changes nothing."""
    method = EMANesterov(lambda t: bad if t == 4 else 0.5, 0.5)
    optimizer = on("adamw", method, wrapped=wrapped)
    run(optimizer, range(3))
    set_gradients(params_of(optimizer), 3)
    before = content(optimizer)
    with pytest.raises(ValueError, match=r"^stepsize\(4\) must be in \(-3, 1\)"):
        optimizer.step()
    assert differing(content(optimizer), before) == []
