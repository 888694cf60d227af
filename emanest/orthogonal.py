"""The base optimizers that step along an orthogonalised momentum: Muon and NorMuon.

A step has three parts, each for all matrices of a bucket:

    momentum pass    gradients and momenta -> updates and the squares of their norms
    Newton-Schulz    updates -> orthogonal directions, matrices of one shape in one batch
    tail pass        the rule ``direction`` on them, with scale, weight decay and any lookahead

NorMuon finds a factor for each row before the tail. The first parts are ``bases.Base.search``. If
they fail (out of memory, say), momenta may have moved on, but no parameter.
"""

import math
from typing import NamedTuple

import torch

from . import ops
from .bases import SCALES, Base
from .checks import check_group
from .coefficients import polynomials
from .newton_schulz import iterate, normalized, working_dtype
from .products import empty
from .rules import MOMENTA, ROWS

# elements in one batch of Newton-Schulz, which needs up to four times their memory
_BATCH = 1 << 27

_OPTIONS = {
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

    options = tuple(_OPTIONS)

    def __init__(self, group, bucket, indices):
        self.bucket, self.indices = bucket, indices
        # but for lr, which may be a tensor on a device, and was looked at already
        self.group = check_group({name: group[name] for name in self.options if name != "lr"})
        self.backend, self.split = group.get("backend"), self.group["split"]
        for p in bucket.members(indices):
            _check_split("a parameter", p, self.split)
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
            for i, p in enumerate(self.bucket.members(self.indices)):
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
        chosen = (tensors[i] for stack in self.stacks for i in stack.members)
        if self.split == 1:
            return list(chosen)
        return [m for t in chosen for m in t.unflatten(0, (self.split, -1)).unbind()]

    def momentum(self, gs, numbers, skip):
        """Run the momentum pass; for each stack the updates, and the norms of all of them."""
        # 16 bits would round before the norm is known, or overflow
        dtype = torch.promote_types(self.dtype, torch.float32)
        updates = [
            empty((len(s.members) * self.split, s.rows, s.columns), dtype, self.bucket.device)
            for s in self.stacks
        ]
        gs = self.matrices(gs)
        us = [u for stack in updates for u in stack.unbind()]
        us = [u.view(g.shape) for u, g in zip(us, gs, strict=True)]
        state = [self.matrices(c) for c in self.bucket.columns(MOMENTA["ema"].state, self.indices)]
        squares = torch.empty(len(us), dtype=torch.float64, device=self.bucket.device)
        common = self.bucket.dtype, skip, self.memo, self.backend
        ops.momentum_("ema", us, gs, state, squares, numbers, *common)
        return updates, squares.sqrt_()

    def directions(self, gs, numbers, skip):
        """For each parameter the orthogonal factor of its update, and the numbers that are left.

        The momentum moves on.
        """
        head = 1 + len(MOMENTA["ema"].numbers)
        updates, norms = self.momentum(gs, numbers[:head], skip)
        rows, margin = polynomials(self.group["ns_coefficients"], self.group["ns_steps"])
        found = [torch.empty(0)] * len(gs)
        for stack in self.stacks:
            # taken off the list: it is not needed any more, and memory may be short
            whole = updates.pop(0)
            count = max(1, _BATCH // max(1, whole[: self.split].numel())) * self.split
            pairs = zip(whole.split(count), norms[stack.matrices].split(count), strict=True)
            members = iter(stack.members)
            for u, norm in pairs:
                to = u if u.dtype == self.dtype else empty(u.shape, self.dtype, u.device)
                x = normalized(u, norm, self.group["eps"], margin, to)
                o = iterate(x, rows, self.group["ns_form"], self.backend)
                for each in o.unflatten(0, (-1, self.split)).unbind():
                    i = next(members)
                    found[i] = each.view(gs[i].shape)
        return found, numbers[head:]


class EvenRows(Search):
    """A search that also finds a factor for each row."""

    options = (*_OPTIONS, "beta2")

    def __call__(self, gs, numbers, skip):
        """As ``Search``, with scales for rows."""
        directions, numbers = self.directions(gs, numbers, skip)
        head = len(ROWS["normuon"].numbers)
        return directions, self.row_factors(directions, numbers[:head], skip), numbers[head:]

    def row_factors(self, directions, numbers, skip):
        """For each parameter a factor for each row, which includes its scale."""
        shapes = [(len(d), math.prod(d.shape[1:])) for d in directions]
        flat = [d.view(shape) for d, shape in zip(directions, shapes, strict=True)]
        like = {"dtype": self.bucket.dtype, "device": self.bucket.device}
        factors = [torch.empty(len(d), **like) for d in directions]
        columns = self.bucket.columns(ROWS["normuon"].state, self.indices)
        ops.rows_(
            "normuon",
            self.matrices(flat),
            [self.matrices(column) for column in columns],
            self.matrices([scale.expand(self.split) for scale in self.scales]),
            self.matrices(factors),
            numbers,
            self.bucket.dtype,
            skip,
            self.memo,
            self.backend,
        )
        return factors


def _check_matrix(name, p, group):
    shape = tuple(p.shape)
    elsewhere = "emanest.split_params(model) sends what is no matrix to AdamW, in one optimizer"
    if p.dim() < 2:
        raise ValueError(
            f"{name} has shape {shape}: only matrices, and kernels flattened to matrices, can be "
            f'orthogonalised; {elsewhere} (groups with "base": "adamw")'
        )
    if p.is_complex():
        raise ValueError(f"{name} has dtype {p.dtype}: only real matrices here; {elsewhere}")
    _check_split(name, p, group["split"])


def _check_split(name, p, split):
    """Raise ValueError unless a parameter has so many matrices below each other."""
    if p.shape[0] % split:
        shape = tuple(p.shape)
        raise ValueError(f"split={split} does not divide the {shape[0]} rows of {name}, {shape}")


def _rule(group):
    return "direction"


def _muon_numbers(group, lr, step):
    # weights are subtracted here, in double
    weight = 1 - group["momentum"]
    momentum = weight, weight if group["nesterov"] else 0.0
    # what was a factor of the gradients is in the directions' place now: 1
    return *momentum, 1.0, lr, lr * group["weight_decay"]


def _normuon_numbers(group, lr, step):
    weight, blend, *tail = _muon_numbers(group, lr, step)
    return weight, blend, 1 - group["beta2"], group["eps"], *tail


MUON = Base(
    _rule,
    _muon_numbers,
    _OPTIONS,
    # torch saves no `step` for Muon, whose steps are all alike
    uncounted=1.0,
    search=Search,
    state=MOMENTA["ema"].state,
    check=_check_matrix,
)
NORMUON = Base(
    _rule,
    _normuon_numbers,
    {**_OPTIONS, "eps": 1e-10, "beta2": 0.95},
    uncounted=1.0,
    search=EvenRows,
    state=(*MOMENTA["ema"].state, *ROWS["normuon"].state),
    check=_check_matrix,
)
