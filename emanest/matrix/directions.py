# SPDX-License-Identifier: MIT
"""The orthogonal directions of Muon and its relatives, found before the pass.

A step has three parts, each for all matrices of groups that are ``alike``:

    momentum pass    gradients and momenta -> updates and the squares of their norms
    Newton-Schulz    updates -> orthogonal directions, matrices of one shape in one batch
    tail pass        the rule ``direction`` on them, with scale, weight decay and any lookahead

NorMuon finds a factor for each row before the tail (the row rule). The first parts are
``Base.directions``. If they fail (out of memory, say), momenta may have moved on, but no
parameter. ``sharded.py`` finds the directions of sharded matrices.
"""

import math
from typing import Any, NamedTuple

import torch

from ..backends.per_tensor import PerTensor
from ..backends.products import empty
from ..rules import MOMENTA, ROWS
from .matrices import Matrices
from .polar import Polar
from .shapes import SCALES

# elements in one batch of Newton-Schulz, which bounds the memory that a step needs for a moment
BATCH = 1 << 27


class Numbers(NamedTuple):
    """The numbers of a step along directions, pass by pass; each as back ends take them.

    Attributes:
        momentum: of the momentum rule; once known, after a factor of the gradients.
        rows: of the row rule; none without one.
        step: of the last pass, after a factor of the directions.
    """

    momentum: Any
    rows: Any
    step: Any

    @classmethod
    def of(cls, numbers, row_rule):
        """Cut those of a step; ``row_rule`` is a row of ``rules.ROWS`` or None."""
        rows = 1 + len(MOMENTA["ema"].numbers)
        step = rows + (len(ROWS[row_rule].numbers) if row_rule else 0)
        parts = slice(rows), slice(rows, step), slice(step, None)
        if not isinstance(numbers, PerTensor):
            return cls(*(numbers[part] for part in parts))
        sets = ([each[part] for each in numbers.values] for part in parts)
        return cls(*(PerTensor(values, numbers.of) for values in sets))

    def joined(self):
        """All of them in one tuple, as ``Base.numbers`` returns them."""
        # directions are taken as they are, their factor is 1
        return *self.momentum, *self.rows, 1.0, *self.step


class Directions(Matrices):
    """The orthogonal directions of some parameters.

    Args:
        joint: the parameters, of parts that are ``alike``.
        row_rule: a row of ``rules.ROWS``, which finds a factor for each row; None: there is none.
        polar: the class of the iteration.

    Raises:
        TypeError, ValueError: an option does not fit a parameter, or its state.
    """

    def __init__(self, joint, row_rule=None, polar=Polar):
        super().__init__(joint)
        self.polar = polar(self.group, self.bucket.device, self.bucket.param_dtype)
        self.row_rule: Any = row_rule
        options = *self.LAYOUT, "adjust_lr_fn"
        self.of_blocks, self.scales = self.kept("scales", options, self._scales)

    def __call__(self, gs, numbers, skip):
        """Directions, a scale for each or for each of its rows, and the numbers of the pass.

        Args:
            gs: gradients.
            numbers: of the step, one vector.
            skip: a flag on the device, or None.
        """
        numbers = Numbers.of(numbers, self.row_rule)
        directions = self.found(gs, numbers.momentum, skip)
        if not self.row_rule:
            return directions, self.scales, numbers.step
        owners = [
            (shape, scale) for (shape, _), scale in zip(self.blocks, self.of_blocks, strict=True)
        ]
        columns = self.joint.columns(ROWS[self.row_rule].state)
        columns = [self.matrices(column) for column in columns]
        rows = self.of_matrices(numbers.rows)
        factors = self.even(owners, self.matrices(directions), columns, rows, skip)
        return directions, self.wholes(factors, vectors=True), numbers.step

    def _scales(self):
        """Factors of directions: of each of ``blocks`` a vector of one element; for the last pass.

        That takes a vector of one element for each parameter, or of one for each of its rows.
        """
        owners, scales = self.owners(), []
        for shape, i in self.blocks:
            scale = SCALES[owners[i].group["adjust_lr_fn"] or "original"]
            # an empty matrix has no scale, but must not be an error
            scales.append(scale(max(shape.rows, 1), max(shape.columns, 1)))
        vector = torch.tensor(scales, dtype=self.bucket.dtype, device=self.bucket.device)
        scales = list(vector.split(1))
        rows = [
            scale if s.start is None else scale.expand(s.per_param * s.rows)
            for (s, _), scale in zip(self.blocks, scales, strict=True)
        ]
        wholes = self.wholes(rows, vectors=True)
        return scales, [self.here(i, each) for i, each in enumerate(wholes)]

    def here(self, i, scales):
        """Of the factors of a parameter's rows those of the rows that lie here."""
        return scales

    def average(self, us, gs, state, numbers, skip):
        """Run the momentum pass over tensors; the squares of the updates' norms."""
        squares = torch.empty(len(us), dtype=torch.float64, device=self.bucket.device)
        # a process may hold none of the matrices of a stack
        if us:
            pass_ = "momentum", ("ema",)
            self.call("apply_", *pass_, us, gs, state, numbers, skip=skip, squares=squares)
        return squares

    def momentum(self, gs, numbers, skip):
        """Run the momentum pass: for each batch the updates, and the norms of all of them."""
        dtype = self.polar.update_dtype
        updates = [
            empty((sum(s.matrices for s in batch), *size), dtype, self.bucket.device)
            for size, batch in self.batches
        ]
        us = []
        for u, (_, batch) in zip(updates, self.batches, strict=True):
            for s, some in zip(batch, u.split([s.matrices for s in batch]), strict=True):
                us += some.view(len(some), s.rows, *s.row).unbind()
        state = [self.matrices(c) for c in self.joint.columns(MOMENTA["ema"].state)]
        numbers = self.of_matrices(numbers)
        return updates, self.average(us, self.matrices(gs), state, numbers, skip).sqrt_()

    def orthogonal(self, u, factors):
        """Matrices near the orthogonal factors of others, contiguous; may overwrite ``u``.

        Args:
            u: updates.
            factors: of each, which divide it by its norm.
        """
        count = at_once(math.prod(u.shape[1:]))
        if len(u) <= count:
            return self.polar(u, factors, u)
        found = u
        if u.dtype != self.polar.dtype:
            found = torch.empty(u.shape, dtype=self.polar.dtype, device=u.device)
        for its, some, to in zip(*(t.split(count) for t in (u, factors, found)), strict=True):
            to.copy_(self.polar(its, some, its))
        return found.contiguous()

    def found(self, gs, numbers, skip):
        """For each parameter the orthogonal factor of its update; the momentum moves on."""
        updates, norms = self.momentum(gs, numbers, skip)
        factors = self.polar.inverses(norms).split([len(u) for u in updates])
        pieces = []
        for (_, batch), its in zip(self.batches, factors, strict=True):
            # taken off the list: it is not needed any more, and memory may be short
            o = self.orthogonal(updates.pop(0), its)
            for s, some in zip(batch, o.split([s.matrices for s in batch]), strict=True):
                # all at once: a view of each costs as much as a launch
                some = some.view(len(s.params), *s.stack, s.split * s.rows, *s.row)
                pieces += some.unbind()
        return self.wholes(pieces)

    def even(self, owners, os, columns, numbers, skip):
        """Find a factor for each row, which evens rows out and includes the scale.

        Args:
            owners: whose rows: shapes, and for each the scale of its matrices.
            os: the orthogonal matrices of all of them.
            columns: of the row rule's state, cut like these.

        Returns:
            A vector for each owner.
        """
        wholes = [scale.new_empty(s.per_param * s.rows) for s, scale in owners]
        parts = [w.view(s.per_param, s.rows) for w, (s, _) in zip(wholes, owners, strict=True)]
        factors = [each for part in parts for each in part.unbind()]
        scales = [scale for s, scale in owners for _ in range(s.per_param)]
        # a process may own none
        if os:
            os = [o.flatten(1) for o in os]
            self.call("rows_", self.row_rule, os, columns, scales, factors, numbers, skip=skip)
        return wholes


def at_once(size):
    """How many things of so many elements are iterated together."""
    return max(1, BATCH // max(1, size))
