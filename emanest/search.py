"""The search for an orthogonal direction, before the pass of Muon and NorMuon.

A step has three parts, each for all matrices of a bucket:

    momentum pass    gradients and momenta -> updates and the squares of their norms
    Newton-Schulz    updates -> orthogonal directions, matrices of one shape in one batch
    tail pass        the rule ``direction`` on them, with scale, weight decay and any lookahead

NorMuon finds a factor for each row before the tail. The first parts are ``bases.Base.search``. If
they fail (out of memory, say), momenta may have moved on, but no parameter. ``spread.py`` has the
searches for matrices that are spread over processes.
"""

import math

import torch

from . import backends, capture
from .bases import SCALES
from .checks import check_group
from .coefficients import polynomials
from .newton_schulz import inverses, orthogonal, working_dtype
from .products import empty
from .rules import MOMENTA, ROWS
from .shapes import Shape, check_matrices, is_stack

# elements in one batch of Newton-Schulz, which bounds the memory that a step needs for a moment
BATCH = 1 << 27

# how many numbers belong to the momentum pass (the first is a factor of gradients), and to rows
HEAD = 1 + len(MOMENTA["ema"].numbers)
ROW_HEAD = len(ROWS["normuon"].numbers)

OPTIONS = {
    "lr": 1e-3,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "ns_coefficients": (3.4445, -4.7750, 2.0315),
    "eps": 1e-7,
    "ns_steps": 5,
    "adjust_lr_fn": None,
    "split": 1,
    "stack": None,
    "ns_form": None,
    "ns_dtype": None,
}


class Search:
    """The search for the directions of some parameters of a bucket.

    Args:
        group: their group, any of whose options may have changed since it was checked.
        bucket, indices: which parameters, and their state.

    Raises:
        TypeError, ValueError: an option is not valid, or does not fit a parameter.
    """

    options = tuple(OPTIONS)

    def __init__(self, group, bucket, indices):
        self.bucket, self.indices = bucket, indices
        # but for lr, which may be a tensor on a device, and was looked at already
        self.group = check_group({name: group[name] for name in self.options if name != "lr"})
        self.backend = group.get("backend")
        form, asked = self.group["ns_form"], self.group["ns_dtype"]
        self.dtype = working_dtype(bucket.device, bucket.param_dtype, form, asked)
        coefficients, steps = self.group["ns_coefficients"], self.group["ns_steps"]
        self.polynomials = polynomials(coefficients, steps)
        self.memo = bucket.memo(indices)
        self.shapes, self.scales = self._layout()

    def __call__(self, gs, numbers, skip):
        """Directions, a scale for each, and the numbers that are left.

        Args:
            gs: gradients.
            numbers: those of the momentum rule, then the pass's.
            skip: a flag on the device, or None.
        """
        directions, numbers = self.directions(gs, numbers, skip)
        return directions, self.scales, numbers

    def tensors(self):
        """What matrices are made of: the parameters, of a ``DTensor`` the part that lies here."""
        return self.bucket.members(self.indices)

    def _layout(self):
        """The shapes, and for each parameter a vector with its scale."""
        stack, split, scale = (self.group[name] for name in ("stack", "split", "adjust_lr_fn"))
        key = "shapes", stack, split, scale
        if key not in self.memo:
            what = "no step had these shapes and scales so far"
            capture.need_warm_up(self.bucket.device.type, what)
            scale, together = SCALES[scale or "original"], {}
            for i, p in enumerate(self.tensors()):
                check_matrices("a parameter", p, stack, split)
                first = 1 if is_stack(p, stack) else 0
                rows, *others = p.shape[first:]
                alike = rows // split, math.prod(others), tuple(p.shape[:first])
                together.setdefault(alike, []).append(i)
            shapes, first, scales = [], 0, [1.0] * len(self.indices)
            for (rows, columns, stacked), members in together.items():
                shape = Shape(rows, columns, stacked, split, members, slice(0))
                last = first + len(members) * shape.per_member
                shapes.append(shape._replace(matrices=slice(first, last)))
                first = last
                for i in members:
                    # an empty matrix has no scale, but must not be an error
                    scales[i] = scale(max(rows, 1), max(columns, 1))
            vector = torch.tensor(scales, dtype=self.bucket.dtype, device=self.bucket.device)
            self.memo[key] = shapes, list(vector.split(1))
        return self.memo[key]

    def matrices(self, tensors):
        """The matrices of tensors that are shaped like the parameters, or like rows of them."""
        return [m for s in self.shapes for m in s.cut([tensors[i] for i in s.members])]

    @property
    def update_dtype(self):
        """That of the updates: 16 bits would round before the norm is known, or overflow."""
        return torch.promote_types(self.dtype, torch.float32)

    def average(self, us, gs, state, numbers, skip):
        """Run the momentum pass over tensors; the squares of the updates' norms."""
        squares = torch.empty(len(us), dtype=torch.float64, device=self.bucket.device)
        # a process may hold none of the matrices of a stack
        if us:
            where, common = (self.bucket.device.type, self.backend), (self.bucket.dtype, skip)
            args = us, gs, state, squares, numbers, *common, self.memo
            backends.call("momentum_", *where, "ema", *args)
        return squares

    def momentum(self, gs, numbers, skip):
        """Run the momentum pass: for each shape the updates, and the norms of all of them."""
        updates = [
            empty((len(s.members) * s.per_member, s.rows, s.columns), dtype, self.bucket.device)
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
        # one parameter of many matrices
        found = u if u.dtype == self.dtype else empty(u.shape, self.dtype, u.device)
        for its, some, to in zip(*(t.split(count) for t in (u, factors, found)), strict=True):
            to.copy_(orthogonal(its, some, *how, its))
        return found.contiguous()

    def directions(self, gs, numbers, skip):
        """For each parameter the orthogonal factor of its update, and the numbers that are left.

        The momentum moves on.
        """
        updates, norms = self.momentum(gs, numbers[:HEAD], skip)
        factors = self.inverses(norms)
        found = [torch.empty(0, device=self.bucket.device)] * len(gs)
        for shape in self.shapes:
            # taken off the list: it is not needed any more, and memory may be short
            whole, its_factors = updates.pop(0), factors[shape.matrices]
            size = shape.per_member * shape.rows * shape.columns
            step = at_once(size)
            for k in range(0, len(shape.members), step):
                some = shape.members[k : k + step]
                its = slice(k * shape.per_member, (k + len(some)) * shape.per_member)
                o = self.orthogonal(whole[its], its_factors[its])
                # most are of one shape, and a view of each costs as much as a launch
                o = o.view(len(some), *gs[some[0]].shape)
                for i, each in zip(some, o.unbind(), strict=True):
                    found[i] = _shaped(each, gs[i])
        return found, numbers[HEAD:]


def _shaped(t, like):
    return t if t.shape == like.shape else t.view(like.shape)


def at_once(size):
    """How many things of so many elements are iterated together."""
    return max(1, BATCH // max(1, size))


class EvenRows(Search):
    """A search that also finds a factor for each row."""

    options = (*OPTIONS, "beta2")

    def _layout(self):
        """As ``Search``; the state must be that of the matrices."""
        found, stack, before = super()._layout(), bool(self.group["stack"]), self.bucket.stack
        if stack != before and any(p.dim() > 2 for p in self.tensors()):
            raise ValueError(
                f"stack={stack} came after state with a value for each row of each matrix: set it "
                f"to {before} again, or make a new optimizer"
            )
        return found

    def __call__(self, gs, numbers, skip):
        """As ``Search``, with scales for rows."""
        directions, numbers = self.directions(gs, numbers, skip)
        columns = self.bucket.columns(ROWS["normuon"].state, self.indices)
        columns = [self.matrices(column) for column in columns]
        scales, factors, parts = [], list(self.scales), []
        for shape in self.shapes:
            for i in shape.members:
                factors[i], its = self.factors(shape)
                parts += its
                scales += [self.scales[i]] * shape.per_member
        os = [o.flatten(1) for o in self.matrices(directions)]
        self.even(columns, os, scales, parts, numbers[:ROW_HEAD], skip)
        return directions, factors, numbers[ROW_HEAD:]

    def factors(self, shape):
        """Memory for a factor for each row of a parameter, and the parts of its matrices."""
        whole = torch.empty(shape.per_member * shape.rows, **self.like)
        return whole, whole.view(shape.per_member, shape.rows).unbind()

    @property
    def like(self):
        """Where state is, and its dtype."""
        return {"dtype": self.bucket.dtype, "device": self.bucket.device}

    def even(self, columns, os, scales, factors, numbers, skip):
        """Find for each row of some matrices a factor, which includes its scale."""
        if not os:
            return
        where, common = (self.bucket.device.type, self.backend), (self.bucket.dtype, skip)
        args = os, columns, scales, factors, numbers, *common, self.memo
        backends.call("rows_", *where, "normuon", *args)
