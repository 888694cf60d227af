# SPDX-License-Identifier: MIT
"""Methods that are equal to one another, or to their base, at special settings.

Numbers in the docstrings are those of the properties in ALGORITHMS, section 6.
"""

import copy
import functools

import pytest
import torch

import emanest
import helpers
import textbook
from emanest import GPA, NAG, SNOO, EMANesterov, LongHorizon, ScheduleFree, rules
from helpers import BASES, flat, gradients, on, params_of, published, run, same, textbook_base

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]
SCHEDULES = {
    "constant": [0.05] * 200,
    "decaying": [0.05 * (1 - t / 200) for t in range(200)],
    "halving": [0.05 * 0.5 ** (t // 20) for t in range(200)],
}

each_base = pytest.mark.parametrize("base", BASES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_kind = pytest.mark.parametrize("wrapped", [False, True])
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def sgd(method, **options):
    return emanest.SGD(double(), lookahead=method, **options)


def double():
    return helpers.parameters(torch.float64)


def history(optimizer, lrs):
    """x and y after every step of a run at its own gradients."""
    xs, ys = [], []
    for t, lr in enumerate(lrs):
        for group in optimizer.param_groups:
            group["lr"] = lr
        run(optimizer, [t])
        ys.append(flat(params_of(optimizer)))
        with optimizer.at_iterate():
            xs.append(flat(params_of(optimizer)))
    return torch.stack(xs), torch.stack(ys)


def history_of(twin, lrs):
    """The same of a textbook form that starts at the same parameters."""
    xs, ys = [], []
    for t, lr in enumerate(lrs):
        twin.step(gradients(twin.y, t), lr)
        xs.append(flat(twin.x))
        ys.append(flat(twin.y))
    return torch.stack(xs), torch.stack(ys)


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# ---- EMA-Nesterov -------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["adamw", "sgd", "momentum"])
@pytest.mark.parametrize("init", ["zero", "copy"])
def test_one_pass_is_the_two_phase_form(base, init):
    """2: over 2000 steps, each at its own gradients, x to 1e-13 and m to 1e-14."""
    method = EMANesterov(0.7, 0.99, warmup=300, rest=1600, init=init)
    optimizer = on(base, method, shapes=[(20,)])
    params = params_of(optimizer)
    twin = published(method, params, textbook_base(base))
    for t in range(2000):
        lr = optimizer.param_groups[0]["lr"] = 0.01 * min(1, 1.5 - t / 2000)
        run(optimizer, [t])
        twin.step(gradients(twin.y, t), lr)
        if t % 50 == 49:
            m = flat(optimizer.state[p]["exp_avg_update"] for p in params)
            close(m, flat(twin.m), 1e-14)
            with optimizer.at_iterate():
                close(flat(params), flat(twin.x), 1e-13)


@each_base
@each_dtype
@each_kind
def test_stepsize_0_is_the_base(base, dtype, wrapped):
    """4: bit for bit."""
    ahead = on(base, EMANesterov(0.0, 0.9), dtype, wrapped)
    plain = on(base, None, dtype, wrapped)
    for t in range(30):
        run(ahead, [t])
        run(plain, [t])
        assert same(ahead, plain)


@each_base
@each_kind
def test_the_average_is_that_of_the_displacements(base, wrapped):
    """4: m to 1e-6 of its norm in float32, over 200 steps."""
    optimizer = on(base, EMANesterov(0.0, 0.9), torch.float32, wrapped)
    average, x = 0.0, flat(params_of(optimizer)).double()
    for t in range(200):
        run(optimizer, [t])
        last, x = x, flat(params_of(optimizer)).double()
        average = 0.9 * average + 0.1 * (x - last)
    key = "lookahead_exp_avg_update" if wrapped else "exp_avg_update"
    m = flat(optimizer.state[p][key] for p in params_of(optimizer)).double()
    assert (m - average).norm() <= 1e-6 * average.norm()


@each_base
@each_dtype
@each_kind
def test_warm_up_and_rest_are_the_base(base, dtype, wrapped):
    """5: bit for bit; the window [5, 9) is those steps whose gradient is taken ahead."""
    optimizer = on(base, EMANesterov(0.5, 0.9, warmup=5, rest=9), dtype, wrapped)
    plain = on(base, None, dtype, wrapped)
    for t in range(9):
        run(optimizer, [t])
        run(plain, [t])
        assert same(optimizer, plain) == (t + 1 < 5)
    # the base alone, from where the window has closed
    for p, q in zip(params_of(plain), params_of(optimizer), strict=True):
        p.data.copy_(q.data)
    # a copy, because torch keeps the tensors that it is given
    state = copy.deepcopy(optimizer.state_dict()["state"])
    groups = plain.state_dict()["param_groups"]
    plain.load_state_dict({"state": state, "param_groups": groups})
    for t in range(9, 14):
        run(optimizer, [t])
        run(plain, [t])
        assert same(optimizer, plain)


@pytest.mark.parametrize(("warmup", "rest"), [(0, 0), (10, 10), (10, 3)])
def test_an_empty_window_is_an_error(warmup, rest):
    """5: it would be a silent no-op."""
    with pytest.raises(ValueError, match=r"rest must be above warmup: the window .* is empty"):
        EMANesterov(warmup=warmup, rest=rest)


# ---- Nesterov's gradient ------------------------------------------------------------------------

CANONICAL = {
    "nag": NAG(0.8),
    "decay 0": EMANesterov(0.8, 0.0, follow_lr=False),
    "every step": LongHorizon(1, 0.8),
    "snoo every step": SNOO(1, 1.0, 0.8),
}


@functools.cache
def canonical(method, schedule):
    """x and y of a method on SGD."""
    return history(sgd(CANONICAL[method]), SCHEDULES[schedule])


@functools.cache
def canonical_of(form, schedule):
    """x and y of a textbook form."""
    return history_of(form(double(), 0.8), SCHEDULES[schedule])


@pytest.mark.parametrize("method", CANONICAL)
@pytest.mark.parametrize("form", [textbook.NAGSutskever, textbook.NAGVelocity])
@each_schedule
def test_canonical_forms_agree_under_any_schedule(method, form, schedule):
    """6 and 28: y to 1e-13, and x where it means the same (SNOO's x is y)."""
    (x, y), (expected_x, expected_y) = canonical(method, schedule), canonical_of(form, schedule)
    close(y, expected_y, 1e-13)
    close(x, expected_y if method == "snoo every step" else expected_x, 1e-13)


@each_schedule
def test_pytorchs_form_agrees_at_a_constant_rate_only(schedule):
    """6 and 28: y to 1e-13 at a constant rate, apart by more than 1e-3 otherwise."""
    lrs = SCHEDULES[schedule]
    _, pytorchs = history_of(textbook.NAGPyTorch(double(), 0.8), lrs)
    _, ours = history(sgd(None, momentum=0.8, nesterov=True), lrs)
    close(ours, pytorchs, 1e-13)
    _, nag = canonical("nag", schedule)
    apart = (nag - pytorchs).abs().max()
    assert apart <= 1e-13 if schedule == "constant" else apart > 1e-3


@each_schedule
def test_nesterov_is_torchs(schedule):
    """28, in float64: 1e-12."""
    ours, torchs = on("nesterov", None), on("nesterov", None, wrapped=True)
    for t, lr in enumerate(SCHEDULES[schedule]):
        ours.param_groups[0]["lr"] = torchs.param_groups[0]["lr"] = lr
        run(ours, [t])
        run(torchs, [t])
        close(flat(params_of(ours)), flat(params_of(torchs)), 1e-12)


# ---- averaging ----------------------------------------------------------------------------------


@each_base
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gpa_without_averaging_is_the_base(base, dtype):
    """32: mu_x = 0, to 1e-6 in float32; with weight decay it acts where it always does."""
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    averaged, plain = on(base, GPA(0.0, 0.7), dtype), on(base, None, dtype)
    for group in averaged.param_groups + plain.param_groups:
        group["weight_decay"] = 0.0
    for t in range(200):
        run(averaged, [t])
        run(plain, [t])
    expected = flat(params_of(plain))
    assert (flat(params_of(averaged)) - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("mu", [0.5, 0.9])
def test_gpa_is_nesterovs_gradient(mu):
    """32: mu_x = mu_y = mu at lr / (1 - mu) is PyTorch's form, to 1e-12."""
    _, y = history(sgd(GPA(mu, mu)), [0.05 / (1 - mu)] * 200)
    _, expected = history_of(textbook.NAGPyTorch(double(), mu), [0.05] * 200)
    close(y, expected, 1e-12)


def test_schedule_free_averages_all_base_iterates():
    """32: at a constant rate x is the mean of all z, to 1e-12."""
    optimizer = sgd(ScheduleFree(), lr=0.05)
    params, zs = params_of(optimizer), []
    for t in range(200):
        run(optimizer, [t])
        zs.append(flat(optimizer.state[p]["z"] for p in params))
        with optimizer.at_iterate():
            close(flat(params), torch.stack(zs).mean(0), 1e-12)


@pytest.mark.parametrize("kind", ["along", "between"])
@pytest.mark.parametrize("lookahead", [-3.0, 0.5, 1 / 0.7 - 1, 9.0])
def test_x_and_y_are_found_from_each_other(kind, lookahead):
    """10 and 32: to 1e-6 in float32."""
    point, state = torch.randn(2, 1000)
    x_from, y_from = (rules.POINTS[f"{p}_{kind}"].function for p in "xy")
    x = x_from(point, (state,), (lookahead,))
    back = y_from(x, (state,), (lookahead,))
    assert (back - point).norm() <= 1e-6 * torch.maximum(point.norm(), x.norm())
