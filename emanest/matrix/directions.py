"""The orthogonal directions of Muon and NorMuon, found before the pass.

A step has three parts, each for all matrices of groups that are ``alike``:

    momentum pass    gradients and momenta -> updates and the squares of their norms
    Newton-Schulz    updates -> orthogonal directions, matrices of one shape in one batch
    tail pass        the rule ``direction`` on them, with scale, weight decay and any lookahead

NorMuon finds a factor for each row before the tail (the row rule). The first parts are
``Base.directions``. If they fail (out of memory, say), momenta may have moved on, but no
parameter. ``sharded.py`` finds the directions of sharded matrices.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch

from .. import backends
from ..backends import capture
from ..backends.per_tensor import PerTensor
from ..backends.products import empty
from ..rules import MOMENTA, ROWS
from .coefficients import polynomials
from .newton_schulz import inverses, orthogonal, working_dtype
from .shapes import SCALES, Shape, is_stack

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


class Directions:
    """The orthogonal directions of some parameters.

    Args:
        joint: the parameters, of parts that are ``alike``.
        row_rule: a row of ``rules.ROWS``, which finds a factor for each row; None: there is none.

    Raises:
        TypeError, ValueError: an option does not fit a parameter, or its state.
    """

    # what groups have in common whose matrices are iterated together
    ALIKE = "ns_coefficients", "ns_steps", "ns_form", "ns_dtype", "eps"

    def __init__(self, joint, row_rule=None):
        self.joint, self.bucket, self.group = joint, joint.first, joint.parts[0].group
        form, asked = self.group["ns_form"], self.group["ns_dtype"]
        self.dtype = working_dtype(self.bucket.device, self.bucket.param_dtype, form, asked)
        coefficients, steps = self.group["ns_coefficients"], self.group["ns_steps"]
        self.polynomials = polynomials(coefficients, steps)
        self.row_rule: Any = row_rule
        self.batches, self.scales = self._layout()
        self.shapes = [shape for _, shapes in self.batches for shape in shapes]
        owners = [[joint.owners[i]] * s.per_param for s in self.shapes for i in s.params]
        self._owners = [*itertools.chain.from_iterable(owners)]

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
        columns = self.joint.columns(ROWS[self.row_rule].state)
        columns = [self.matrices(column) for column in columns]
        rows = self.of_matrices(numbers.rows)
        factors = self.even(owners, self.matrices(directions), columns, rows, skip)
        scales = list(self.scales)
        for (_, i), factor in zip(owners, factors, strict=True):
            scales[i] = factor
        return directions, scales, numbers.step

    def tensors(self):
        """What matrices are made of: the parameters, of a ``DTensor`` the part that lies here."""
        return [part.bucket.tensors[i] for part in self.joint.parts for i in part.indices]

    def _layout(self):
        """Pairs of a size and its shapes, whose matrices are iterated together; parameters' scales.

        Each scale is a vector of one element.
        """
        key = "shapes", *(tuple(map(part.group.get, _LAYOUT)) for part in self.joint.parts)
        memo = self.joint.memo
        if key not in memo:
            what = "no step had these shapes and scales so far"
            capture.need_warm_up(self.bucket.device.type, what)
            row_state = ROWS[self.row_rule].state if self.row_rule else ()
            held = zip(self.tensors(), *self.joint.columns(row_state), strict=True)
            scales, together, held = [], {}, enumerate(held)
            for part in self.joint.parts:
                for i, (p, *column) in itertools.islice(held, len(part.indices)):
                    part.base.check("a parameter", p, part.group)
                    shape, scale = _shape_of(p, part.group)
                    if any(state.dim() != len(shape.stack) + 2 for state in column):
                        stack = bool(part.group["stack"])
                        raise ValueError(
                            f"stack={stack} came after state with a value for each row of each "
                            f"matrix: set it to {not stack} again, or make a new optimizer"
                        )
                    size = shape.rows, shape.columns
                    together.setdefault(size, {}).setdefault(shape, []).append(i)
                    scales.append(scale)
            batches = [
                (size, [shape._replace(params=params) for shape, params in alike.items()])
                for size, alike in together.items()
            ]
            vector = torch.tensor(scales, dtype=self.bucket.dtype, device=self.bucket.device)
            memo[key] = batches, list(vector.split(1))
        return memo[key]

    def of_matrices(self, numbers):
        """The numbers of parameters as those of their matrices."""
        if not isinstance(numbers, PerTensor):
            return numbers
        return PerTensor(numbers.values, self._owners)

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
        args = self.bucket.device.type, self.joint.backend, *args, self.bucket.dtype
        backends.call(function, *args, **options, memo=self.joint.memo)

    def momentum(self, gs, numbers, skip):
        """Run the momentum pass: for each batch the updates, and the norms of all of them."""
        updates = [
            empty((sum(s.matrices for s in batch), *size), self.update_dtype, self.bucket.device)
            for size, batch in self.batches
        ]
        us = []
        for u, (_, batch) in zip(updates, self.batches, strict=True):
            for s, some in zip(batch, u.split([s.matrices for s in batch]), strict=True):
                us += some.view(len(some), s.rows, *s.row).unbind()
        state = [self.matrices(c) for c in self.joint.columns(MOMENTA["ema"].state)]
        numbers = self.of_matrices(numbers)
        return updates, self.average(us, self.matrices(gs), state, numbers, skip).sqrt_()

    def inverses(self, norms):
        """Factors that divide updates by their norms, which are overwritten."""
        return inverses(norms, self.group["eps"], self.polynomials[1], self.update_dtype)

    def orthogonal(self, u, factors):
        """Matrices near the orthogonal factors of others, contiguous; may overwrite ``u``.

        Args:
            u: updates.
            factors: of each, which divide it by its norm.
        """
        how = self.polynomials[0], self.dtype, self.group["ns_form"], self.joint.backend
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
        for (_, batch), its in zip(self.batches, factors, strict=True):
            # taken off the list: it is not needed any more, and memory may be short
            o = self.orthogonal(updates.pop(0), its)
            for s, some in zip(batch, o.split([s.matrices for s in batch]), strict=True):
                # all at once: a view of each costs as much as a launch
                some = some.view(len(s.params), *s.stack, s.split * s.rows, *s.row)
                for i, each in zip(s.params, some.unbind(), strict=True):
                    found[i] = each
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


# options that say what matrices a parameter is, and their scale
_LAYOUT = "stack", "split", "adjust_lr_fn"


def _shape_of(p, group):
    """The ``Shape`` of a parameter, not yet of any, and its scale."""
    stack, split, scale = map(group.get, _LAYOUT)
    first = 1 if is_stack(p, stack) else 0
    row = tuple(p.shape[first + 1 :])
    rows, columns = p.shape[first] // split, math.prod(row)
    # an empty matrix has no scale, but must not be an error
    factor = SCALES[scale or "original"](max(rows, 1), max(columns, 1))
    return Shape(rows, columns, tuple(p.shape[:first]), split, row), factor


def at_once(size):
    """How many things of so many elements are iterated together."""
    return max(1, BATCH // max(1, size))
