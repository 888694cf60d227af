# SPDX-License-Identifier: MIT
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
    "blend": 0.3,
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


# Triton is among them where it interprets: test_triton runs this file so
@pytest.fixture(params=[name for name in backends.BACKENDS if backends.find(name, "cpu")[0]])
def backend(request):
    return backends.pick("cpu", request.param)


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


def columns(names, seed, dtype, make=tensors):
    """For each name one tensor per parameter."""
    return [make(seed + i, dtype, name in POSITIVE, i % 2) for i, name in enumerate(names)]


def rows(columns, count):
    """For each parameter the tuple of its state."""
    return list(zip(*columns, strict=True)) if columns else [()] * count


def numbers(rule):
    return tuple(NUMBERS[name] for name in rule.numbers)


def doubles(entries):
    return tuple(t.to(torch.float64, copy=True) for t in entries)


def copies(columns, count):
    """For each parameter its state as it is now, in float64."""
    return [doubles(entries) for entries in rows(columns, count)]


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
    rules_, ys, gs = (
        (BASES[base], LOOKAHEADS[look]),
        tensors(1, dtype),
        tensors(2, dtype, twist=True),
    )
    state = [columns(r.state, 10 * i, wide(dtype)) for i, r in enumerate(rules_, 1)]
    before = doubles(ys), *(copies(entries, len(ys)) for entries in state)
    given = [numbers(r) for r in rules_]
    backend.apply_(
        "step",
        (base, look),
        ys,
        gs,
        [*state[0], *state[1]],
        (SCALE, *given[0], *given[1]),
        wide(dtype),
    )
    after = ys, *(rows(entries, len(ys)) for entries in state)
    for i, (found, old) in enumerate(
        zip(zip(*after, strict=True), zip(*before, strict=True), strict=True)
    ):
        y, *old_state = old
        functions = [r.function for r in rules_]
        expected = rules.step(*functions, y, gs[i].double() * SCALE, *old_state, *given)
        check(found[0], expected[0], dtype)
        check_all(found[1], expected[1], wide(dtype))
        check_all(found[2], expected[2], wide(dtype))


@each_look
@each_dtype
def test_following_is_the_rule(backend, look, dtype):
    rule, ys, snapshots = LOOKAHEADS[look], tensors(1, dtype), tensors(2, dtype, twist=True)
    state = columns(rule.state, 20, wide(dtype))
    before = doubles(ys), doubles(snapshots), copies(state, len(ys))
    backend.apply_("follow", (look,), ys, snapshots, state, numbers(rule), wide(dtype))
    after = rows(state, len(ys))
    for i, (w, snapshot, old) in enumerate(zip(*before, strict=True)):
        y, new = rule.function(w, w - snapshot, old, numbers(rule))
        check(ys[i], y, dtype)
        assert torch.equal(snapshots[i], ys[i])
        check_all(after[i], new, wide(dtype))


@pytest.mark.parametrize("point", POINTS)
@each_dtype
def test_moving_is_the_rule(backend, point, dtype):
    ys, state = tensors(1, dtype), columns(POINTS[point].state, 20, wide(dtype))
    before = doubles(ys), copies(state, len(ys))
    backend.apply_("move", (point,), ys, (), state, (0.4,), wide(dtype))
    for y, at, old, kept in zip(ys, *before, copies(state, len(ys)), strict=True):
        check(y, POINTS[point].function(at, old, (0.4,)), dtype)
        assert torch.equal(old[0], kept[0])


# every pass over state, with rules that keep some
PASSES = {
    "step": ("amsgrad", "snoo"),
    "follow": ("gpa",),
    "move": ("y_between",),
    "momentum": ("ema",),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("state_dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_may_be_in_any_format(backend, name, dtype, state_dtype):
    """As if it was converted before the pass, and rounded after it."""
    pass_, names = rules.PASSES[name], PASSES[name]
    rows = pass_.rows(names)

    def run(convert):
        ys, inputs = tensors(1, dtype), tensors(2, dtype) if "input" in pass_.reads else []
        state = [c for k, r in enumerate(rows) for c in columns(r.state, 10 * k, state_dtype)]
        state = [list(map(convert, column)) for column in state]
        given = (SCALE,) * pass_.factor + tuple(n for r in rows for n in numbers(r))
        squares = torch.zeros(len(ys), dtype=torch.float64) if name == "momentum" else None
        backend.apply_(name, names, ys, inputs, state, given, torch.float32, squares=squares)
        return ys, [t for column in state for t in column]

    ys, state = run(lambda t: t)
    expected, wide_state = run(lambda t: t.to(torch.float32))
    assert all(map(torch.equal, ys, expected))
    assert all(torch.equal(t, w.to(state_dtype)) for t, w in zip(state, wide_state, strict=True))


@each_base
@pytest.mark.parametrize("grad_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_gradient_of_another_dtype_keeps_its_digits(backend, base, grad_dtype, dtype):
    rule = BASES[base]
    ys, gs = tensors(1, dtype), tensors(2, grad_dtype, twist=True)
    state = columns(rule.state, 10, torch.float32)
    before = doubles(ys), copies(state, len(ys))
    given = numbers(rule)
    backend.apply_("step", (base, "none"), ys, gs, state, (1.0, *given), torch.float32)
    for y, entries, g, at, old in zip(ys, rows(state, len(ys)), gs, *before, strict=True):
        u, new = rule.function(at, g.double(), old, given)
        check(y, at + u, dtype)
        check_all(entries, new, torch.float32)


def stepped(backend, base, look, convert=tuple, dtype=torch.float32, **options):
    """Parameters and state after a step, with the numbers in another form."""
    ys, gs = tensors(1, dtype), tensors(2, dtype)
    state = [
        columns(r.state, s, wide(dtype)) for r, s in ((BASES[base], 10), (LOOKAHEADS[look], 20))
    ]
    given = convert((SCALE, *numbers(BASES[base]), *numbers(LOOKAHEADS[look])))
    backend.apply_(
        "step", (base, look), ys, gs, [*state[0], *state[1]], given, wide(dtype), **options
    )
    return [*ys, *(t for entries in state for column in entries for t in column)]


@each_base
@each_look
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_numbers_may_be_a_vector_on_the_device(backend, base, look, dtype):
    """As under ``capturable``: in float64, which must not promote 0-d parameters."""
    plain = stepped(backend, base, look, dtype=dtype)
    vector = stepped(backend, base, look, lambda n: torch.tensor(n, dtype=torch.float64), dtype)
    assert all(map(torch.equal, plain, vector))


@each_base
@each_look
@each_dtype
def test_a_step_may_be_skipped_on_the_device(backend, base, look, dtype):
    """As under a GradScaler; whatever is in the gradients."""
    ys, gs = tensors(1, dtype), tensors(2, dtype)
    for g in gs:
        g.fill_(torch.nan)
    state = [
        columns(r.state, s, wide(dtype)) for r, s in ((BASES[base], 10), (LOOKAHEADS[look], 20))
    ]
    given = (SCALE, *numbers(BASES[base]), *numbers(LOOKAHEADS[look]))
    everything = [*ys, *(t for entries in state for column in entries for t in column)]
    before = [t.clone() for t in everything]
    both = [*state[0], *state[1]]
    backend.apply_("step", (base, look), ys, gs, both, given, wide(dtype), skip=torch.ones(1))
    assert all(map(torch.equal, everything, before))
    run = stepped(backend, base, look, dtype=dtype, skip=torch.zeros(1))
    assert all(map(torch.equal, run, stepped(backend, base, look, dtype=dtype)))


@each_look
def test_following_may_be_skipped_on_the_device(backend, look):
    ys, snapshots = tensors(1, torch.float32), tensors(2, torch.float32)
    state = columns(LOOKAHEADS[look].state, 20, torch.float32)
    kept = [t.clone() for t in (*ys, *snapshots, *(t for column in state for t in column))]
    given = numbers(LOOKAHEADS[look])
    backend.apply_(
        "follow", (look,), ys, snapshots, state, given, torch.float32, skip=torch.ones(1)
    )
    assert all(map(torch.equal, kept, (*ys, *snapshots, *(t for c in state for t in c))))


@each_dtype
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, None], ids=str)
def test_a_value_that_is_not_finite_is_found(backend, dtype, bad):
    for i in range(len(tensors(1, dtype))):
        gs = tensors(1, dtype)
        if bad is not None and gs[i].numel():
            gs[i][(-1,) * gs[i].dim()] = bad
        found = backend.nonfinite(gs)
        assert found.shape == (1,)
        assert found.dtype == torch.float32
        assert found.item() == (bad is not None and gs[i].numel() > 0)


def test_a_negated_value_that_is_not_finite_is_found(backend):
    for value in (torch.nan, -torch.inf, 1.0):
        found = backend.nonfinite([torch._neg_view(torch.full((3,), value))])
        assert found.tolist() == [value != 1.0]


def outputs(rule, given):
    """What a rule returns in float64 at one input, as a list of tensors."""
    y, other = tensors(1, torch.float64)[3], tensors(2, torch.float64)[3]
    state = tuple(column[3] for column in columns(rule.state, 20, torch.float64))
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
