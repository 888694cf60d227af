# SPDX-License-Identifier: MIT
"""Formulas traced as programs: the same numbers, one program for all values of the options."""

import itertools
import operator

import pytest

import device_plans
from device_plans import BASES, METHODS, PAIRS, SKIPPED, STEPS, Host, group_of, rate
from emanest import NALA, SNOO, LongHorizon, Lookahead
from emanest.backends.program import Program, Symbol, evaluate, record, symbol
from emanest.methods.method import StepInfo
from emanest.step.on_device import trace, trace_clock

# the largest program has 66
LARGEST = 80

OPERATORS = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow),
    *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
]
VALUES = [0.5, 1, 2, 3.25]

each_pair = pytest.mark.parametrize(("method", "base"), PAIRS)


def traced(method, base, **more):
    group = group_of(method, base, **more)
    return trace(group, METHODS[method], BASES[base][0], scaled=True)


def run(formula, *values):
    """A formula of symbols, traced and evaluated."""
    names = [f"input {i}" for i in range(len(values))]
    program, constants = record([formula(*map(symbol, names))])
    found = dict(zip(names, values, strict=True))
    (number,), _ = evaluate(program, [found[name] for name in program.inputs], constants)
    return number


@pytest.mark.parametrize("operation", OPERATORS, ids=lambda f: f.__name__)
def test_operations_are_pythons(operation):
    for a, b in itertools.product(VALUES, VALUES):
        expected = operation(a, b)
        assert run(operation, a, b) == expected
        assert run(lambda x, b=b: operation(x, b), a) == expected
        assert run(lambda y, a=a: operation(a, y), b) == expected


def test_comparisons_are_numbers():
    window = lambda t: -((t >= 2) * (t < 5)) + 3  # noqa: E731
    assert [run(window, t) for t in range(7)] == [3, 3, 2, 2, 2, 3, 3]


@each_pair
def test_a_program_computes_what_the_host_plans(method, base):
    """Exactly: the same operations in the same order."""
    host = Host(method, base)
    program, constants, *rules = traced(method, base)
    for t in range(STEPS):
        inputs = {**host.entries, "lr": rate(t), "initial_lr": 0.03, "grad_scale": 1024.0}
        numbers, after = evaluate(program, [inputs[n] for n in program.inputs], constants)
        assert numbers == host.step(rate(t), t in SKIPPED)
        assert tuple(rules) == host.rules
        names = [program.inputs[i] for i, _ in program.after]
        assert sorted(names) == sorted(host.entries)
        assert t in SKIPPED or dict(zip(names, after, strict=True)) == host.entries


@pytest.mark.parametrize("method", METHODS)
def test_a_group_without_gradients_still_counts_its_steps(method):
    host = Host(method, "sgd")
    program, constants, *_ = trace_clock(METHODS[method])
    inputs = {**host.entries, "lr": 0.02, "initial_lr": 0.03}
    numbers, after = evaluate(program, [inputs[n] for n in program.inputs], constants)
    host.step(0.02, False)
    assert numbers == []
    found = {program.inputs[i]: value for (i, _), value in zip(program.after, after, strict=True)}
    assert found == {k: v for k, v in host.entries.items() if k.startswith("lookahead_")}


@each_pair
def test_programs_are_small(method, base):
    assert len(traced(method, base).program.operations) <= LARGEST


@each_pair
def test_other_options_are_the_same_program(method, base):
    first, *others = (
        traced(method, base, weight_decay=decay, **options)
        for decay, options in [(0.3, {}), (0.05, {"eps": 0.05}), (1e-300, {"eps": 2.0})]
    )
    for other in others:
        assert (other.program, hash(other.program)) == (first.program, hash(first.program))
    if base == "sgd" and method != "gpa":
        assert others[0].constants != first.constants


def test_a_sum_that_appears_twice_is_computed_once():
    t = symbol("t")
    program, constants = record([(t + 1) * (t + 1)], {"t": t + 1})
    operations = ("input", 0, 0), ("literal", 1, 0), ("+", 0, 1), ("*", 2, 2)
    assert program == Program(("t",), operations, (3,), ((0, 2),))
    assert constants == ()


def test_equal_constants_stay_apart():
    """They are options, and one of them may change."""
    programs = []
    for first, second in [(0.5, 0.5), (0.5, 0.25)]:
        programs.append(record([symbol("t") * first + second]))
    assert programs[0][0] == programs[1][0]
    assert [constants for _, constants in programs] == [(0.5, 0.5), (0.5, 0.25)]


def test_what_is_not_needed_is_left_out():
    t, _unused = symbol("t"), symbol("lr") * 0.5
    program, constants = record([t * 0.25])
    assert (program.inputs, constants, len(program.operations)) == (("t",), (0.25,), 3)


# ---- what cannot be traced --------------------------------------------------------------------


@pytest.mark.parametrize(
    "branch",
    [
        lambda t: 1 if t > 3 else 0,
        lambda t: t >= 2 and t < 5,
        lambda t: not t,
        lambda t: max(t, 2),
        lambda t: 2 < t < 5,
        lambda t: t in (1, 2),
    ],
)
def test_a_branch_on_a_symbol_is_a_clear_error(branch):
    with pytest.raises(TypeError, match=r"a branch .* that only the device knows; write it as"):
        branch(symbol("t"))


@pytest.mark.parametrize("read", [float, int, range, "{:.2f}".format])
def test_reading_a_symbol_is_an_error(read):
    with pytest.raises(TypeError):
        read(symbol("t"))


@pytest.mark.parametrize("method", [Lookahead(3), LongHorizon(3), SNOO(3), NALA(3)])
def test_methods_with_syncs_cannot_be_recorded(method):
    """They are refused by name before that (``capturable``)."""
    t = symbol("t")
    with pytest.raises(TypeError):
        method.plan(StepInfo(t, t, t, t, t), {})


def test_other_operands_are_pythons_error():
    t = symbol("t")
    with pytest.raises(TypeError, match="unsupported operand"):
        t + "1"
    with pytest.raises(TypeError, match="expected a number, got 'x'"):
        record(["x"])
    with pytest.raises(TypeError, match="unhashable"):
        hash(t)


def test_every_operation_has_its_operator():
    t = symbol("t")
    for operation in OPERATORS:
        assert isinstance(operation(t, 0.5), Symbol)
    assert set(device_plans.BASES) == {"adamw", "amsgrad", "sgd", "momentum", "nesterov"}
