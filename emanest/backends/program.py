# SPDX-License-Identifier: MIT
"""Arithmetic that is written down instead of carried out.

A ``Symbol`` stands for a number that the host does not know. Formulas without a branch on their
arguments, such as those of ``schedules`` and of the bases, run on symbols as they stand, and give
symbols that know what they were made of. ``record`` makes a ``Program`` of them, which anybody can
evaluate: ``evaluate`` with Python's floats, a kernel on a device.

    t = symbol("t")
    program, constants = record([0.5 * (t >= 10)], {"t": t + 1})

A program is hashable and does not contain the values of its constants, so that formulas of the same
structure are one program whatever the options of the optimizer are: a kernel that was compiled for
it serves them all.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

# comparisons are 1 or 0
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
# numbers that belong to the formula: 1 - decay, 0 * t
LITERALS = (-1, 0, 1)


class Program(NamedTuple):
    """An arithmetic program; every position is one in ``operations``, whose values come in order.

    An operation is a triple of its name and two positions; three names say where a value is from:

        ("input", i, 0)    ("constant", i, 0)    ("literal", value, 0)
    """

    inputs: tuple[str, ...]
    operations: tuple[tuple[str, int, int], ...]
    numbers: tuple[int, ...]  # positions of what is asked for
    after: tuple[tuple[int, int], ...]  # (index of an input, position of its next value)


def _recorded(name):
    """The methods of an operator: with what stands on its right, and on its left."""

    def operation(a, b):
        a, b = _symbol(a), _symbol(b)
        return NotImplemented if a is None or b is None else Symbol(name, a, b)

    return operation, lambda self, other: operation(other, self)


class Symbol:
    """A number made of others. Python's numbers mix with it; a comparison is 1 or 0.

    Args:
        name, a, b: as an operation of a ``Program`` has them, but for an operator the two symbols,
            of an input its name, and of a constant its value.
    """

    __slots__ = ("made_of",)

    def __init__(self, name, a, b: Any = 0):
        self.made_of = name, a, b

    __add__, __radd__ = _recorded("+")
    __sub__, __rsub__ = _recorded("-")
    __mul__, __rmul__ = _recorded("*")
    __truediv__, __rtruediv__ = _recorded("/")
    __pow__, __rpow__ = _recorded("**")
    __lt__, __gt__ = _recorded("<")
    __le__, __ge__ = _recorded("<=")
    __eq__ = _recorded("==")[0]
    __ne__ = _recorded("!=")[0]

    def __neg__(self):
        return self * -1

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __bool__(self):
        raise TypeError(
            "a branch (if, and, or, not, min, max) on a number that only the device knows; write "
            "it as arithmetic: (t >= warmup) * (t < rest)"
        )

    def __float__(self):
        raise TypeError("a number that only the device knows was read on the host")

    __int__ = __index__ = __float__


def symbol(name):
    """The input of that name."""
    return Symbol("input", name)


def record(numbers, after=None):
    """What a program has to compute, each thing once.

    Args:
        numbers: what to compute: symbols or numbers.
        after: name of an input -> its next value, a symbol or a number.

    Returns:
        A program and the values of its constants.
    """
    after = after or {}
    inputs, constants, operations, positions = {}, [], {}, {}

    def position(each):
        if id(each) not in positions:
            name, a, b = each.made_of
            if name == "input":
                a = inputs.setdefault(a, len(inputs))
            elif name == "constant":
                # a slot of its own: options that happen to be equal must not make another program
                constants.append(a)
                a = len(constants) - 1
            elif name != "literal":
                a, b = position(a), position(b)
            positions[id(each)] = operations.setdefault((name, a, b), len(operations))
        return positions[id(each)]

    # all are held to the end: the id of one that is gone may be that of the next
    held = [_number(each) for each in (*numbers, *map(symbol, after), *after.values())]
    places = [position(each) for each in held]
    asked, new = places[: len(numbers)], places[len(numbers) + len(after) :]
    moved = zip((inputs[name] for name in after), new, strict=True)
    program = Program(tuple(inputs), tuple(operations), tuple(asked), tuple(moved))
    return program, tuple(constants)


def _symbol(value):
    """A symbol for a symbol or a number, None for anything else."""
    if isinstance(value, Symbol):
        return value
    if not isinstance(value, (int, float)):
        return None
    if value in LITERALS:
        return Symbol("literal", int(value))
    return Symbol("constant", float(value))


def _number(value):
    found = _symbol(value)
    if found is None:
        raise TypeError(f"expected a number, got {value!r} ({type(value).__name__})")
    return found


def evaluate(program, inputs, constants, number: Callable[[Any], Any] = float):
    """Carry a program out, by default as Python does.

    Args:
        program, constants: of ``record``.
        inputs: values of ``program.inputs``.
        number: makes a number of what an operation gives, which may be a truth value.

    Returns:
        The values of ``program.numbers``, and those of ``program.after``.
    """
    sources = {"input": inputs.__getitem__, "constant": constants.__getitem__, "literal": float}
    values = []
    for name, a, b in program.operations:
        if name in sources:
            values.append(sources[name](a))
        else:
            values.append(number(OPERATIONS[name](values[a], values[b])))
    return [values[k] for k in program.numbers], [values[k] for _, k in program.after]
