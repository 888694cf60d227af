"""Every pair of rules on every back end, against the same text in float64."""

import pytest
import torch

from emanest import backends, rules
from emanest.rules import BASES, LOOKAHEADS, POINTS
from helpers import one_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")

# of every number that a rule unpacks: large enough for a thousandth of it to show
NUMBERS = {
    "lr": 0.3,
    "weight_decay": 0.2,
    "friction": 0.2,
    "weight": 0.7,
    "step_size": 0.3,
    "decay": 0.05,
    "weight1": 0.2,
    "weight2": 0.1,
    "scale": 1.7,
    "eps": 0.3,
    "lookahead": 0.4,
    "next_lookahead": 0.6,
    "alpha": 0.3,
    "stepsize": 0.5,
    "outer_lr": 0.7,
    "outer_momentum": 0.5,
    "gain": 0.2,
    "mu": -0.4,
}
# averages of squares
POSITIVE = {"exp_avg_sq", "max_exp_avg_sq"}
# of the gradients: a back end must not drop its sign, nor its size
SCALE = -0.5

# (relative, absolute) for values near 1; narrow parameters are rounded once: half a unit
WIDE = {torch.float64: (1e-14, 1e-14), torch.float32: (1e-6, 1e-6)}
NARROW = {dtype: (torch.finfo(dtype).eps / 2, 1e-6) for dtype in (torch.bfloat16, torch.float16)}
TOLERANCES = {**WIDE, **NARROW}

each_base = pytest.mark.parametrize("base", BASES)
each_look = pytest.mark.parametrize("look", LOOKAHEADS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
each_rule = pytest.mark.parametrize(
    "rule",
    [pytest.param(r, id=name) for t in (BASES, LOOKAHEADS, POINTS) for name, r in t.items()],
)


@pytest.fixture(params=backends.BACKENDS)
def backend(request):
    try:
        return backends.pick("cpu", request.param)
    except RuntimeError as error:
        pytest.skip(str(error))


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def tensors(seed, dtype, positive=False, twist=False):
    """One tensor of every size and layout; ``twist`` gives the last another memory order."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        values = torch.randn(shape, generator=generator)
        return (values.square() if positive else values).to(dtype)

    dense = [randn(*shape) for shape in [(), (1,), (7,), (1023,), (0,), (33, 65)]]
    odd = [randn(65, 33).t(), randn(33, 130)[:, ::2], randn(1024)[1:]]
    return [*dense, *odd, randn(65, 33).t() if twist else randn(33, 65)]


def states(names, seed, dtype):
    """For each parameter the tuple of its named state."""
    columns = [tensors(seed + i, dtype, name in POSITIVE, i % 2) for i, name in enumerate(names)]
    return list(zip(*columns, strict=True)) if names else [()] * len(tensors(0, dtype))


def numbers(rule):
    return tuple(NUMBERS[name] for name in rule.numbers)


def doubles(entries):
    return tuple(t.to(torch.float64, copy=True) for t in entries)


def check(found, expected, dtype):
    rtol, atol = TOLERANCES[dtype]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)


def check_all(found, expected, dtype):
    for one, exact in zip(found, expected, strict=True):
        check(one, exact, dtype)


@each_base
@each_look
@each_dtype
def test_a_step_is_the_rules(backend, base, look, dtype):
    rule, ahead = BASES[base], LOOKAHEADS[look]
    ys, gs = tensors(1, dtype), tensors(2, dtype, twist=True)
    kept = states(rule.state, 10, wide(dtype)), states(ahead.state, 20, wide(dtype))
    before = [doubles(ys), *([doubles(entries) for entries in state] for state in kept)]
    given = numbers(rule), numbers(ahead)
    backend.step_(base, look, ys, gs, *kept, *given, SCALE, wide(dtype))
    for i, (y, base_state, look_state) in enumerate(zip(*before, strict=True)):
        g = gs[i].double() * SCALE
        functions = rule.function, ahead.function
        y, base_state, look_state = rules.step(*functions, y, g, base_state, look_state, *given)
        check(ys[i], y, dtype)
        check_all(kept[0][i], base_state, wide(dtype))
        check_all(kept[1][i], look_state, wide(dtype))


@each_look
@each_dtype
def test_following_is_the_rule(backend, look, dtype):
    ys, snapshots = tensors(1, dtype), tensors(2, dtype, twist=True)
    state = states(LOOKAHEADS[look].state, 20, wide(dtype))
    before = doubles(ys), doubles(snapshots), [doubles(entries) for entries in state]
    backend.follow_(look, ys, snapshots, state, numbers(LOOKAHEADS[look]), wide(dtype))
    for i, (w, snapshot, old) in enumerate(zip(*before, strict=True)):
        y, new = LOOKAHEADS[look].function(w, w - snapshot, old, numbers(LOOKAHEADS[look]))
        check(ys[i], y, dtype)
        assert torch.equal(snapshots[i], ys[i])
        check_all(state[i], new, wide(dtype))


@pytest.mark.parametrize("point", POINTS)
@each_dtype
def test_moving_is_the_rule(backend, point, dtype):
    ys, state = tensors(1, dtype), states(POINTS[point].state, 20, wide(dtype))
    before = doubles(ys), [doubles(entries) for entries in state]
    backend.move_(point, ys, state, (0.4,), wide(dtype))
    for y, at, old, kept in zip(ys, *before, state, strict=True):
        check(y, POINTS[point].function(at, old, (0.4,)), dtype)
        assert torch.equal(old[0], kept[0].double())


@each_base
@pytest.mark.parametrize("grad_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_gradient_of_another_dtype_keeps_its_digits(backend, base, grad_dtype, dtype):
    rule = BASES[base]
    ys, gs = tensors(1, dtype), tensors(2, grad_dtype, twist=True)
    state = states(rule.state, 10, torch.float32)
    before = doubles(ys), [doubles(entries) for entries in state]
    given = numbers(rule), ()
    backend.step_(base, "none", ys, gs, state, [()] * len(ys), *given, 1.0, torch.float32)
    for y, entries, g, at, old in zip(ys, state, gs, *before, strict=True):
        u, new = rule.function(at, g.double(), old, given[0])
        check(y, at + u, dtype)
        check_all(entries, new, torch.float32)


@each_base
@each_look
def test_numbers_may_be_tensors(backend, base, look):
    """As under ``capturable``: 0-d tensors in float64, which must not promote 0-d parameters."""
    runs = []
    for convert in (float, lambda n: torch.tensor(n, dtype=torch.float64)):
        ys, gs = tensors(1, torch.float32), tensors(2, torch.float32)
        base_state = states(BASES[base].state, 10, torch.float32)
        look_state = states(LOOKAHEADS[look].state, 20, torch.float32)
        given = [tuple(map(convert, numbers(r))) for r in (BASES[base], LOOKAHEADS[look])]
        backend.step_(base, look, ys, gs, base_state, look_state, *given, 1.0, torch.float32)
        runs.append([*ys, *(t for entries in (*base_state, *look_state) for t in entries)])
    assert all(torch.equal(found, expected) for found, expected in zip(*runs, strict=True))


def outputs(rule, given):
    """What a rule returns in float64 at one input, as a list of tensors."""
    y, other = tensors(1, torch.float64)[3], tensors(2, torch.float64)[3]
    state = states(rule.state, 20, torch.float64)[3]
    moves = rule in POINTS.values()
    found = rule.function(y, state, given) if moves else rule.function(y, other, state, given)
    return [found] if moves else [found[0], *found[1]]


@each_rule
def test_an_error_of_a_thousandth_in_a_number_shows(rule):
    """The tolerance of float32 tells it from rounding, in every number that the rule unpacks."""
    right = outputs(rule, numbers(rule))
    for i, name in enumerate(rule.numbers):
        wrong = list(numbers(rule))
        wrong[i] *= 1.001
        rtol, atol = (10 * tolerance for tolerance in TOLERANCES[torch.float32])
        same = [
            torch.allclose(a, b, rtol, atol)
            for a, b in zip(outputs(rule, wrong), right, strict=True)
        ]
        assert not all(same) or (rule is POINTS["x_slow"]), name
