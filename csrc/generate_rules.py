"""Write csrc/rules.h, which is emanest/rules.py in C++: ``make rules``.

Each rule becomes a struct whose ``apply`` has the rule's lines in their order: ``root(x)`` is
``std::sqrt(x)``, numbers that are written out are ``Number``, names that a rule makes are ``auto``,
and state is assigned in place where Python returns it. Whatever would not mean the same in C++ is
an error that names the line. Nothing is imported but Python's own: rules.py imports nothing either.
"""

import ast
import io
import math
import runpy
import textwrap
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
BOTTOM = "}  // namespace emanest\n"

# table in Python -> namespace, name of the std::variant of its rules, and whether they return state
TABLES = {
    "BASES": ("bases", "Base", True),
    "MOMENTA": ("momenta", "Momentum", True),
    "NORMS": ("norms", "Norm", False),  # before the row rules, which name them
    "ROWS": ("rows", "RowRule", True),
    "LOOKAHEADS": ("lookaheads", "Lookahead", True),
    "POINTS": ("points", "Point", False),
}

# names that mean something else in C++
TAKEN = frozenset(
    "T Number Numbers Row State std apply emanest alignas alignof and and_eq asm auto bitand bitor "
    "bool break case catch char char16_t char32_t class compl const const_cast constexpr continue "
    "decltype default delete do double dynamic_cast else enum explicit export extern false float "
    "for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator "
    "or or_eq private protected public register reinterpret_cast return short signed sizeof static "
    "static_assert static_cast struct switch template this thread_local throw true try typedef "
    "typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq".split()
)


class Untranslatable(ValueError):
    """A line of a rule that has no counterpart in C++."""

    def __init__(self, function, node, why):
        line, text = getattr(node, "lineno", function.lineno), ast.unparse(node).partition("\n")[0]
        super().__init__(f"rules.py, line {line}, in {function.name}: `{text}`: {why}")


class Translation:
    """What the translation of one function knows while it goes through its lines.

    Args:
        function: its syntax tree.
        state: the names that the table gives to its state.
    """

    def __init__(self, function, state=()):
        self.function, self.state = function, state
        arguments = function.args
        if ast.unparse(arguments) != ", ".join(a.arg for a in arguments.args):
            self.refuse(function, "arguments have names, and nothing else")
        self.arguments = [a.arg for a in arguments.args]
        # what can be read; of these what must not be assigned, what holds a comparison, and what
        # was assigned
        self.known, self.constant, self.truths, self.assigned = set(), {"root"}, set(), set()
        for name in self.arguments:
            if name in ("state", "numbers"):
                self.constant.add(name)
            else:
                self.add(name, function)
        self.unpacked = {}  # "state", "numbers" -> names

    def refuse(self, node, why):
        raise Untranslatable(self.function, node, why)

    def add(self, name, node):
        """Make a name known that C++ declares."""
        if name in TAKEN or name in self.known | self.constant:
            self.refuse(node, f"{name} already means something here: take another name")
        self.known.add(name)

    # ---- expressions ----------------------------------------------------------------------------

    def expression(self, node):
        """An expression in C++, whose precedence is that of Python."""
        self.check(node)
        return ast.unparse(_Cpp().visit(ast.parse(ast.unparse(node), mode="eval").body))

    def check(self, node):
        """Refuse an expression that C++ would read otherwise; True: it is a comparison's result."""
        match node:
            case ast.Constant(float()) if math.isfinite(node.value):
                return False
            case ast.Name() if node.id in self.known:
                return node.id in self.truths
            case ast.Name():
                self.refuse(node, "a rule reads its arguments, what it unpacked and what it made")
            case ast.Call(ast.Name("root"), [argument], []):
                self.plain(argument)
                return False
            case ast.UnaryOp(ast.USub(), operand):
                self.plain(operand)
                return False
            case ast.BinOp(left, ast.Mult(), right):
                # a selection: of two comparisons, C++ would make an integer
                truths = self.check(left), self.check(right)
                if all(truths):
                    self.refuse(node, "a comparison multiplies an array or a number")
                return False
            case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Div(), right):
                self.plain(left, right)
                return False
            case ast.Compare(left, [ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], [right]):
                self.plain(left, right)
                return True
        why = "a rule is + - * /, < <= > >= of two values, and root, of names and of floats (2.0)"
        return self.refuse(node, why)

    def plain(self, *nodes):
        for node in nodes:
            if self.check(node):
                self.refuse(node, "a comparison can be multiplied, and nothing else")

    # ---- lines ----------------------------------------------------------------------------------

    def unpack(self, node):
        """``a, b = state``: names for the elements of an argument, not copies."""
        targets, source = node.targets[0].elts, node.value
        ours = isinstance(source, ast.Name) and source.id in ("state", "numbers")
        if not ours or source.id not in self.arguments or source.id in self.unpacked:
            self.refuse(node, "only state and numbers are unpacked, each once")
        if not all(isinstance(t, ast.Name) for t in targets):
            self.refuse(node, "state and numbers are unpacked into names")
        if self.assigned and source.id == "state":
            self.refuse(node, "state is unpacked before anything is assigned")
        names = [t.id for t in targets]
        for name in names:
            self.add(name, node)
        if source.id == "numbers" or not self.writes:
            self.constant |= set(names)
        self.unpacked[source.id] = names
        const = "" if source.id == "state" and self.writes else "const "
        return [f"{const}auto& [{', '.join(names)}] = {source.id};"]

    def assign(self, node):
        """``a = b``."""
        (target,) = node.targets
        truth, value = self.check(node.value), self.expression(node.value)
        new = target.id not in self.known
        if target.id in self.constant:
            self.refuse(node, f"{target.id} cannot be assigned: take another name")
        if not new and truth != (target.id in self.truths):
            self.refuse(node, f"{target.id} is of another type: take another name")
        if new:
            self.add(target.id, node)
            self.truths |= {target.id} if truth else set()
        self.assigned.add(target.id)
        return [f"{'auto ' * new}{target.id} = {value};"]

    def returned(self, node):
        """A value; state is assigned after it, which may depend on the old one."""
        if not self.writes:
            self.plain(node.value)
            return [f"return {self.expression(node.value)};"]
        match node.value:
            case ast.Tuple([result, new]):
                self.plain(result)
            case _:
                self.refuse(node, "this rule returns a value and the state")
        places = self.unpacked.get("state") or [f"state[{k}]" for k in range(len(self.state))]
        match new:
            case ast.Name("state"):
                # as it came, which in place it would no longer be
                if self.assigned & set(places):
                    self.refuse(node, f"state was assigned: return ({', '.join(places)},)")
                changed = []
            case ast.Tuple(elements) if len(elements) == len(places):
                self.plain(*elements)
                pairs = zip(places, elements, strict=True)
                changed = [(to, each) for to, each in pairs if to != ast.unparse(each)]
            case _:
                self.refuse(node, f"the state is {len(places)} values: {', '.join(places)}")
        result_text = self.expression(result)
        for k, (to, _) in enumerate(changed):
            if any(to in _names(later) for _, later in changed[k + 1 :]):
                self.refuse(node, f"{to} is read after it was assigned: make names for both values")
        lines = [f"{to} = {self.expression(each)};" for to, each in changed]
        if _names(result).isdisjoint(to for to, _ in changed):
            return [*lines, f"return {result_text};"]
        self.add("result", node)
        return [f"auto result = {result_text};", *lines, "return result;"]

    def lines(self, comments, writes):
        """The body: a list of lines.

        Args:
            comments: line -> a comment that stands there.
            writes: whether the rule returns state.
        """
        self.writes, found = writes, []
        body = self.function.body[1:]
        last = self.function.body[0].end_lineno
        for node in body:
            found += [comments[n] for n in range(last + 1, node.lineno) if n in comments]
            last = node.end_lineno
            match node:
                case ast.Assign([ast.Tuple()]):
                    found += self.unpack(node)
                case ast.Assign([ast.Name()]):
                    found += self.assign(node)
                case ast.Return() if node is body[-1]:
                    found += self.returned(node)
                case _:
                    self.refuse(node, "a rule unpacks, assigns names, and returns at its end")
        if not body or not isinstance(body[-1], ast.Return):
            self.refuse(self.function, "a rule returns at its end")
        return found

    def used(self, name):
        """Whether the body has a name."""
        return any(name in _names(node) for node in self.function.body)


class _Cpp(ast.NodeTransformer):
    """An expression that was checked, so that its text is C++."""

    def visit_Constant(self, node):
        return ast.Call(ast.Name("Number"), [node], [])

    def visit_Call(self, node):
        return ast.Call(ast.Name("std::sqrt"), [self.visit(each) for each in node.args], [])


def _names(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


# ---- texts --------------------------------------------------------------------------------------


def _head(function):
    """The first paragraph of a docstring, as a comment."""
    text = (ast.get_docstring(function) or "").partition("\n\n")[0]
    if not text:
        raise Untranslatable(function, function, "a rule has a docstring")
    return [f"// {line}" for line in text.splitlines()]


def _indented(lines, by):
    return [" " * by + line for line in lines]


def _struct(name, function, rule, comments, writes):
    """A rule of a table."""
    if name in TAKEN:
        raise Untranslatable(function, function, f"{name} means something in C++")
    translation = Translation(function, rule.state)
    body = translation.lines(comments, writes)
    text = " ".join(body)
    kinds = {"state": f"{'' if writes else 'const '}State<T>&", "numbers": "const Numbers&"}

    def parameter(a):
        # one that is not used has no name, or compilers would warn
        used = translation.used(a) if a not in kinds else f"= {a};" in text or f"{a}[" in text
        return f"{kinds.get(a, 'T')} {a}" if used else kinds.get(a, "T")

    head = f"apply({', '.join(map(parameter, translation.arguments))})"
    return [
        *_head(function),
        f"struct {name} {{",
        f'  EMANEST_RULE("{name}", {len(rule.state)}, {len(rule.numbers)});',
        *([f"  using norm = norms::{rule.norm};"] if rule.norm else []),
        "  template <class T>",
        f"  EMANEST_INLINE static T {head} {{",
        *_indented(body, 4),
        "  }",
        "};",
        "",
    ]


def _pass(function):
    """A function that is in no table: arithmetic alone, or made of rules, which it calls.

    The last two arguments of a rule are its state and its numbers.
    """
    translation = Translation(function)
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call) and n.func.id != "root"]
    types, lines = {}, []
    for call in calls:
        rule, *_, state, numbers = (call.func.id, *(ast.unparse(a) for a in call.args))
        types[rule] = None
        types[state] = f"typename {rule}::template State<T>&"
        types[numbers] = f"const typename {rule}::Numbers&"
    rules = [name for name in translation.arguments if types.get(name, "") is None]
    states = [name for name in types if str(types[name]).endswith("State<T>&")]

    def applied(call):
        values = [translation.expression(a) for a in call.args[:-2]]
        return f"{call.func.id}::apply({', '.join([*values, *map(ast.unparse, call.args[-2:])])})"

    for node in function.body[1:]:
        match node:
            case ast.Assign([ast.Tuple([ast.Name(new), ast.Name(state)])], ast.Call() as call) if (
                call in calls and state == call.args[-2].id
            ):
                declared = "" if new in translation.known else "T "
                lines.append(f"{declared}{new} = {applied(call)};")
                translation.known.add(new)
            case ast.Return(ast.Call() as call) if call in calls:
                lines.append(f"return {applied(call)};")
            case ast.Return(ast.Tuple([ast.Name(result), *after])) if (
                [a.id for a in after] == states
            ):
                lines.append(f"return {result};")
            case ast.Return() if not calls:
                lines.append(f"return {translation.expression(node.value)};")
            case _:
                translation.refuse(node, "a pass calls rules, and returns a value and all state")
    parameters = [f"{types.get(a) or 'T'} {a}" for a in translation.arguments if a not in rules]
    head = f"EMANEST_INLINE T {function.name}("
    joined = textwrap.wrap(
        ", ".join(p.replace(" ", "\0") for p in parameters),
        width=100 - len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
    signature = ("\n" + " " * len(head)).join(joined).replace("\0", " ")
    return [
        *_head(function),
        f"template <{', '.join(f'class {a}' for a in ('T', *rules))}>",
        *f"{head}{signature}) {{".splitlines(),
        *_indented(lines, 2),
        "}",
        "",
    ]


def _variant(variant, names):
    head = f"using {variant} = std::variant<"
    lines = textwrap.wrap(", ".join(names), width=100 - len(head) - 2, break_on_hyphens=False)
    return (",\n".join(lines).replace(",,", ",").replace("\n", "\n" + " " * len(head))).join(
        (head, ">;")
    )


def generate(path=RULES):
    """The text of csrc/rules.h.

    Args:
        path: of a file like emanest/rules.py.

    Raises:
        Untranslatable: a rule has a line that would mean something else in C++.
    """
    source = Path(path).read_text()
    functions = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    tables = runpy.run_path(str(path))
    comments = {
        token.start[0]: f"// {token.string.lstrip('# ')}"
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line.strip() == token.string
    }
    text, variants, seen = [TOP], [], {"root"}
    for table, (namespace, variant, writes) in TABLES.items():
        text.append(f"namespace {namespace} {{\n")
        for name, rule in tables[table].items():
            function = functions[rule.function.__name__]
            seen.add(function.name)
            text += _struct(name, function, rule, comments, writes)
        text.append(f"}}  // namespace {namespace}\n")
        variants.append(_variant(variant, [f"{namespace}::{name}" for name in tables[table]]))
    text += ["// the tables, in the order of rules.py", *variants, ""]
    for name in functions.keys() - seen:
        pass
    for name, function in functions.items():
        if name not in seen:
            text += _pass(function)
    return "\n".join([*text, BOTTOM])


if __name__ == "__main__":
    HEADER.write_text(generate())
