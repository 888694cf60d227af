# SPDX-License-Identifier: MIT
"""What the text of the rules promises: the tables, the way back from x to y, plain arithmetic."""

import ast
import inspect

import pytest
import torch

from emanest import rules
from emanest.rules import BASES, LOOKAHEADS, MOMENTA, NORMS, POINTS, ROWS

TABLES = (BASES, MOMENTA, NORMS, ROWS, LOOKAHEADS, POINTS)


def unpacked(rule, argument):
    """The names that a rule's text unpacks from its state or its numbers; None if it does not."""
    for node in ast.walk(ast.parse(inspect.getsource(rule.function))):
        if isinstance(node, ast.Assign) and getattr(node.value, "id", None) == argument:
            return tuple(name.id for name in node.targets[0].elts)
    return None


RULES = {name: rule for table in TABLES for name, rule in table.items()}
READ = [(n, a) for n, r in RULES.items() for a in ("state", "numbers") if unpacked(r, a)]
# rules of one array, besides state
ALONE = {*MOMENTA, *ROWS, *POINTS}
# slow weights are read, and anchored, without looking at anything else
UNREAD = {("x_slow", "numbers"), ("anchor", "state")}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("argument", ["state", "numbers"])
def test_tables_have_the_names_that_a_rule_unpacks(name, argument):
    named = () if (name, argument) in UNREAD else getattr(RULES[name], argument)
    assert unpacked(RULES[name], argument) == (named or None)


@pytest.mark.parametrize(("name", "argument"), READ)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_length_is_an_error(name, argument, change):
    rule = RULES[name]
    given = {"state": rule.state, "numbers": rule.numbers}
    given[argument] = (*given[argument], "one more")[: len(given[argument]) + change]
    taken = inspect.signature(rule.function).parameters
    values = {k: tuple(torch.ones(3) for _ in given[k]) for k in taken if k in given}
    points = [torch.ones(3)] * (1 if name in ALONE else 2)
    with pytest.raises(ValueError, match="values to unpack"):
        rule.function(*points, **values)


@pytest.mark.parametrize("method", [n[2:] for n in POINTS if n[0] == "y"])
def test_x_and_y_are_inverse_to_each_other(method):
    to_x, to_y = (POINTS[f"{point}_{method}"].function for point in "xy")
    start, state = torch.randn(2, 99, dtype=torch.float64)
    for there, back in ((to_x, to_y), (to_y, to_x)):
        moved = there(start, (state,), (0.4,))
        assert not torch.allclose(moved, start, atol=1e-3)
        returned = back(moved, (state,), (0.4,))
        torch.testing.assert_close(returned, start, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, "x"), (1.0, "w"), (1, "w")])
def test_lookahead_is_exact_at_both_ends(alpha, expected):
    x, w = torch.randn(999), torch.randn(999) * 1e-6
    y, (new_x,) = rules.lookahead(w, None, (x,), (alpha,))
    assert torch.equal(y, {"x": x, "w": w}[expected])
    assert torch.equal(new_x, y)


@pytest.mark.parametrize("alpha", [0.1, 0.49, 0.5, 0.51, 0.9, 1.5])
def test_lookahead_is_a_lerp_on_both_sides_of_one_half(alpha):
    x, w = torch.randn(2, 999, dtype=torch.float64)
    y, _ = rules.lookahead(w, None, (x,), (alpha,))
    torch.testing.assert_close(y, (1 - alpha) * x + alpha * w, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_of_a_norm_rule_are_the_last_of_the_row_rule(name):
    norm = NORMS[ROWS[name].norm]
    assert norm.numbers == ROWS[name].numbers[-len(norm.numbers) :]


# ---- the text, which Triton compiles and a script translates to C++ -----------------------------

TEXT = ast.parse(inspect.getsource(rules))
FUNCTIONS = {n.name: n for n in TEXT.body if isinstance(n, ast.FunctionDef)}
ALLOWED = (
    *(ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Expr),
    *(ast.Name, ast.Load, ast.Store, ast.Constant, ast.Tuple),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UnaryOp, ast.USub),
    *(ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
# what is made of rules, which it is given
MADE_OF = {
    "step": ("base", "lookahead"),
    "follow": ("lookahead",),
    "move": ("point",),
    "average": ("momentum",),
}


def foreign(function):
    """Lines of a rule that are more than arithmetic, comparison, unpacking, ``root``, formulas."""
    nodes = list(ast.walk(function))
    calls = [n for n in nodes if isinstance(n, ast.Call) and not n.keywords]
    called = MADE_OF.get(function.name, ("root", *(f.__name__ for f in rules.FORMULAS)))
    accepted = {id(n) for n in calls if getattr(n.func, "id", None) in called}
    # 1 / 2 is 0 in C++: numbers are written as floats; the docstring is the one text
    constants = [n for n in nodes if isinstance(n, ast.Constant) and not isinstance(n.value, float)]
    docstring = function.body[0].value
    bad = [n for n in nodes if not isinstance(n, ALLOWED) and id(n) not in accepted]
    return [ast.unparse(n) for n in (*bad, *(n for n in constants if n is not docstring))]


@pytest.mark.parametrize(
    "function",
    [pytest.param(f, id=name) for name, f in FUNCTIONS.items() if name != "root"],
)
def test_rules_are_arithmetic(function):
    assert foreign(function) == []


@pytest.mark.parametrize(
    "line",
    [
        *("import torch", "y = torch.abs(y)", "y = y.abs()", "y = abs(y)", "y = y.sqrt()"),
        *("if y > 0: y = g", "y = g if y > 0 else y", "y = state[0]", "y = y ** 2", "y += g"),
        *("y = y > 0 and g", "y = not y", "y = y % g", "y = y @ g", "y = 'a'", "y = g.grad"),
        *("y = 2 * y", "for y in g: pass", "y = (lambda: g)()", "y = root(y).abs()"),
    ],
)
def test_anything_else_is_seen(line):
    assert foreign(ast.parse(f"def rule(y, g, state):\n    'doc'\n    {line}").body[0]) != []


def test_rules_import_nothing_and_every_one_is_in_a_table():
    assert not [n for n in ast.walk(TEXT) if isinstance(n, (ast.Import, ast.ImportFrom))]
    others = [*(row.function for row in rules.PASSES.values()), *rules.FORMULAS]
    named = FUNCTIONS.keys() - {"root", *(function.__name__ for function in others)}
    tables = [r.function.__name__ for t in TABLES for r in t.values()]
    assert sorted(tables) == sorted(named)
    for table in TABLES:
        assert [r.function.__name__ for r in table.values()] == list(table)
