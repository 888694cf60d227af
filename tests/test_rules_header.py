# SPDX-License-Identifier: MIT
"""csrc/rules.h is rules.py in C++, as csrc/generate_rules.py writes it; what it cannot is an error.

``test_sizes`` compiles and runs what it makes of another file.
"""

import runpy
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
GENERATOR = runpy.run_path(str(CSRC / "generate_rules.py"))
Untranslatable = GENERATOR["Untranslatable"]


def test_the_header_is_what_the_rules_are_translated_to():
    current = (CSRC / "rules.h").read_text() == GENERATOR["generate"]()
    assert current, "emanest/rules.py has changed: `make rules` writes csrc/rules.h anew"


@pytest.fixture
def generated(tmp_path):
    """The header of rules.py with more text at its end."""

    def generate(text):
        path = tmp_path / "rules.py"
        path.write_text(GENERATOR["RULES"].read_text() + text)
        return GENERATOR["generate"](path)

    return generate


def function(head, body):
    return f"\n\ndef {head}:\n    'About it.'\n" + "".join(f"    {line}\n" for line in body)


def lookahead(body, head="rule(w, u, state, numbers)"):
    """The text of a lookahead with two states and two numbers."""
    row = "LOOKAHEADS['rule'] = Rule(rule, ('a', 'b'), ('p', 'q'))\n"
    return function(head, body) + row


STATE, NUMBERS = "a, b = state", "p, q = numbers"


@pytest.mark.parametrize(
    ("body", "arguments", "expected"),
    [
        (["return w, state"], "T w, T, T*, const Numbers&", ["return w;"]),
        (
            [STATE, "return w - (a - u), (a, b)"],
            "T w, T u, T* state, const Numbers&",
            ["T a = state[0], b = state[1];", "return leave(state, {a, b}, w - (a - u));"],
        ),
        (
            ["return w, (u, -w)"],
            "T w, T u, T* state, const Numbers&",
            ["return leave(state, {u, -w}, w);"],
        ),
        # what is not returned is not kept; all that is read is the old state
        (
            [STATE, "a = a + b", "return w, state"],
            "T w, T, T* state, const Numbers&",
            ["T a = state[0], b = state[1];", "a = a + b;", "return w;"],
        ),
        (
            ["_, b = state", "p, _q = numbers", "return w + p * b, state"],
            "T w, T, T* state, const Numbers& numbers",
            [
                "[[maybe_unused]] T _ = state[0], b = state[1];",
                "[[maybe_unused]] const auto& [p, _q] = numbers;",
                "return w + p * b;",
            ],
        ),
        (
            [STATE, "return w / (a / b), (b, a - (w - b))"],
            "T w, T, T* state, const Numbers&",
            [
                "T a = state[0], b = state[1];",
                "return leave(state, {b, a - (w - b)}, w / (a / b));",
            ],
        ),
        (
            [NUMBERS, "# why, not u", "near = (p < 0.5) * q", "return near * root(w), state"],
            "T w, T, T*, const Numbers& numbers",
            [
                "const auto& [p, q] = numbers;",
                "auto near = (p < Number(0.5)) * q;",
                "return near * std::sqrt(w);",
            ],
        ),
    ],
)
def test_lines_keep_their_order_and_brackets_and_what_is_not_read_has_no_name(
    generated, body, arguments, expected
):
    struct = generated(lookahead(body)).partition("struct rule {\n")[2].partition("\n};\n")[0]
    row, _, signature, *lines, _ = map(str.strip, struct.splitlines())
    assert row == 'EMANEST_RULE("rule", 2, 2);'
    assert signature == f"EMANEST_INLINE static T apply({arguments}) {{"
    assert lines == expected


def test_a_formula_is_called_by_rules_and_by_formulas_after_it(generated):
    """An argument with the name of a rule's number is one."""
    lines = function("twice(a, q)", ["return more(a, q) * q"])
    lines = function("more(a, q)", ["return a + q * root(a)"]) + lines
    lines += "FORMULAS = (*FORMULAS, more, twice)\n"
    body = [NUMBERS, "return twice(w - u, 1.0 - q), state"]
    text = generated(lines + lookahead(body))
    more, twice, rule = (text.index(f" {name}(") for name in ("T more", "T twice", "T apply"))
    assert more < twice < rule
    assert "T twice(T a, Number q) {\n  return more(a, q) * q;" in text
    assert "return twice(w - u, Number(1.0) - q);" in text


ONE_BY_ONE = "a rule unpacks, assigns names one by one, and returns"
FOREIGN = "a rule is .* of its names and floats"
FACTOR = "a comparison is a factor of an array or of a number"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        # in C++ an integer, a comparison of a comparison, integers again
        (["return 2 * w, state"], FOREIGN),
        (["return (0.0 < w < u) * w, state"], FOREIGN),
        (["x = (w < u) + (u < w)", "return x * w, state"], FACTOR),
        (["x = (w < u) * (u < w)", "return x * w, state"], FACTOR),
        (["return -(w < u) * w, state"], FACTOR),
        # `auto` is the type of the first value
        (["x = w < u", "x = x * w", "return x, state"], "x is a truth that stays"),
        ([NUMBERS, "x = 1.0 - p", "x = x * w", "return x, state"], "x is a number that stays"),
        ([NUMBERS, "p = p * q", "return w * p, state"], "p is a number that stays"),
        ([NUMBERS, "return p, state"], "values and state are arrays"),
        ([NUMBERS, "return w * root(p), state"], FOREIGN),
        ([STATE, NUMBERS, "return w, (a, p)"], "values and state are arrays"),
        # state
        ([STATE, "a, b = b, a", "return w, (a, b)"], ONE_BY_ONE),
        ([STATE, "return w, (a,)"], "the state has 2 values"),
        ([STATE, "return w, a"], "the state has 2 values"),
        ([STATE, "return w, ()"], "the state has 2 values"),
        ([STATE, "return w"], ONE_BY_ONE),
        (["a, b, c = state", "return w, (a, b)"], "state has 2 values, each with a name"),
        (["(a,) = state", "return w, (a, a)"], "state has 2 values, each with a name"),
        (["(p,) = numbers", "return p * w, state"], "numbers has 2 values, each with a name"),
        (["a, *b = state", "return w, (a, a)"], "state has 2 values, each with a name"),
        (["a, (b, c) = state", "return w, (a, b)"], "state has 2 values, each with a name"),
        # only a pass is given rules
        (["return u(w, state, numbers)"], FOREIGN),
        (["w, state = u(w, state, numbers)", "return w, state"], FOREIGN),
        # a name is declared once
        (["w, b = state", "return w, (w, b)"], "w has a meaning already"),
        (["a, root = state", "return a, (a, root)"], "root has a meaning already"),
        ([STATE, "c, b = state", "return a, (b, c)"], "b has a meaning already"),
        (["numbers = w", "return w, state"], "numbers has a meaning already"),
        ([STATE, "leave = w", "return leave, (a, b)"], "leave has a meaning already"),
        ([STATE, "T = w", "return T, (b, a)"], "T has a meaning already"),
        (["Number = w", "return 2.0 * Number, state"], "Number has a meaning already"),
        (["std = w", "return root(std), state"], "std has a meaning already"),
        (["return w * POSITIONS, state"], FOREIGN),
        (["return w * numbers[0], state"], FOREIGN),
        # formulas
        (["return averaged(w, u, w), state"], "averaged takes array, array, number"),
        (["return averaged(w, u), state"], "averaged takes array, array, number"),
        ([NUMBERS, "return averaged(p, u, q), state"], "averaged takes array, array, number"),
        (["return evened(w < u, u), state"], "evened takes array, array"),
        (["return w + evened(follow(w, u), u), state"], FOREIGN),
        (["averaged = w", "return averaged, state"], "averaged has a meaning already"),
        # anything else
        (["if w: u = w", "return u, state"], ONE_BY_ONE),
        (["w += u", "return w, state"], ONE_BY_ONE),
        (["x = y = u", "return x, state"], ONE_BY_ONE),
        (["x: float = u", "return x, state"], ONE_BY_ONE),
        (["return w ** 2.0, state"], FOREIGN),
        (["return abs(w), state"], FOREIGN),
        (["return root(w, u), state"], FOREIGN),
        (["return w, state", "w = u"], "a rule returns at its end"),
        (["w = u"], "a rule returns at its end"),
    ],
)
def test_what_cpp_would_take_for_something_else_is_an_error(generated, body, why):
    with pytest.raises(Untranslatable, match=rf"rules.py, line \d+, in rule: `.*`: .*{why}"):
        generated(lookahead(body))


def test_a_rule_without_state_may_return_none(generated):
    row = "LOOKAHEADS['rule'] = Rule(rule)\n"
    text = generated(function("rule(w, u, state, numbers)", ["return w + u, ()"]) + row)
    assert "static T apply(T w, T u, T*, const Numbers&) {\n    return w + u;" in text


def test_a_rule_that_is_given_no_state_unpacks_none(generated):
    row = "NORMS['rule'] = Rule(rule, ('a',))\n"
    with pytest.raises(Untranslatable, match=ONE_BY_ONE):
        generated(function("rule(before, after)", ["(a,) = state", "return before"]) + row)


@pytest.mark.parametrize("arguments", ["w, u, state, numbers=()", "w, *u", "w, *, u"])
def test_arguments_are_names(generated, arguments):
    with pytest.raises(Untranslatable, match=r"in rule: .*arguments are names, without defaults"):
        generated(lookahead(["return w, ()"], f"rule({arguments})"))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (["u, b = base(w, a, p)", "return u, a"], "a rule hands its own state on"),
        (["return base(w, a, p) * w"], FOREIGN),
        (["return base(w, p)"], FOREIGN),
        (["u, a = base(w, a, p)", "return u"], "returns a value and all state"),
        (["return base(w, a, p), p"], FOREIGN),
        # the state that the first has advanced would be lost
        (["u, a = base(w, a, p)", "return base(u, a, p)"], "returns a value and all state"),
    ],
)
def test_a_pass_is_made_of_rules(generated, body, why):
    with pytest.raises(Untranslatable, match=rf"rules.py, line \d+, in made: `.*`: .*{why}"):
        generated(function("made(base, w, a, p)", body) + "PASSES['made'] = Pass(made, (), ())\n")
