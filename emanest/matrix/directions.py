"""The orthogonal directions of Muon and NorMuon, found before the pass.

A step has three parts, each for all matrices of a bucket:

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

from .. import backends
from ..backends import capture
from ..backends.products import empty
from ..rules import MOMENTA, ROWS
from .coefficients import polynomials
from .newton_schulz import inverses, orthogonal, working_dtype
from .shapes import SCALES, Shape, is_stack

# elements in one batch of Newton-Schulz, which bounds the memory that a step needs for a moment
BATCH = 1 << 27


class Numbers(NamedTuple):
    """The numbers of a step along directions, pass by pass; each is a tuple, or part of a vector.

    Attributes:
        momentum: of the momentum rule; once known, after a factor of the gradients.
        rows: of the row rule; none without one.
        step: of the last pass, after a factor of the directions.
    """

    momentum: Any
    rows: Any
    step: Any

    @classmethod
    def of(cls, vector, row_rule):
        """Cut one vector; ``row_rule`` is a row of ``rules.ROWS`` or None."""
        rows = 1 + len(MOMENTA["ema"].numbers)
        step = rows + (len(ROWS[row_rule].numbers) if row_rule else 0)
        return cls(vector[:rows], vector[rows:step], vector[step:])

    def joined(self):
        """All of them in one tuple, as ``Base.numbers`` returns them."""
        # directions are taken as they are, their factor is 1
        return *self.momentum, *self.rows, 1.0, *self.step


class Directions:
    """The orthogonal directions of some parameters of a bucket.

    Args:
        part: the parameters.
        row_rule: a row of ``rules.ROWS``, which finds a factor for each row; None: there is none.

    Raises:
        TypeError, ValueError: an option does not fit a parameter, or its state.
    """

    def __init__(self, part, row_rule=None):
        self.group, self.bucket, self.indices = part.group, part.bucket, part.indices
        self.check = part.base.check
        self.backend = self.group.get("backend")
        form, asked = self.group["ns_form"], self.group["ns_dtype"]
        self.dtype = working_dtype(self.bucket.device, self.bucket.param_dtype, form, asked)
        coefficients, steps = self.group["ns_coefficients"], self.group["ns_steps"]
        self.polynomials = polynomials(coefficients, steps)
        self.memo = self.bucket.memo(self.indices)
        self.row_rule: Any = row_rule
        self.shapes, self.scales = self._layout()

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
        owners = [(shape, i) for shape in self.shapes for i in shape.params]
        columns = self.bucket.columns(ROWS[self.row_rule].state, self.indices)
        columns = [self.matrices(column) for column in columns]
        factors = self.even(owners, self.matrices(directions), columns, numbers.rows, skip)
        scales = list(self.scales)
        for (_, i), factor in zip(owners, factors, strict=True):
            scales[i] = factor
        return directions, scales, numbers.step

    def tensors(self):
        """What matrices are made of: the parameters, of a ``DTensor`` the part that lies here."""
        return [self.bucket.tensors[i] for i in self.indices]

    def _layout(self):
        """The shapes, and for each parameter a vector with its scale."""
        stack, split, scale = (self.group[name] for name in ("stack", "split", "adjust_lr_fn"))
        key = "shapes", stack, split, scale
        if key not in self.memo:
            what = "no step had these shapes and scales so far"
            capture.need_warm_up(self.bucket.device.type, what)
            scale, together = SCALES[scale or "original"], {}
            row_state = ROWS[self.row_rule].state if self.row_rule else ()
            held = zip(self.tensors(), *self.bucket.columns(row_state, self.indices), strict=True)
            for i, (p, *column) in enumerate(held):
                self.check("a parameter", p, self.group)
                first = 1 if is_stack(p, stack) else 0
                if any(state.dim() != first + 2 for state in column):
                    raise ValueError(
                        f"stack={bool(stack)} came after state with a value for each row of each "
                        f"matrix: set it to {not stack} again, or make a new optimizer"
                    )
                rows, *others = p.shape[first:]
                alike = rows // split, math.prod(others), tuple(p.shape[:first])
                together.setdefault(alike, []).append(i)
            shapes, scales = [], [1.0] * len(self.indices)
            for (rows, columns, stacked), params in together.items():
                shapes.append(Shape(rows, columns, stacked, split, params))
                for i in params:
                    # an empty matrix has no scale, but must not be an error
                    scales[i] = scale(max(rows, 1), max(columns, 1))
            vector = torch.tensor(scales, dtype=self.bucket.dtype, device=self.bucket.device)
            self.memo[key] = shapes, list(vector.split(1))
        return self.memo[key]

    def matrices(self, tensors):
        """The matrices of tensors that are shaped like the parameters, or like rows of them."""
        return [m for s in self.shapes for m in s.cut([tensors[i] for i in s.params])]

    @property
    def update_dtype(self):
        """That of the updates: 16 bits would round before the norm is known, or overflow."""
        return torch.promote_types(self.dtype, torch.float32)

    def average(self, us, gs, state, numbers, skip):
        """Run the momentum pass over tensors; the squares of the updates' norms."""
        squares = torch.empty(len(us), dtype=torch.float64, device=self.bucket.device)
        # a process may hold none of the matrices of a stack
        if us:
            pass_ = "momentum", ("ema",)
            self._call("apply_", *pass_, us, gs, state, numbers, skip=skip, squares=squares)
        return squares

    def _call(self, function, *args, **options):
        args = self.bucket.device.type, self.backend, *args, self.bucket.dtype
        backends.call(function, *args, **options, memo=self.memo)

    def momentum(self, gs, numbers, skip):
        """Run the momentum pass: for each shape the updates, and the norms of all of them."""
        updates = [
            empty((len(s.params) * s.per_param, s.rows, s.columns), dtype, self.bucket.device)
            for dtype in [self.update_dtype]
            for s in self.shapes
        ]
        gs = self.matrices(gs)
        us = [u for each in updates for u in each.unbind()]
        us = [_shaped(u, g) for u, g in zip(us, gs, strict=True)]
        state = [self.matrices(c) for c in self.bucket.columns(MOMENTA["ema"].state, self.indices)]
        return updates, self.average(us, gs, state, numbers, skip).sqrt_()

    def inverses(self, norms):
        """Factors that divide updates by their norms, which are overwritten."""
        return inverses(norms, self.group["eps"], self.polynomials[1], self.update_dtype)

    def orthogonal(self, u, factors):
        """Matrices near the orthogonal factors of others, contiguous; may overwrite ``u``.

        Args:
            u: updates.
            factors: of each, which divide it by its norm.
        """
        how = self.polynomials[0], self.dtype, self.group["ns_form"], self.backend
        count = at_once(math.prod(u.shape[1:]))
        if len(u) <= count:
            return orthogonal(u, factors, *how, u)
        found = u
        if u.dtype != self.dtype:
            found = torch.empty(u.shape, dtype=self.dtype, device=u.device)
        for its, some, to in zip(*(t.split(count) for t in (u, factors, found)), strict=True):
            to.copy_(orthogonal(its, some, *how, its))
        return found.contiguous()

    def found(self, gs, numbers, skip):
        """For each parameter the orthogonal factor of its update; the momentum moves on."""
        updates, norms = self.momentum(gs, numbers, skip)
        factors = self.inverses(norms).split([len(u) for u in updates])
        found = [torch.empty(0, device=self.bucket.device)] * len(gs)
        for shape, its in zip(self.shapes, factors, strict=True):
            # taken off the list: it is not needed any more, and memory may be short
            o = self.orthogonal(updates.pop(0), its)
            # most are of one shape, and a view of each costs as much as a launch
            o = o.view(len(shape.params), *gs[shape.params[0]].shape)
            for i, each in zip(shape.params, o.unbind(), strict=True):
                found[i] = _shaped(each, gs[i])
        return found

    def even(self, owners, os, columns, numbers, skip):
        """Find a factor for each row, which evens rows out and includes the scale.

        Args:
            owners: whose rows: shapes, and indices of parameters.
            os: the orthogonal matrices of all of them.
            columns: of the row rule's state, cut like these.

        Returns:
            A vector for each owner.
        """
        wholes = [self.scales[i].new_empty(s.per_param * s.rows) for s, i in owners]
        parts = [w.view(s.per_param, s.rows) for w, (s, _) in zip(wholes, owners, strict=True)]
        factors = [each for part in parts for each in part.unbind()]
        scales = [self.scales[i] for s, i in owners for _ in range(s.per_param)]
        # a process may own none
        if os:
            os = [o.flatten(1) for o in os]
            self._call("rows_", self.row_rule, os, columns, scales, factors, numbers, skip=skip)
        return wholes


def _shaped(t, like):
    return t if t.shape == like.shape else t.view(like.shape)


def at_once(size):
    """How many things of so many elements are iterated together."""
    return max(1, BATCH // max(1, size))
