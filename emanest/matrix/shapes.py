"""Which matrices a parameter is: one, several below each other, or a stack of them."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple


def is_stack(p, stack):
    """Whether a parameter is a stack of matrices, by its group's option ``stack``."""
    return bool(stack) and p.dim() > 2


def rows(p, group):
    """The shape, as ``rules.State`` has it, of state with a value for each row of each matrix."""
    return (2 if is_stack(p, group.get("stack")) else 1), (1,)


def square(side, by_columns):
    """The shape, as ``rules.State`` has it, of a square matrix for side 0 or 1 of each matrix."""

    def shape(p, group):
        first = 1 if is_stack(p, group["stack"]) else 0
        if p.dim() < 2:
            return 0, (0, 0), by_columns
        split, (rows, *row) = group["split"], p.shape[first:]
        length = (rows // split, math.prod(row))[side]
        length = length if length <= group["max_precond_dim"] else 0
        return first, (*([split] if split > 1 else []), length, length), by_columns

    return shape


class Shape(NamedTuple):
    """Matrices of one shape, to be orthogonalised together.

    A parameter is one matrix, (shape[0], everything else), or ``split`` of them below each other. A
    stack is so many parameters, one for each first index.
    """

    rows: int
    columns: int
    stack: tuple[int, ...]  # how many of them each parameter is; empty for those that are no stacks
    split: int
    row: tuple[int, ...]  # how a row is shaped, of a kernel: its columns are so many
    params: Sequence[int] = ()  # parameters

    @property
    def per_param(self):
        """How many matrices a parameter is."""
        return math.prod(self.stack) * self.split

    @property
    def matrices(self):
        """How many matrices all parameters are."""
        return len(self.params) * self.per_param

    def cut(self, tensors):
        """The matrices of tensors, each of which has those of a parameter, or rows of them."""
        if self.stack:
            tensors = [each for t in tensors for each in t.unbind()]
        if self.split > 1:
            tensors = [m for t in tensors for m in t.unflatten(0, (self.split, -1)).unbind()]
        return tensors


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
