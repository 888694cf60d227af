# SPDX-License-Identifier: MIT
"""Analysis against closed forms and against the textbook; the two theorems, run."""

import functools
import gc
import itertools
import math
import weakref

import pytest
import torch

import textbook
import textbook_bases
from emanest import rules
from emanest.methods import GPA, NAG, NALA, SNOO, EMANesterov, LongHorizon, Lookahead, ScheduleFree
from emanest.methods.method import METHODS
from emanest.tools import analysis

# method, period
PERIODS = [
    (None, 1),
    (EMANesterov(0.6, 0.9), 1),
    (EMANesterov(-2.0, 0.5, init="copy"), 1),
    (EMANesterov(0.5, 0.9, warmup=7, rest=15, init="debias"), 1),
    (NAG(0.9), 1),
    (Lookahead(1, 0.3), 1),
    (Lookahead(5, 0.5), 5),
    (LongHorizon(1, 0.5), 1),
    (LongHorizon(4, 0.5), 4),
    (SNOO(3, 0.7, 0.5), 3),
    (GPA(0.9, 0.7), 1),
    (ScheduleFree(), 1),
    (NALA(1, 0.2, 0.3), 2),
    (NALA(5, 0.1, -0.5), 6),
]
ALL = [method for method, _ in PERIODS]
BASES = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.8, "dampening": 0.3},
    {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
]
PAIRS = [
    pair
    for pair in itertools.product(ALL, BASES)
    if not (isinstance(pair[0], ScheduleFree) and "momentum" in pair[1])
]
FREQUENCIES = torch.tensor([0, 0.01, 0.1, 1, math.pi], dtype=torch.float64)


def close(actual, expected, tolerance):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def published(method, start, base):
    """The textbook form of a method on SGD, at a constant learning rate."""
    params, base = [start], textbook_bases.SGD(**base)
    if method is None:
        return textbook.Plain(params, base)
    extra = {"weight_decay": base.weight_decay} if isinstance(method, GPA) else {}
    return getattr(textbook, type(method).__name__)(params, base, **vars(method), **extra)


def test_every_method_is_here():
    assert {method.name for method in ALL if method} == set(METHODS)


@pytest.mark.parametrize(("method", "expected"), PERIODS)
def test_period_is_the_distance_between_syncs(method, expected):
    assert analysis.period(method) == expected


@pytest.mark.parametrize(("method", "base"), PAIRS)
def test_trajectory_is_the_textbooks(method, base):
    curvature = torch.tensor([0.01, 1.0, 3.0], dtype=torch.float64)
    start = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    run = analysis.trajectory(method, lambda y: curvature * y + 0.1, start, 0.2, 20, **base)
    reference = published(method, start, base)
    for x, y in zip(run.x[1:], run.y[1:], strict=True):
        reference.step([curvature * reference.y[0] + 0.1], 0.2)
        close(x, reference.x[0], 1e-12)
        close(y, reference.y[0], 1e-12)


@pytest.mark.parametrize(("method", "base"), PAIRS)
def test_transitions_one_after_another_are_the_trajectory(method, base):
    curvature = torch.tensor([-0.1, 0.3, 3.0], dtype=torch.float64)
    steps = analysis.period(method)
    start = torch.ones(3)
    run = analysis.trajectory(method, lambda y: curvature * y, start, 0.2, 6 * steps, **base)
    held = ("momentum_buffer",) * ("momentum" in base) + (method.state if method else ())
    positions = method.positions if method else ()
    values = torch.tensor([1.0] + [float(name in positions) for name in held])
    values = values.double().expand(3, -1).unsqueeze(-1)
    for t in range(6 * steps):
        if t % steps == 0:
            matrix = analysis.transition(method, 0.2, curvature, t=t, **base)
            # any step of the period names the same one
            last = analysis.transition(method, 0.2, curvature, t=t + steps - 1, **base)
            assert torch.equal(last, matrix)
            values = matrix @ values
            close(values[:, 0, 0], run.y[t + steps], 1e-12)


def test_sgd_shrinks_a_mode_by_one_minus_lr_times_curvature():
    curvature = torch.tensor([[0.0, 1.0, 5.0], [10.0, 15.0, 30.0]])
    close(analysis.spectral_radius(None, 0.1, curvature), (1 - 0.1 * curvature).abs(), 1e-7)
    close(analysis.spectral_radius(None, 0.1, 5.0, weight_decay=2.0), 0.3, 1e-12)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("sharpness", [0.1, 0.5, 0.9])  # lr * curvature
def test_nag_damps_a_mode_by_its_curvature_and_heavy_ball_does_not(momentum, sharpness):
    damped = momentum * (1 - sharpness)
    nag = analysis.transition(NAG(momentum), 0.1, 10 * sharpness)
    heavy_ball = analysis.transition(None, 0.1, 10 * sharpness, momentum=momentum)
    # the multiplier of the velocity, of which an oscillating mode loses the square root per step
    close(torch.linalg.det(nag), damped, 1e-12)
    close(torch.linalg.det(heavy_ball), momentum, 1e-12)
    if (1 + momentum) ** 2 * (1 - sharpness) < 4 * momentum:
        radius = analysis.spectral_radius(NAG(momentum), 0.1, 10 * sharpness)
        close(radius, math.sqrt(damped), 1e-12)
    # PyTorch's form is the same iteration
    torchs = analysis.transition(None, 0.1, 10 * sharpness, momentum=momentum, nesterov=True)
    close(torchs.trace(), nag.trace(), 1e-12)
    close(torch.linalg.det(torchs), damped, 1e-12)


@pytest.mark.parametrize("method", ALL)
def test_every_method_contracts_a_flat_mode_at_a_small_learning_rate(method):
    radius = analysis.spectral_radius(method, 0.01, 0.5)
    assert 0.9 < radius < 1
    # and runs at that rate: the distance after many steps, from one point of a period to another
    if not isinstance(method, ScheduleFree):
        t = 2 * analysis.period(method) * 500
        far = analysis.trajectory(method, lambda y: 0.5 * y, 1.0, 0.01, 2 * t).y
        settled = analysis.spectral_radius(method, 0.01, 0.5, t=t)
        assert (far[2 * t] / far[t]).abs() ** (1 / t) == pytest.approx(float(settled), rel=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_ema_nesterovs_direction_is_a_one_pole_low_pass_filter(decay):
    response = analysis.direction_response(EMANesterov(0.3, decay), FREQUENCIES)
    close(response, (1 - decay) / (1 - decay * torch.exp(-1j * FREQUENCIES)), 1e-12)
    square = (1 - decay) ** 2 / (1 + decay**2 - 2 * decay * FREQUENCIES.cos())
    close(response.abs() ** 2, square, 1e-12)
    # ALGORITHMS property 13: a sinusoid through the rule itself; two phases give its amplitude
    for w, expected in zip(FREQUENCIES.tolist(), response.abs(), strict=True):
        m = torch.zeros(2, dtype=torch.float64)
        for t in range(3000):
            wave = torch.tensor([math.cos(w * t), math.sin(w * t)], dtype=torch.float64)
            _, (m,) = rules.ema_nesterov(0.0, wave, (m,), (1 - decay, 0.0, 0.0))
        assert m.norm() == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("every", [1, 2, 5, 16])
def test_long_horizon_direction_is_a_moving_average(every):
    taps = torch.exp(-1j * FREQUENCIES.unsqueeze(-1) * torch.arange(every))
    close(analysis.direction_response(LongHorizon(every, 0.4), FREQUENCIES), taps.mean(-1), 1e-12)


@pytest.mark.parametrize("method", [NAG(0.9), NAG(-0.5), GPA(0.9, 0.7), ScheduleFree()])
def test_direction_of_these_is_the_last_displacement(method):
    close(analysis.direction_response(method, FREQUENCIES), torch.ones(5), 1e-11)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (None, "no lookahead direction"),
        (EMANesterov(0.0), "no lookahead direction"),
        (EMANesterov(0.5, rest=100), "no lookahead direction at step 10000"),
        (GPA(0.9, 1.0), "no lookahead direction"),
        (GPA(0.0, 0.7), "no lookahead direction"),
        (Lookahead(5, 0.5), "does not move at every step"),
        (SNOO(5), "does not move at every step"),
        (NALA(5), "does not move at every step"),
    ],
)
def test_missing_direction_is_an_error(method, message):
    with pytest.raises(ValueError, match=message):
        analysis.direction_response(method, 0.1)


@pytest.mark.parametrize(
    ("method", "gain"),
    [
        (None, 1.0),
        (EMANesterov(0.6, 0.99), 2.5),
        (EMANesterov(-2.0, 0.9), 1 / 3),
        (NAG(0.9), 10.0),
        (Lookahead(5, 0.5), 0.5),
        (LongHorizon(7, 0.6), 2.5),
        (SNOO(3, 0.7, 0.5), 1.4),
        (GPA(0.9, 0.7), 1.0),
        (NALA(5, 0.1, -0.5), 3.5 / 6),
    ],
)
def test_gain_of_a_steady_drift(method, gain):
    close(analysis.frequency_response(method, 0.0), gain, 1e-11)


TURNS = [0, 1, 60, 420]


@functools.cache
def responses(method):
    """Of a run at each frequency: the component of the displacements at it. All are one run."""
    w, clock = 2 * math.pi * torch.tensor(TURNS, dtype=torch.float64) / 840, itertools.count()
    angle = w * torch.arange(2520, dtype=torch.float64)[:, None]
    wave = torch.stack([angle.cos(), angle.sin()], -1)
    start = torch.zeros(len(TURNS), 2)
    run = analysis.trajectory(method, lambda y: -wave[next(clock)], start, 1.0, 2520)
    moved = torch.view_as_complex(run.x.diff(dim=0)[-840:])
    return (moved * torch.view_as_complex(wave[-840:]).conj()).mean(0)


@pytest.mark.parametrize("method", [m for m in ALL if m and not isinstance(m, ScheduleFree)])
@pytest.mark.parametrize("turns", TURNS)
def test_frequency_response_is_that_of_a_run(method, turns):
    """A gradient that ignores y drives the updates; 840 steps hold whole periods of all."""
    method = NALA(method.every, 1.0, method.mu) if isinstance(method, NALA) else method
    component = responses(method)[TURNS.index(turns)]
    close(component, analysis.frequency_response(method, 2 * math.pi * turns / 840), 1e-9)


@pytest.mark.parametrize("stepsize", [-0.2, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_steady_drift_is_reached_in_time(stepsize, decay):
    """ALGORITHMS property 12."""
    steps = math.ceil(20 / ((1 - decay) * (1 - stepsize)))
    method = EMANesterov(stepsize, decay)
    x = analysis.trajectory(method, lambda y: torch.ones(()), 0.0, 1.0, steps + 1).x
    assert x[-2] - x[-1] == pytest.approx(1 / (1 - stepsize), abs=1e-6)


def theorem_1(kappa, decay):
    """The step size and the rate, for the curvatures 1 / kappa to 1 and lr = 1."""
    s = math.sqrt((1 - decay) * kappa)
    return (s - 1) ** 2 / ((1 - decay) * (kappa - 1)), math.sqrt((1 - decay) / kappa)


@pytest.mark.parametrize("kappa", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_theorem_1(kappa, decay):
    """f(x_T) - f* <= (1 - rate) ** T * E_0, and the worst mode shrinks by 1 - rate."""
    stepsize, rate = theorem_1(kappa, decay)
    curvature = torch.logspace(-math.log10(kappa), 0, 400, dtype=torch.float64)
    method = EMANesterov(stepsize, decay)
    x = analysis.trajectory(method, lambda y: curvature * y, torch.ones(400), 1.0, 2000).x
    f = (curvature * x**2).sum(-1) / 2
    start = f[0] + (x[0] ** 2).sum() / kappa / 2
    bound = start * (1 - rate) ** torch.arange(2001, dtype=torch.float64)
    assert (f <= bound * (1 + 1e-9)).all()

    # two eigenvalues meet there: half the digits are left (1.2e-9 off at kappa 1000, decay 0.9)
    radius = analysis.spectral_radius(method, 1.0, curvature)
    assert radius.max() == pytest.approx(1 - rate, abs=1e-8)
    worst = analysis.transition(method, 1.0, 1 / kappa)
    assert torch.linalg.det(worst - (1 - rate) * torch.eye(2)).abs() < 1e-14


@pytest.mark.parametrize("kappa", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("margin", [-0.5, -0.1, 0.1, 3.0])  # of 1 - decay over 1 / kappa
def test_theorem_1_beats_gradient_descent_on_its_condition_only(kappa, margin):
    decay = 1 - (1 + margin) / kappa
    curvature = torch.logspace(-math.log10(kappa), 0, 400, dtype=torch.float64)
    method = EMANesterov(theorem_1(kappa, decay)[0], decay)
    plain = analysis.spectral_radius(None, 1.0, curvature).max()
    assert (analysis.spectral_radius(method, 1.0, curvature).max() < plain - 1e-7) == (margin > 0)


def singular_quadratic(n=30):
    curvature = torch.cat([torch.zeros(3), torch.logspace(-6, 0, n - 3)]).double()
    return lambda x: (curvature * x**2).sum(-1) / 2, lambda y: curvature * y, 1.0


def log_sum_exp(n=30):
    """log(sum_i 2 cosh(a_i . x)), minimal at 0; the difference, without cancellation."""
    a = torch.randn(20, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def f(x):
        return torch.log1p(2 * (torch.sinh(x @ a.T / 2) ** 2).mean(-1))

    def gradient(y):
        return torch.sinh(a @ y) @ a / torch.cosh(a @ y).sum()

    return f, gradient, float((a**2).sum(-1).max())


@pytest.mark.parametrize("problem", [singular_quadratic, log_sum_exp])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_theorem_2(problem, decay):
    """E_t does not grow, so f(x_T) - f* <= E_0 / A_T (the sequence of ALGORITHMS 1.8)."""
    f, gradient, smoothness = problem()
    r, steps = 1 - decay, 2000
    t = torch.arange(steps + 1, dtype=torch.float64)
    tau, next_tau = (t + 2 / r) / 3, (t + 1 + 2 / r) / 3
    stepsize = lambda t: (r * t + 1 + r) / (r * t + 5 + r)  # noqa: E731
    a = 1 + r * next_tau
    later = a * tau / stepsize(t)
    big_a = torch.cat([later[:1] - a[:1], later[:-1]])

    method = EMANesterov(stepsize, decay)
    x, y = analysis.trajectory(method, gradient, torch.ones(30), 1 / smoothness, steps)
    m, z = torch.zeros(30, dtype=torch.float64), [x[0]]
    for i in range(steps):
        m = decay * m + r * (x[i + 1] - x[i])
        z.append(x[i + 1] + tau[i + 1] * m)
        # the step of z, on which the proof rests
        close(z[-1] - z[-2], -a[i] / smoothness * gradient(y[i]), 1e-10)
    energy = big_a * f(x) + smoothness / 2 * (torch.stack(z) ** 2).sum(-1)
    assert (energy.diff() <= 1e-10 * energy[:-1]).all()
    assert (f(x) <= energy[0] / big_a * (1 + 1e-10)).all()
    assert (big_a >= r * t**2 / 9).all()


class Schedule:
    """A step size that cannot be hashed."""

    __hash__ = None

    def __call__(self, t):
        return 0.5


def test_a_callable_step_size_is_analysed_and_let_go():
    schedule = Schedule()
    found = analysis.spectral_radius(EMANesterov(schedule, 0.9), 0.1, 1.0, t=50)
    assert found == analysis.spectral_radius(EMANesterov(0.5, 0.9), 0.1, 1.0, t=50)
    alive = weakref.ref(schedule)
    del schedule
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: analysis.transition(["nag"], 0.1, 1.0), TypeError, "method must be"),
        (lambda: analysis.transition(None, 0.1, 1.0, beta=0.9), TypeError, "beta is no option"),
        (lambda: analysis.transition(None, -0.1, 1.0), ValueError, "lr must be"),
        (lambda: analysis.transition(None, 0.1, 1.0, t=-1), ValueError, "t must be at least 0"),
        (lambda: analysis.spectral_radius(None, 0.1, 1, nesterov=True), ValueError, "momentum"),
        (lambda: analysis.transition(ScheduleFree(), 1, 1, momentum=0.9), ValueError, "replaces"),
        (lambda: analysis.frequency_response(NAG(0.9), 0.1, t=0.5), TypeError, "t must be an int"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
