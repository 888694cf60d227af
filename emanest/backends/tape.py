"""Arithmetic that is written down instead of carried out.

A ``Symbol`` stands for a number that the host does not know. Formulas without a branch on their
arguments, such as those of ``schedules`` and of the bases, run on symbols as they stand, and the
``Tape`` that the symbols belong to records what happens. The result is a ``Program``, which anybody
can evaluate: ``evaluate`` with Python's floats, a kernel on a device.

    tape = Tape()
    t = tape.input("t")
    program, constants = tape.finish([0.5 * (t >= 10)], {"t": t + 1})

A program is hashable and does not contain the values of its constants, so that formulas of the same
structure are one program whatever the options of the optimizer are: a kernel that was compiled for
it serves them all.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

ARITHMETIC = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}
# 1 or 0
COMPARISONS = {
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

    def right(self, other):
        return self.tape.record(name, self, other)

    def left(self, other):
        return self.tape.record(name, other, self)

    return right, left


class Symbol:
    """A number on a tape. Python's numbers mix with it; a comparison is 1 or 0."""

    __slots__ = ("index", "tape")

    def __init__(self, tape, index):
        self.tape, self.index = tape, index

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


class Tape:
    """What was done to symbols, in order and each thing once."""

    def __init__(self):
        self._nodes = {}  # (name, a, b) -> position
        self._constants = []

    def input(self, name):
        """The input of that name."""
        return self._node("input", name, 0)

    def record(self, name, a, b):
        """Record an operation on symbols and numbers; a symbol of its value."""
        a, b = self._operand(a), self._operand(b)
        if a is None or b is None:
            return NotImplemented
        return self._node(name, a.index, b.index)

    def finish(self, numbers, after=None):
        """What was recorded, as far as it is needed.

        Args:
            numbers: what to compute: symbols or numbers.
            after: name of an input -> its next value, a symbol or a number.

        Returns:
            A program and the values of its constants.
        """
        after = after or {}
        kept = [self.input(name).index for name in after]
        numbers = [self._root(value) for value in numbers]
        new = [self._root(value) for value in after.values()]
        nodes = list(self._nodes)
        # operands come before what is made of them, so one pass from the end finds all
        needed = {*kept, *numbers, *new}
        for position in range(len(nodes) - 1, -1, -1):
            name, *operands = nodes[position]
            if position in needed and name in ARITHMETIC | COMPARISONS:
                needed.update(operands)
        inputs, constants, operations, moved = {}, [], [], {}
        for position in sorted(needed):
            name, a, b = nodes[position]
            if name == "input":
                a = inputs.setdefault(a, len(inputs))
            elif name == "constant":
                constants.append(self._constants[a])
                a = len(constants) - 1
            elif name != "literal":
                a, b = moved[a], moved[b]
            moved[position] = len(operations)
            operations.append((name, a, b))
        places = zip((inputs[name] for name in after), (moved[p] for p in new), strict=True)
        numbers = tuple(moved[p] for p in numbers)
        program = Program(tuple(inputs), tuple(operations), numbers, tuple(places))
        return program, tuple(constants)

    def _node(self, name, a, b):
        return Symbol(self, self._nodes.setdefault((name, a, b), len(self._nodes)))

    def _operand(self, value):
        """A symbol for a symbol or a number, None for anything else."""
        if isinstance(value, Symbol):
            if value.tape is not self:
                raise ValueError("symbols of two tapes do not mix")
            return value
        if not isinstance(value, (int, float)):
            return None
        if value in LITERALS:
            return self._node("literal", int(value), 0)
        # a slot of its own: two options that happen to be equal must not make another program
        self._constants.append(float(value))
        return self._node("constant", len(self._constants) - 1, 0)

    def _root(self, value):
        operand = self._operand(value)
        if operand is None:
            raise TypeError(f"expected a number, got {value!r} ({type(value).__name__})")
        return operand.index


def evaluate(program, inputs, constants, number: Callable[[Any], Any] = float):
    """Carry a program out, by default as Python does.

    Args:
        program, constants: of ``Tape.finish``.
        inputs: values of ``program.inputs``.
        number: makes a number of the result of a comparison.

    Returns:
        The values of ``program.numbers``, and those of ``program.after``.
    """
    sources = {"input": inputs.__getitem__, "constant": constants.__getitem__, "literal": float}
    values = []
    for name, a, b in program.operations:
        if name in sources:
            values.append(sources[name](a))
        elif name in ARITHMETIC:
            values.append(ARITHMETIC[name](values[a], values[b]))
        else:
            values.append(number(COMPARISONS[name](values[a], values[b])))
    return [values[k] for k in program.numbers], [values[k] for _, k in program.after]
