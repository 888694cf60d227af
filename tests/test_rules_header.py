"""csrc/rules.h says what rules.py says: both texts are brought into one form and compared.

Of a rule in Python, each line becomes the line that the header must have: numbers written out are
``1.0_n``, ``root(x)`` is ``std::sqrt(x)``, names that a rule makes are ``auto``. State is returned
in Python and assigned in C++.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest

from emanest import rules
from emanest.rules import BASES

HEADER = (Path(__file__).parents[1] / "csrc" / "rules.h").read_text()
# table in Python -> namespace in C++, the variant, and what a rule of it returns: state too, or not
TABLES = {
    "BASES": ("bases", "Base", True),
    "MOMENTA": ("momenta", "Momentum", True),
    "ROWS": ("rows", "RowRule", True),
    "LOOKAHEADS": ("lookaheads", "Lookahead", True),
    "POINTS": ("points", "Point", False),
}
RULES = [(table, name) for table in TABLES for name in getattr(rules, table)]


class ToCpp(ast.NodeTransformer):
    """Expressions of a rule as the header writes them."""

    def visit_Constant(self, node):
        return ast.Name(f"{node.value}_n")

    def visit_Call(self, node):
        assert ast.unparse(node.func) == "root"
        return ast.Call(ast.Name("std::sqrt"), [self.visit(each) for each in node.args], [])


def cpp(expression):
    return ast.unparse(ToCpp().visit(expression))


def from_python(rule, returns_state):
    """The lines that the body of a rule must have in C++."""
    (function,) = ast.parse(inspect.getsource(rule.function)).body
    arguments = [a.arg for a in function.args.args]
    known, state, lines = set(arguments), [], []
    for node in function.body:
        if isinstance(node, ast.Expr):
            continue  # the docstring
        if isinstance(node, ast.Return):
            lines += returned(node.value, state, returns_state)
            continue
        (target,) = node.targets
        if isinstance(target, ast.Tuple):
            names = [n.id for n in target.elts]
            source = node.value.id
            constant = source == "numbers" or not returns_state
            lines.append(f"{'const ' * constant}auto& [{', '.join(names)}] = {source};")
            known |= set(names)
            state = names if source == "state" else state
        else:
            lines.append(f"{'' if target.id in known else 'auto '}{target.id} = {cpp(node.value)};")
            known.add(target.id)
    return lines


def returned(value, state, returns_state):
    """What a return becomes: state is assigned, after the value that may depend on the old one."""
    if not returns_state:
        return [f"return {cpp(value)};"]
    result, new = value.elts
    # "return w, state": the state stays as it is
    new = state if isinstance(new, ast.Name) else [cpp(each) for each in new.elts]
    changed = [f"{a} = {b};" for a, b in zip(state or ["x"] * len(new), new, strict=True) if a != b]
    if not changed:
        return [f"return {cpp(result)};"]
    return [f"auto y = {cpp(result)};", *changed, "return y;"]


def struct(table, name):
    """The text of a rule's struct in the header."""
    namespace = TABLES[table][0]
    inside = re.search(rf"namespace {namespace} {{(.*?)}}  // namespace {namespace}", HEADER, re.S)
    (found,) = re.findall(rf"struct {name} {{\n(.*?)\n}};", inside[1], re.S)
    return found


def from_header(table, name):
    """The lines of the body of a rule, and the names of its arguments."""
    text = struct(table, name)
    arguments, body = re.search(r"static T apply\((.*?)\) {\n(.*)\n  }", text, re.S).groups()
    return [line.strip() for line in body.splitlines()], arguments


def normal(line):
    """Without what is a matter of taste: spaces, and brackets that change nothing."""
    before, equals, expression = line.rstrip(";").rpartition(" = ")
    keyword = "return " if expression.startswith("return ") else ""
    expression = expression.removeprefix(keyword)
    if "[" in before:
        return line
    tree = ast.parse(expression.replace("std::sqrt", "std_sqrt").replace("_n", "j"), mode="eval")
    return before + equals + keyword + ast.dump(tree)


@pytest.mark.parametrize(("table", "name"), RULES)
def test_the_header_has_the_lines_of_the_rule(table, name):
    rule = getattr(rules, table)[name]
    lines, _ = from_header(table, name)
    expected = from_python(rule, TABLES[table][2])
    # a rule that reads no state or no numbers need not name them in Python
    named = [
        line
        for line in lines
        if line not in expected and line.startswith(("auto& [", "const auto& ["))
    ]
    for line in named:
        assert re.fullmatch(r"(const )?auto& \[x\] = state;", line), line
        lines.remove(line)
    assert [normal(line) for line in lines] == [normal(line) for line in expected]


@pytest.mark.parametrize(("table", "name"), RULES)
def test_the_header_has_the_names_and_the_counts(table, name):
    rule = getattr(rules, table)[name]
    row = f'EMANEST_RULE("{name}", {len(rule.state)}, {len(rule.numbers)});'
    assert row in struct(table, name)


@pytest.mark.parametrize("table", TABLES)
def test_the_tables_have_the_same_rows_in_the_same_order(table):
    namespace, variant, _ = TABLES[table]
    (rows,) = re.findall(rf"using {variant} = std::variant<(.*?)>;", HEADER, re.S)
    expected = [f"{namespace}::{name}" for name in getattr(rules, table)]
    assert [row.rstrip(",") for row in rows.split()] == expected


def test_the_step_is_the_same():
    """Base rule, then the point that it reached, then lookahead rule."""
    (body,) = re.findall(r"EMANEST_INLINE T step\(.*?\) {\n(.*?)\n}", HEADER, re.S)
    assert [line.strip() for line in body.splitlines()] == [
        "T u = B::apply(y, g, base_state, base_numbers);",
        "return L::apply(y + u, u, look_state, look_numbers);",
    ]
    source = inspect.getsource(rules.step)
    assert "u, base_state = base(y, g, base_state, base_numbers)" in source
    assert "look(y + u, u, look_state, look_numbers)" in source


@pytest.mark.parametrize(
    ("line", "same"),
    [
        (
            "auto u = -step_size * exp_avg / (std::sqrt(exp_avg_sq) * scale + eps) - decay * y;",
            True,
        ),
        (
            "auto u = -step_size * (exp_avg / (std::sqrt(exp_avg_sq) * scale + eps)) - decay * y;",
            False,
        ),
        (
            "auto u = -step_size * exp_avg / (std::sqrt(exp_avg_sq) * scale - eps) - decay * y;",
            False,
        ),
        ("u = -step_size * exp_avg / (std::sqrt(exp_avg_sq) * scale + eps) - decay * y;", False),
    ],
)
def test_a_difference_of_one_sign_or_bracket_shows(line, same):
    expected = from_python(BASES["adamw"], True)[-2]
    assert (normal(line) == normal(expected)) == same
