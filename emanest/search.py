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
from typing import NamedTuple

import torch

from . import ops
from .bases import SCALES
from .checks import check_group
from .coefficients import polynomials
from .newton_schulz import iterate, normalized, working_dtype
from .products import empty
from .rules import MOMENTA, ROWS

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
    "ns_form": None,
    "ns_dtype": None,
}


def check_split(name, p, split):
    """Raise ValueError unless a parameter is so many matrices below each other."""
    if p.shape[0] % split:
        shape = tuple(p.shape)
        raise ValueError(f"split={split} does not divide the {shape[0]} rows of {name}, {shape}")


class Stack(NamedTuple):
    """Matrices of one shape, to be orthogonalised together.

    A parameter is one matrix, (shape[0], everything else), or ``split`` of them below each other.
    """

    rows: int
    columns: int
    members: list[int]  # parameters
    matrices: slice  # theirs, among all matrices of the bucket


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
        self.backend, self.split = group.get("backend"), self.group["split"]
        for p in bucket.owners(indices):
            check_split("a parameter", p, self.split)
        form, asked = self.group["ns_form"], self.group["ns_dtype"]
        self.dtype = working_dtype(bucket.device, bucket.param_dtype, form, asked)
        self.memo = bucket.memo(indices)
        self.stacks, self.scales = self._layout()

    def __call__(self, gs, numbers, skip):
        """Directions, a scale for each, and the numbers that are left.

        Args:
            gs: gradients.
            numbers: those of the momentum rule, then the pass's.
            skip: a flag on the device, or None.
        """
        directions, numbers = self.directions(gs, numbers, skip)
        return directions, self.scales, numbers

    def _layout(self):
        """The stacks, and for each parameter a vector with its scale."""
        key = "stacks", self.split, self.group["adjust_lr_fn"]
        if key not in self.memo:
            scale, together = SCALES[self.group["adjust_lr_fn"] or "original"], {}
            for i, p in enumerate(self.bucket.owners(self.indices)):
                shape = p.shape[0] // self.split, math.prod(p.shape[1:])
                together.setdefault(shape, []).append(i)
            stacks, first, scales = [], 0, [1.0] * len(self.indices)
            for (rows, columns), members in together.items():
                last = first + len(members) * self.split
                stacks.append(Stack(rows, columns, members, slice(first, last)))
                first = last
                for i in members:
                    # an empty matrix has no scale, but must not be an error
                    scales[i] = scale(max(rows, 1), max(columns, 1))
            vector = torch.tensor(scales, dtype=self.bucket.dtype, device=self.bucket.device)
            self.memo[key] = stacks, list(vector.split(1))
        return self.memo[key]

    def matrices(self, tensors):
        """The matrices of tensors that are shaped like the parameters, by stack."""
        return self.cut([tensors[i] for stack in self.stacks for i in stack.members])

    def cut(self, tensors):
        """The matrices of tensors, each of which is ``split`` of them below each other."""
        if self.split == 1:
            return tensors
        return [m for t in tensors for m in t.unflatten(0, (self.split, -1)).unbind()]

    @property
    def update_dtype(self):
        """That of the updates: 16 bits would round before the norm is known, or overflow."""
        return torch.promote_types(self.dtype, torch.float32)

    def average(self, us, gs, state, numbers, skip):
        """Run the momentum pass over tensors; the squares of the updates' norms."""
        squares = torch.empty(len(us), dtype=torch.float64, device=self.bucket.device)
        common = self.bucket.dtype, skip, self.memo, self.backend
        ops.momentum_("ema", us, gs, state, squares, numbers, *common)
        return squares

    def momentum(self, gs, numbers, skip):
        """Run the momentum pass; for each stack the updates, and the norms of all of them."""
        updates = [
            empty((len(s.members) * self.split, s.rows, s.columns), dtype, self.bucket.device)
            for dtype in [self.update_dtype]
            for s in self.stacks
        ]
        gs = self.matrices(gs)
        us = [u for stack in updates for u in stack.unbind()]
        us = [u.view(g.shape) for u, g in zip(us, gs, strict=True)]
        state = [self.matrices(c) for c in self.bucket.columns(MOMENTA["ema"].state, self.indices)]
        return updates, self.average(us, gs, state, numbers, skip).sqrt_()

    def orthogonal(self, u, norms):
        """Matrices near the orthogonal factors of a batch, contiguous; may overwrite ``u``."""
        rows, margin = polynomials(self.group["ns_coefficients"], self.group["ns_steps"])
        to = u if u.dtype == self.dtype else empty(u.shape, self.dtype, u.device)
        x = normalized(u, norms, self.group["eps"], margin, to)
        return iterate(x, rows, self.group["ns_form"], self.backend)

    def directions(self, gs, numbers, skip):
        """For each parameter the orthogonal factor of its update, and the numbers that are left.

        The momentum moves on.
        """
        updates, norms = self.momentum(gs, numbers[:HEAD], skip)
        found = [torch.empty(0, device=self.bucket.device)] * len(gs)
        for stack in self.stacks:
            # taken off the list: it is not needed any more, and memory may be short
            whole = updates.pop(0)
            count = self.at_once(stack) * self.split
            pairs = zip(whole.split(count), norms[stack.matrices].split(count), strict=True)
            members = iter(stack.members)
            for u, norm in pairs:
                o = self.orthogonal(u, norm)
                for each in o.unflatten(0, (-1, self.split)).unbind():
                    i = next(members)
                    found[i] = each.view(gs[i].shape)
        return found, numbers[HEAD:]

    def at_once(self, stack):
        """How many parameters of a stack are iterated together."""
        return max(1, BATCH // max(1, self.split * stack.rows * stack.columns))


class EvenRows(Search):
    """A search that also finds a factor for each row."""

    options = (*OPTIONS, "beta2")

    def __call__(self, gs, numbers, skip):
        """As ``Search``, with scales for rows."""
        directions, numbers = self.directions(gs, numbers, skip)
        columns = self.bucket.columns(ROWS["normuon"].state, self.indices)
        columns = [self.matrices(column) for column in columns]
        scales = [scale.expand(self.split) for scale in self.scales]
        factors = [torch.empty(len(d), **self.like) for d in directions]
        os = self.matrices([d.flatten(1) for d in directions])
        each = self.matrices(scales), self.matrices(factors)
        self.even(columns, os, *each, numbers[:ROW_HEAD], skip)
        return directions, factors, numbers[ROW_HEAD:]

    @property
    def like(self):
        """Where state is, and its dtype."""
        return {"dtype": self.bucket.dtype, "device": self.bucket.device}

    def even(self, columns, os, scales, factors, numbers, skip):
        """Find for each row of some matrices a factor, which includes its scale."""
        common = self.bucket.dtype, skip, self.memo, self.backend
        ops.rows_("normuon", os, columns, scales, factors, numbers, *common)
