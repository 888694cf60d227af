# SPDX-License-Identifier: MIT
# SPDX-License-Identifier: MIT
"""Write csrc/rules.h, which is emanest/rules.py in C++: ``make rules``.

Each rule becomes a struct whose ``apply`` has the rule's lines in their order: ``root(x)`` is
``std::sqrt(x)``, numbers that are written out are ``Number``, names that a rule makes are ``auto``,
and state is read into copies and written at the end. Formulas that rules call are functions.
Whatever C++ would take for something else is an error that names the line. Only Python's own
modules are imported; rules.py imports nothing.
"""

import ast
import re
import runpy
import textwrap
from pathlib import Path

RULES = Path(__file__).parents[1] / "emanest" / "rules.py"
HEADER = Path(__file__).with_name("rules.h")

TOP = """\
// SPDX-License-Identifier: MIT
// Generated from emanest/rules.py, whose comments say why, by csrc/generate_rules.py: `make rules`
// writes it anew.
//
// A rule reads and writes its state in place and returns the update (bases), what is orthogonalised
// (momenta), a factor (rows, norms), the next gradient point (lookaheads), or the point moved to
// (points). T is float or double.
#pragma once

#include <cmath>
#include <variant>

#include "number.h"

namespace emanest {
"""
# table in Python -> namespace, name of the std::variant of its rules, and whether they return state
TABLES = {
    "BASES": ("bases", "Base", True),
    "MOMENTA": ("momenta", "Momentum", True),
    "NORMS": ("norms", "Norm", False),  # before the row rules, which name them
    "ROWS": ("rows", "RowRule", True),
    "LOOKAHEADS": ("lookaheads", "Lookahead", True),
    "POINTS": ("points", "Point", False),
}
# arguments of rules that are no arrays
TYPES = {"state": "T*", "numbers": "const Numbers&"}
# what a name that a rule makes would hide
TAKEN = ("Number", "T", "leave", "root", "std")


class Untranslatable(ValueError):
    """A line of a rule that has no counterpart in C++."""


class Function:
    """A function of rules.py on its way to C++.

    Args:
        tree: its syntax tree.
        rule: its row of a table; None: it is a pass, or a formula.
        writes: whether it returns state.
        formulas: what it may call: name -> the kinds of the arguments.
        kinds: of its own arguments, if it is a formula.
    """

    def __init__(self, tree, rule=None, writes=False, formulas=(), kinds=()):
        self.tree, self.rule, self.writes, self.formulas = tree, rule, writes, dict(formulas)
        self.arguments = [a.arg for a in tree.args.args]
        # of each name whether it is an "array", a "number" or a "truth", which C++ keeps
        self.kinds = {a: "array" for a in self.arguments if a not in ("state", "numbers")}
        self.kinds |= zip(self.arguments, kinds, strict=False)
        # of each argument its type; None: a rule, which is a type itself
        self.types = {**dict.fromkeys(self.arguments, "T"), **TYPES}
        self.types |= {a: "Number" for a, kind in self.kinds.items() if kind == "number"}
        self.passed = []  # state that rules of a pass have advanced
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        self.read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
        if ast.unparse(tree.args) != ", ".join(self.arguments):
            self.refuse(tree, "arguments are names, without defaults")
        if not ast.get_docstring(tree):
            self.refuse(tree, "a docstring says what it is")

    def refuse(self, node, why):
        """Raise the error for a line."""
        text = ast.unparse(node).partition("\n")[0]
        where = f"rules.py, line {node.lineno}, in {self.tree.name}"
        raise Untranslatable(f"{where}: `{text}`: {why}")

    def kind(self, node):
        """Of an expression; an error if C++ would read it otherwise."""
        match node:
            case ast.Constant(float()):
                return "number"
            case ast.Name(name) if name in self.kinds:
                return self.kinds[name]
            case ast.Call(ast.Name("root"), [argument], []) if self.kind(argument) == "array":
                return "array"
            case ast.Call(ast.Name(name), arguments, []) if name in self.formulas:
                if [*map(self.kind, arguments)] != self.formulas[name]:
                    self.refuse(node, f"{name} takes {', '.join(self.formulas[name])}")
                return "array"
            case ast.UnaryOp(ast.USub(), operand):
                parts, found = [operand], None
            case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right):
                parts, found = [left, right], None
            case ast.Compare(left, [ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], [right]):
                parts, found = [left, right], "truth"
            case _:
                found = ", ".join(("root", *self.formulas))
                self.refuse(node, f"a rule is + - * / < <= > >= {found}, of its names and floats")
        kinds = [self.kind(part) for part in parts]
        selects = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
        if kinds.count("truth") > selects:
            # C++ would go on with integers
            self.refuse(node, "a comparison is a factor of an array or of a number")
        return found or ("array" if "array" in kinds else "number")

    def text(self, node):
        """An expression in C++, where operators bind as in Python."""
        self.kind(node)
        return ast.unparse(_Cpp().visit(ast.parse(ast.unparse(node))))

    def arrays(self, *nodes):
        """Values, or state, in C++."""
        for node in nodes:
            if self.kind(node) != "array":
                self.refuse(node, "values and state are arrays")
        return ", ".join(map(self.text, nodes))

    def applied(self, call):
        """A call of a rule that a pass is given, with its state and its numbers at the end."""
        match call:
            case ast.Call(ast.Name(rule), [_, *_, ast.Name(state), ast.Name(numbers)]):
                if not self.rule and {rule, state, numbers} <= set(self.arguments):
                    self.types[rule] = None
                    self.types[state] = "T*"
                    self.types[numbers] = f"const typename {rule}::Numbers&"
                    self.passed.append(state)
                    return f"{rule}::apply({self.arrays(*call.args[:-2])}, {state}, {numbers})"
        return self.text(call)

    def name(self, name, kind, node, new=False):
        """A name that is assigned, which is declared where it is new."""
        if name in self.kinds and not new:
            if {kind, self.kinds[name]} != {"array"}:
                self.refuse(node, f"{name} is a {self.kinds[name]} that stays")
            return name
        if name in (*self.kinds, *self.arguments, *self.formulas, *TAKEN):
            self.refuse(node, f"{name} has a meaning already")
        self.kinds[name] = kind
        return f"auto {name}"

    def line(self, node):
        """A line in C++."""
        match node:
            case ast.Assign([ast.Tuple(names)], ast.Name("state" | "numbers" as source)) if (
                self.rule and source in self.arguments
            ):
                names, count = [*map(ast.unparse, names)], len(getattr(self.rule, source))
                if len(names) != count or not all(map(str.isidentifier, names)):
                    self.refuse(node, f"{source} has {count} values, each with a name")
                for name in names:
                    self.name(name, "number" if source == "numbers" else "array", node, new=True)
                # or compilers would warn
                unread = "[[maybe_unused]] " * (not self.read.issuperset(names))
                if source == "numbers":
                    return f"{unread}const auto& [{', '.join(names)}] = numbers;"
                # one by one: with a copy of an array, gcc makes no vectors of the loop around it
                copies = ", ".join(f"{name} = state[{k}]" for k, name in enumerate(names))
                return f"{unread}T {copies};"
            case ast.Assign([ast.Name(name)], value):
                text = self.text(value)
                return f"{self.name(name, self.kind(value), node)} = {text};"
            case ast.Assign([ast.Tuple([ast.Name(name), ast.Name(state)])], ast.Call() as call):
                text = self.applied(call)
                if [state] != self.passed[-1:]:
                    self.refuse(node, "a rule hands its own state on")
                return f"{self.name(name, 'array', node)} = {text};"
            case ast.Return(ast.Tuple([value, after])) if self.writes:
                value, count = self.arrays(value), len(self.rule.state)
                if ast.unparse(after) in ("state", "()" * (not count)):
                    return f"return {value};"
                if not isinstance(after, ast.Tuple) or len(after.elts) != count:
                    self.refuse(node, f"the state has {count} values")
                return f"return leave(state, {{{self.arrays(*after.elts)}}}, {value});"
            case ast.Return(
                (ast.Call(ast.Name(rule)) as call)
                | ast.Tuple([ast.Call(ast.Name(rule)) as call, ast.Name("state")])
            ) if rule in self.arguments:
                if not self.passed:
                    return f"return {self.applied(call)};"
            case ast.Return(ast.Tuple([value, *after])) if self.passed:
                if self.passed == [*map(ast.unparse, after)]:
                    return f"return {self.arrays(value)};"
            case ast.Return(value) if not self.writes and not self.passed:
                return f"return {self.arrays(value)};"
        made = "a pass calls rules, and returns a value and all state"
        rule = "a rule unpacks, assigns names one by one, and returns"
        return self.refuse(node, made if self.passed else rule)

    def template(self, head):
        """The function template."""
        lines = []
        for node in self.tree.body[1:]:
            if isinstance(node, ast.Return) != (node is self.tree.body[-1]):
                self.refuse(node, "a rule returns at its end")
            lines += textwrap.wrap(self.line(node), 94, subsequent_indent="    ")
        read = {*re.findall(r"\w+", " ".join(lines))}
        types = {a: self.types[a] for a in self.arguments}
        rules = [f", class {name}" for name, type_ in types.items() if not type_]
        # what is not used has no name, or compilers would warn
        parameters = [f"{type_} {a * (a in read)}".strip() for a, type_ in types.items() if type_]
        return [
            f"template <class T{''.join(rules)}>",
            *_wrapped(f"EMANEST_INLINE {head}(", parameters, ") {"),
            *(f"  {line}" for line in lines),
            "}",
        ]


class _Cpp(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Call(ast.Name("Number"), [node], [])

    def visit_Call(self, node):
        name = "std::sqrt" if node.func.id == "root" else node.func.id
        return ast.Call(ast.Name(name), [self.visit(each) for each in node.args], [])


def _about(tree):
    """The first paragraph of a docstring."""
    return [f"// {line}" for line in ast.get_docstring(tree).partition("\n\n")[0].splitlines()]


def _wrapped(head, items, tail):
    """Items after a head, separated by commas, in lines of at most 98 characters."""
    text = head + ", ".join(item.replace(" ", "\0") for item in items) + tail.replace(" ", "\0")
    lines = textwrap.wrap(text, 98, subsequent_indent=" " * len(head), break_long_words=False)
    return [line.replace("\0", " ") for line in lines]


def generate(path=RULES):
    """The text of csrc/rules.h, from a file like emanest/rules.py.

    Raises:
        Untranslatable: a line would mean something else in C++.
    """
    source = Path(path).read_text()
    trees = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    tables, text, variants = runpy.run_path(str(path)), [TOP], []
    numbers = {n for table in TABLES for rule in tables[table].values() for n in rule.numbers}
    formulas = {}
    for function in tables["FORMULAS"]:
        tree = trees[function.__name__]
        kinds = ["number" if a.arg in numbers else "array" for a in tree.args.args]
        formula = Function(tree, formulas=formulas, kinds=kinds)
        text += [*_about(tree), *formula.template(f"T {tree.name}"), ""]
        formulas[tree.name] = kinds
    for table, (namespace, variant, writes) in TABLES.items():
        text += [f"namespace {namespace} {{", ""]
        for name, rule in tables[table].items():
            tree = trees[rule.function.__name__]
            counts = f'EMANEST_RULE("{name}", {len(rule.state)}, {len(rule.numbers)});'
            norm = [f"using norm = norms::{rule.norm};"] if rule.norm else []
            function = Function(tree, rule, writes, formulas)
            inside = [counts, *norm, *function.template("static T apply")]
            text += [
                *_about(tree),
                f"struct {name} {{",
                *(f"  {line}" for line in inside),
                "};",
                "",
            ]
        text += [f"}}  // namespace {namespace}", ""]
        names = [f"{namespace}::{name}" for name in tables[table]]
        variants += _wrapped(f"using {variant} = std::variant<", names, ">;")
    text += ["// the tables, in the order of rules.py", *variants, ""]
    for row in tables["PASSES"].values():
        tree = trees[row.function.__name__]
        text += [*_about(tree), *Function(tree).template(f"T {tree.name}"), ""]
    return "\n".join([*text, "}  // namespace emanest\n"])


if __name__ == "__main__":
    HEADER.write_text(generate())
