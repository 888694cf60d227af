# SPDX-License-Identifier: MIT
"""What a method does to a signal and to a quadratic, computed by running its rules.

The bases of SGD are linear in (y, g, state) and every lookahead rule is linear in (w, u, state),
so one step of any method is a matrix, found by running the step on unit vectors. A method with
syncs repeats itself after ``period`` steps; the matrix then covers one period.

All functions take a method, or None for the base alone. Its numbers are those of step ``t`` of a
run with a constant learning rate: pass a ``t`` inside the window for a method with a warm-up or a
rest, and the step of interest where the numbers never settle (Schedule-Free). Arithmetic is
float64 on the CPU.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..methods.given import as_method
from ..methods.method import MethodLike, Plan, StepInfo
from ..optimizers.sgd import BASE as SGD
from ..rules import BASES, LOOKAHEADS, POINTS, step
from ..values import count, real

SETTLED = 10_000  # the default t: late enough for every start-up effect to have gone
_TINY = 1e-12  # below this a response is rounding


class Trajectory(NamedTuple):
    """Where a run has been: row t is taken before step t."""

    x: torch.Tensor
    y: torch.Tensor


def period(method: MethodLike) -> int:
    """Steps after which the method's rules repeat; 1 for a method without syncs.

    Raises:
        TypeError: neither a method nor None.
    """
    method, word, half = as_method(method, "method"), [], 0
    rules = (plan.rule for _, plan in _plans(method, 1.0, 0.0))
    # before its first sync a method with syncs has not shown what it repeats
    while not half or word[:half] != word[half:] or (method.syncs and set(word) == {Plan().rule}):
        word += [next(rules), next(rules)]
        half += 1
    return half


def transition(
    method: MethodLike,
    lr: float,
    curvature: float | torch.Tensor,
    *,
    t: int = SETTLED,
    **base: Any,
) -> torch.Tensor:
    """The companion matrix: one period of the method on f(y) = curvature * y ** 2 / 2.

    Args:
        method: a lookahead method, its name, a mapping of "name" and settings, or None.
        lr: learning rate of the base, at least 0.
        curvature: a number, or a tensor of them.
        t: the period is the one that contains step t.
        base: SGD's options ``momentum``, ``dampening``, ``nesterov``, ``weight_decay``.

    Returns:
        ``(*curvature.shape, n, n)``; it maps (y, the base's state, the method's state) before the
        period to the same after ``period(method)`` steps.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, or the method does
            not work with this base.
    """
    method = as_method(method, "method")
    group = _group(method, lr, **base)
    curvature = torch.as_tensor(curvature, dtype=torch.float64).unsqueeze(-1)
    names = (*BASES[SGD.rule(group)].state, *method.state)
    # a row of coefficients over the initial state stands for each value
    y, *rows = torch.eye(1 + len(names), dtype=torch.float64)
    state = dict(zip(names, rows, strict=True))
    for info, plan in _cycle(method, group["lr"], group["weight_decay"], count("t", t, 0)):
        y, state = _step(group, info, plan, y, curvature * y, state)
    return torch.stack(torch.broadcast_tensors(y, *state.values()), dim=-2)


def spectral_radius(
    method: MethodLike,
    lr: float,
    curvature: float | torch.Tensor,
    *,
    t: int = SETTLED,
    **base: Any,
) -> torch.Tensor:
    """The factor per step by which a run on a quadratic mode shrinks or grows in the long run.

    The largest eigenvalue of ``transition``, to the power 1 / period; arguments as there. At
    critical damping, where two eigenvalues meet, rounding moves them by about 1e-8.

    Returns:
        A tensor of the shape of ``curvature``; 0-d for a number.
    """
    radius = torch.linalg.eigvals(transition(method, lr, curvature, t=t, **base)).abs().amax(-1)
    return radius ** (1 / period(method))


def frequency_response(
    method: MethodLike, frequencies: float | torch.Tensor, *, t: int = SETTLED
) -> torch.Tensor:
    """The closed loop: from the base's updates u to the iterate's displacements x' - x.

    Its value at 0 is the gain of a steady drift, ``1 / (1 - stepsize)`` for EMA-Nesterov.

    Over one period of a method with syncs, u = exp(i w t) gives displacements of several
    frequencies, w + 2 pi k / period; the response is the component at w itself.

    Args:
        method: a lookahead method, its name, a mapping of "name" and settings, or None.
        frequencies: w in radians per step, a number or a tensor.
        t: the period is the one that contains step t.

    Returns:
        A complex tensor of the shape of ``frequencies``.

    Raises:
        TypeError, ValueError: neither a method nor None; t is no count.
    """
    return _response(
        as_method(method, "method"),
        frequencies,
        t,
        drive=lambda plan, x, y, state, update: update,
        read=lambda x, next_x, next_y: next_x - x,
    )


def direction_response(
    method: MethodLike, frequencies: float | torch.Tensor, *, t: int = SETTLED
) -> torch.Tensor:
    """The filter of the lookahead direction: from displacements x' - x to y' - x'.

    It is scaled to 1 at frequency 0, which takes the step size out. Arguments, and the meaning for
    a method with syncs, are those of ``frequency_response``; there a direction that is used once
    per period counts as zero elsewhere.

    Raises:
        ValueError: y is x, so there is no direction, or some steps leave x where it is, so that
            its displacements cannot be chosen freely.
    """
    method = as_method(method, "method")

    def drive(plan, x, y, state, delta):
        # the update that moves x by delta
        gain = _follow(method, plan, 0.0, 1.0, dict.fromkeys(state, 0.0))[2]
        if abs(gain) < _TINY:
            raise ValueError(
                f"{method.name} has no direction filter: its iterate x does not move at every step"
            )
        return (x + delta - _follow(method, plan, y, torch.zeros_like(y), state)[2]) / gain

    def direction(x, next_x, next_y):
        return next_y - next_x

    steady = _response(method, 0.0, t, drive, direction)
    if steady.abs() < _TINY:
        raise ValueError(f"{method} has no lookahead direction at step {t}: y is x there")
    return _response(method, frequencies, t, drive, direction) / steady


def trajectory(
    method: MethodLike,
    gradient: Callable[[torch.Tensor], torch.Tensor],
    start: float | torch.Tensor,
    lr: float,
    steps: int,
    **base: Any,
) -> Trajectory:
    """Run a method on SGD from step 0.

    Args:
        method: a lookahead method, its name, a mapping of "name" and settings, or None.
        gradient: function of y, a float64 tensor shaped as ``start``; it may be noisy.
        start: where x and y begin.
        lr: learning rate, at least 0; constant.
        steps: how many.
        base: SGD's options, as in ``transition``.

    Returns:
        A ``Trajectory`` of ``steps + 1`` rows.

    Raises:
        TypeError, ValueError: as in ``transition``.
    """
    method = as_method(method, "method")
    group = _group(method, lr, **base)
    x = y = torch.as_tensor(start, dtype=torch.float64)
    names = (*BASES[SGD.rule(group)].state, *method.state)
    state = {name: y if name in method.positions else torch.zeros_like(y) for name in names}
    xs, ys = [x], [y]
    plans = _plans(method, group["lr"], group["weight_decay"])
    for info, plan in itertools.islice(plans, count("steps", steps, 0)):
        y, state = _step(group, info, plan, y, gradient(y), state)
        xs.append(_iterate(method, y, state, plan.ahead))
        ys.append(y)
    return Trajectory(torch.stack(xs), torch.stack(ys))


def _group(method, lr, **base):
    options = {**SGD.options, "lr": real("lr", lr, 0)}
    for name in base.keys() - options.keys():
        raise TypeError(f"{name} is no option of SGD, the base here: {list(options)}")
    group = SGD.checked({**options, **base})
    method.check_base(group)
    return group


def _plans(method, lr, weight_decay):
    """Yield where every step begins and what it does, from step 0 on."""
    ahead, memory = 0.0, dict(method.memory)
    for t in itertools.count():
        memory = method.remember(t, lr, 0.0, memory)
        info = StepInfo(t, t, ahead, lr, weight_decay)
        plan = method.plan(info, memory)
        yield info, plan
        ahead = plan.ahead


def _cycle(method, lr, weight_decay, t):
    """One period of ``_plans``, the one that contains step t."""
    # a function may not be hashable, and would be kept alive
    found = _find_cycle if any(map(callable, method.settings().values())) else _cached_cycle
    return found(method, lr, weight_decay, t)


def _find_cycle(method, lr, weight_decay, t):
    steps = period(method)
    start = t - t % steps
    return tuple(itertools.islice(_plans(method, lr, weight_decay), start, start + steps))


_cached_cycle = functools.lru_cache(maxsize=64)(_find_cycle)


def _step(group, info, plan, y, g, state):
    group = {**group, **plan.options}
    row, numbers = plan.base or (SGD.rule(group), SGD.numbers(group, info))
    base, lookahead = BASES[row], LOOKAHEADS[plan.rule]
    held = tuple(tuple(state[name] for name in rule.state) for rule in (base, lookahead))
    y, *new = step(base.function, lookahead.function, y, g, *held, numbers, plan.numbers)
    return y, state | dict(zip(base.state + lookahead.state, itertools.chain(*new), strict=True))


def _follow(method, plan, y, u, state):
    """Apply the lookahead rule alone, to any update; return y, state and x after it."""
    lookahead = LOOKAHEADS[plan.rule]
    y, new = lookahead.function(
        y + u, u, tuple(state[name] for name in lookahead.state), plan.numbers
    )
    state = state | dict(zip(lookahead.state, new, strict=True))
    return y, state, _iterate(method, y, state, plan.ahead)


def _iterate(method, y, state, ahead):
    if ahead == 0:
        return y
    point = POINTS[method.points[0]]
    return point.function(y, (state[method.state[0]],), (ahead,))


def _response(method, frequencies, t, drive, read):
    """Lift one period to a time-invariant system and evaluate it on the unit circle.

    ``drive(plan, x, y, state, input)`` gives each step's update, ``read(x, x', y')`` its output.
    """
    cycle = _cycle(method, 1.0, 0.0, count("t", t, 0))
    size, steps = len(method.state), len(cycle)
    # positions are measured from y, or the drift of a constant input would have no steady state
    unit = torch.eye(size + steps, dtype=torch.float64)
    y, state = torch.zeros_like(unit[0]), dict(zip(method.state, unit, strict=False))
    x = _iterate(method, y, state, cycle[0][0].ahead)
    outputs = []
    for (_, plan), signal in zip(cycle, unit[size:], strict=True):
        y, state, next_x = _follow(method, plan, y, drive(plan, x, y, state, signal), state)
        outputs.append(read(x, next_x, y))
        x = next_x
    held = [row - y * (name in method.positions) for name, row in state.items()]
    rows = torch.stack([*held, *outputs]).to(torch.complex128)
    within, entering = rows[:size].split((size, steps), dim=1)
    seen, passing = rows[size:].split((size, steps), dim=1)

    w = torch.as_tensor(frequencies, dtype=torch.float64).unsqueeze(-1)
    wave = torch.exp(1j * w * torch.arange(steps))
    turn = torch.exp(1j * w * steps).unsqueeze(-1) * torch.eye(size)
    settled = torch.linalg.solve(turn - within, wave @ entering.T)
    return (wave.conj() * (settled @ seen.T + wave @ passing.T)).mean(-1)
