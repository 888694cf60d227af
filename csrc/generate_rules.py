"""Write csrc/rules.h, which is emanest/rules.py in C++: ``make rules``.

Each rule becomes a struct whose ``apply`` has the rule's lines in their order: ``root(x)`` is
``std::sqrt(x)``, numbers that are written out are ``Number``, names that a rule makes are ``auto``,
and state is assigned in place where Python returns it. Whatever C++ would take for something else
is an error that names the line. Only Python's own modules are imported; rules.py imports nothing.
"""

import ast
import io
import re
import runpy
import tokenize
from pathlib import Path

RULES = Path(__file__).parents[1] / "emanest" / "rules.py"
HEADER = Path(__file__).with_name("rules.h")

TOP = """\
// Generated from emanest/rules.py by csrc/generate_rules.py: `make rules` writes it anew.
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


class Untranslatable(ValueError):
    """A line of a rule that has no counterpart in C++."""


class Translation:
    """One function on its way to C++.

    Args:
        function: its syntax tree.
        rule: its row of a table, or None.
        writes: whether it returns state.
    """

    def __init__(self, function, rule=None, writes=False):
        self.function, self.rule, self.writes = function, rule, writes
        self.arguments = [a.arg for a in function.args.args]
        # of each name whether it is an "array", a "number" or a "truth", which C++ keeps
        self.kinds = {a: "array" for a in self.arguments if a not in ("state", "numbers")}
        self.unpacked = {"state": [], "numbers": []}
        self.assigned = set()
        if ast.unparse(function.args) != ", ".join(self.arguments):
            self.refuse(function, "arguments are names, without defaults")
        if not ast.get_docstring(function):
            self.refuse(function, "a docstring says what it is")

    def refuse(self, node, why):
        """Raise the error for a line."""
        text = ast.unparse(node).partition("\n")[0]
        where = f"rules.py, line {node.lineno}, in {self.function.name}"
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
            case ast.UnaryOp(ast.USub(), operand):
                parts, found = [operand], None
            case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right):
                parts, found = [left, right], None
            case ast.Compare(left, [ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], [right]):
                parts, found = [left, right], "truth"
            case _:
                self.refuse(node, "a rule is + - * / < <= > >= and root, of its names and floats")
        kinds = [self.kind(part) for part in parts]
        selects = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
        if kinds.count("truth") > selects:
            # C++ would go on with integers
            self.refuse(node, "a comparison is a factor of an array or of a number")
        return found or ("array" if "array" in kinds else "number")

    def text(self, node):
        """An expression in C++, where operators bind as in Python."""
        self.kind(node)
        return ast.unparse(_Cpp().visit(ast.parse(ast.unparse(node), mode="eval").body))

    def add(self, name, kind, node):
        """Make a name known that C++ declares."""
        if name in (*self.kinds, *self.arguments, "root"):
            self.refuse(node, f"{name} has a meaning already")
        self.kinds[name] = kind

    def line(self, node):
        """A line of a rule: what it is in C++."""
        match node:
            case ast.Assign([ast.Tuple(names)], ast.Name("state" | "numbers" as source)) if (
                source in self.arguments and not self.unpacked[source]
            ):
                for name in names:
                    self.add(ast.unparse(name), "number" if source == "numbers" else "array", node)
                self.unpacked[source] = [*map(ast.unparse, names)]
                const = "" if source == "state" and self.writes else "const "
                return [f"{const}auto& [{', '.join(self.unpacked[source])}] = {source};"]
            case ast.Assign([ast.Name(name)], value):
                kind, new = self.kind(value), name not in self.kinds
                if new:
                    self.add(name, kind, node)
                if kind != self.kinds[name] or name in self.unpacked["numbers"]:
                    self.refuse(node, f"{name} is a {self.kinds[name]} that stays")
                self.assigned.add(name)
                return [f"{'auto ' * new}{name} = {self.text(value)};"]
            case ast.Return(ast.Tuple([result, state])) if self.writes:
                return self.returned(node, result, state)
            case ast.Return(value) if not self.writes and self.kind(value) == "array":
                return [f"return {self.text(value)};"]
        return self.refuse(node, "a rule unpacks, assigns names one by one, and returns")

    def returned(self, node, result, state):
        """``return result, state``: state is assigned after the result, which may read the old."""
        places = self.unpacked["state"] or [f"state[{k}]" for k in range(len(self.rule.state))]
        if ast.unparse(state) == "state":
            if self.assigned & set(places):
                self.refuse(node, "state was assigned, and in C++ in place: return its names")
            changed = []
        elif isinstance(state, ast.Tuple) and len(state.elts) == len(places):
            pairs = zip(places, state.elts, strict=True)
            changed = [(to, value) for to, value in pairs if ast.unparse(value) != to]
        else:
            self.refuse(node, f"the state has {len(places)} values")
        if {self.kind(each) for each in (result, *(value for _, value in changed))} != {"array"}:
            self.refuse(node, "values and state are arrays")
        for k, (to, _) in enumerate(changed):
            if any(to in _names(value) for _, value in changed[k + 1 :]):
                self.refuse(node, f"{to} is read after it was assigned: name the new values first")
        value, lines = self.text(result), [f"{to} = {self.text(new)};" for to, new in changed]
        if _names(result).isdisjoint(to for to, _ in changed):
            return [*lines, f"return {value};"]
        self.add("result", "array", node)
        return [f"auto result = {value};", *lines, "return result;"]

    def body(self, comments):
        """The lines of a rule, with the comments above them (by their line in Python)."""
        found, last = [], self.function.body[0].end_lineno
        for node in self.function.body[1:]:
            if isinstance(node, ast.Return) != (node is self.function.body[-1]):
                self.refuse(node, "a rule returns at its end")
            found += [comments[n] for n in range(last + 1, node.lineno) if n in comments]
            found += self.line(node)
            last = node.end_lineno
        return found


class _Cpp(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Call(ast.Name("Number"), [node], [])

    def visit_Call(self, node):
        return ast.Call(ast.Name("std::sqrt"), [self.visit(each) for each in node.args], [])


def _names(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _function(function, templates, head, parameters, lines):
    """A function template, below the first paragraph of its docstring."""
    about = ast.get_docstring(function).partition("\n\n")[0].splitlines()
    return (
        [f"// {line}" for line in about],
        [
            f"template <{', '.join(f'class {name}' for name in ('T', *templates))}>",
            *_wrapped(f"EMANEST_INLINE {head}(", parameters, ") {"),
            *(f"  {line}" for line in lines),
            "}",
        ],
    )


def _struct(name, function, rule, comments, writes):
    """A rule of a table."""
    translation = Translation(function, rule, writes)
    lines = translation.body(comments)
    read = {n for line in lines if not line.startswith("//") for n in re.findall(r"\w+", line)}
    types = {"state": f"{'' if writes else 'const '}State<T>&", "numbers": "const Numbers&"}
    # what is not used has no name, or compilers would warn
    parameters = [f"{types.get(a, 'T')} {a * (a in read)}".strip() for a in translation.arguments]
    about, text = _function(function, (), "static T apply", parameters, lines)
    counts = f'EMANEST_RULE("{name}", {len(rule.state)}, {len(rule.numbers)});'
    norm = [f"using norm = norms::{rule.norm};"] if rule.norm else []
    inside = [f"  {line}" for line in (counts, *norm, *text)]
    return [*about, f"struct {name} {{", *inside, "};", ""]


def _pass(function):
    """A row of PASSES: arithmetic alone, or made of rules, which it is given.

    The last two arguments of a rule are its state and its numbers.
    """
    translation = Translation(function)
    types, states, lines = dict.fromkeys(translation.arguments, "T"), [], []

    def value(node):
        match node:
            case ast.Call(ast.Name(rule), [_, *_, ast.Name(state), ast.Name(numbers)]) if {
                rule,
                state,
                numbers,
            } <= types.keys():
                types[rule] = None
                types[state] = f"typename {rule}::template State<T>&"
                types[numbers] = f"const typename {rule}::Numbers&"
                states.append(state)
                values = map(translation.text, node.args[:-2])
                return f"{rule}::apply({', '.join(values)}, {state}, {numbers})"
        return translation.text(node)

    for node in function.body[1:]:
        match node:
            case ast.Assign([ast.Tuple([ast.Name(to), ast.Name(state)])], ast.Call() as call):
                lines.append(f"{'' if to in types else 'T '}{to} = {value(call)};")
                translation.kinds[to] = "array"
                if [state] != states[-1:]:
                    translation.refuse(node, "a rule hands its own state on")
            case ast.Return(ast.Tuple([result, *after])) if [*map(ast.unparse, after)] == states:
                lines.append(f"return {value(result)};")
            case ast.Return(ast.Call() | ast.BinOp() as result) if not states:
                lines.append(f"return {value(result)};")
            case _:
                translation.refuse(node, "a pass calls rules, and returns a value and all state")
    parameters = [f"{kind} {name}" for name, kind in types.items() if kind]
    rules = [name for name, kind in types.items() if not kind]
    about, text = _function(function, rules, f"T {function.name}", parameters, lines)
    return [*about, *text, ""]


def _wrapped(head, items, tail):
    """Items after a head, separated by commas, in lines of at most 100 characters."""
    lines = [head]
    for item in [*(f"{item}," for item in items[:-1]), *(item + tail for item in items[-1:])]:
        if len(lines[-1]) + len(item) >= 98:
            lines.append(" " * len(head))
        lines[-1] += " " * lines[-1].endswith(",") + item
    return lines


def generate(path=RULES):
    """The text of csrc/rules.h, from a file like emanest/rules.py.

    Raises:
        Untranslatable: a line would mean something else in C++.
    """
    source = Path(path).read_text()
    functions = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    tables, text, variants = runpy.run_path(str(path)), [TOP], []
    comments = {
        token.start[0]: f"// {token.string.lstrip('# ')}"
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line.strip() == token.string
    }
    for table, (namespace, variant, writes) in TABLES.items():
        text += [f"namespace {namespace} {{", ""]
        for name, rule in tables[table].items():
            function = functions[rule.function.__name__]
            text += _struct(name, function, rule, comments, writes)
        text += [f"}}  // namespace {namespace}", ""]
        names = [f"{namespace}::{name}" for name in tables[table]]
        variants += _wrapped(f"using {variant} = std::variant<", names, ">;")
    text += ["// the tables, in the order of rules.py", *variants, ""]
    for function in tables["PASSES"]:
        text += _pass(functions[function.__name__])
    return "\n".join([*text, "}  // namespace emanest\n"])


if __name__ == "__main__":
    HEADER.write_text(generate())
