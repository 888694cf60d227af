# SPDX-License-Identifier: MIT
"""Which matrices a parameter is: one, several below each other, or a stack of them."""

import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..values import count, items


def is_stack(p, stack):
    """Whether a parameter is a stack of matrices, by its group's option ``stack``."""
    return bool(stack) and p.dim() > 2


def check_split(name, value):
    """Return how a parameter is cut into blocks of rows: how many equal ones, or rows of each.

    Raises:
        TypeError: neither an integer nor a sequence of integers.
        ValueError: a number below 1, or none.
    """
    given = items(value)
    if given is None and not isinstance(value, numbers.Integral):
        raise TypeError(
            f"{name} must be an integer or a sequence of numbers of rows, such as (q, kv, kv), got "
            f"{value!r} ({type(value).__name__})"
        )
    if given is None:
        return count(name, value)
    if not given:
        raise ValueError(f"{name} must have a number of rows for each block, got {value!r}")
    return tuple(count(f"{name}[{i}]", each) for i, each in enumerate(given))


def rows(p, group):
    """The shape, as ``rules.State`` has it, of state with a value for each row of each matrix."""
    return (2 if is_stack(p, group.get("stack")) else 1), (1,)


class Shape(NamedTuple):
    """Matrices of one shape, to be orthogonalised together.

    A parameter is one matrix, (shape[0], everything else), or several below each other: blocks of
    rows. Those that follow each other and are equal have one ``Shape``, which usually is all of
    them. A stack is so many parameters, one for each first index.
    """

    rows: int
    columns: int
    stack: tuple[int, ...]  # how many of them each parameter is; empty for those that are no stacks
    split: int  # how many blocks
    row: tuple[int, ...]  # how a row is shaped, of a kernel: its columns are so many
    start: int | None = None  # the first row of the first block; None: all rows are theirs
    params: Sequence[int] = ()  # parameters

    @property
    def per_param(self):
        """How many matrices a parameter is."""
        return math.prod(self.stack) * self.split

    @property
    def matrices(self):
        """How many matrices all parameters are."""
        return len(self.params) * self.per_param

    def part(self, tensor):
        """What a tensor, which has a parameter's rows or values for them, has of these blocks."""
        if self.start is None:
            return tensor
        return tensor.narrow(len(self.stack), self.start, self.split * self.rows)

    def cut(self, tensors):
        """The matrices of tensors, each of which has those of a parameter, or rows of them."""
        if self.start is not None:
            tensors = [self.part(t) for t in tensors]
        if self.stack:
            tensors = [each for t in tensors for each in t.unbind()]
        if self.split > 1:
            tensors = [m for t in tensors for m in t.unflatten(0, (self.split, -1)).unbind()]
        return tensors

    def side(self, side, group):
        """How long side 0 or 1 is where it has a basis (SOAP), else 0."""
        length = (self.rows, self.columns)[side]
        return length if length <= group["max_precond_dim"] else 0


def shapes_of(p, group):
    """The ``Shape`` of each run of equal blocks of a parameter, from its first row to its last."""
    stack, split = group.get("stack"), group.get("split")
    first = 1 if is_stack(p, stack) else 0
    height, *row = p.shape[first:] or (1,)
    # a vector is no matrices below each other
    split = split if p.dim() > 1 else 1
    if isinstance(split, int):
        runs = [(split, height // split)]
    else:
        runs = [(len([*equal]), rows) for rows, equal in itertools.groupby(split)]
    starts = itertools.accumulate((blocks * rows for blocks, rows in runs), initial=0)
    columns, stack, row = math.prod(row), tuple(p.shape[:first]), tuple(row)
    return tuple(
        Shape(rows, columns, stack, blocks, row, start if len(runs) > 1 else None)
        for (blocks, rows), start in zip(runs, starts, strict=False)
    )


# ---- state of SOAP: square matrices -------------------------------------------------------------


def square(side, by_columns):
    """The shape, as ``rules.State`` has it, of a square matrix for side 0 or 1 of each matrix.

    Those of unequal blocks lie one after the other, as a vector.
    """

    def shape(p, group):
        if p.dim() < 2:
            return 0, (0, 0), by_columns
        shapes = shapes_of(p, group)
        lengths = [(each.split, each.side(side, group)) for each in shapes]
        first, ((split, length), *others) = len(shapes[0].stack), lengths
        if not others:
            return first, (*([split] if split > 1 else []), length, length), by_columns
        return first, (sum(count * each**2 for count, each in lengths),), False, tuple(lengths)

    return shape


def squares(tensor, shape, shapes, side, by_columns, group):
    """The matrices that state shaped by ``square`` has for the matrices of a ``Shape``.

    Args:
        tensor: the state of a parameter.
        shape: one of its shapes.
        shapes: all of them.
        side, by_columns: as ``square`` has them.
        group: its options.
    """
    if shape.start is not None:
        before = [each for each in shapes if each.start < shape.start]
        start = sum(each.split * each.side(side, group) ** 2 for each in before)
        length = shape.side(side, group)
        size = shape.split * length**2
        its = tensor.narrow(-1, start, size).unflatten(-1, (shape.split, length, length))
        tensor = its.mT if by_columns else its
    found = [tensor]
    for _ in range(tensor.dim() - 2):
        found = [each for t in found for each in t.unbind()]
    return found


# the rows of the table below, for annotations
ScaleName = Literal[
    "original", "match_rms_adamw", "spectral_norm", "spectral_unclamped", "unit_rms", "none"
]

# rule -> factor of an orthogonal update of a matrix (rows, columns), whose entries have a root mean
# square of 1 / sqrt(max(rows, columns))
SCALES = {
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "spectral_norm": lambda rows, columns: (rows / columns) ** 0.5,
    "unit_rms": lambda rows, columns: max(rows, columns) ** 0.5,
    "none": lambda rows, columns: 1.0,
}
# torch's name, from 2.14 on
SCALES["spectral_unclamped"] = SCALES["spectral_norm"]
