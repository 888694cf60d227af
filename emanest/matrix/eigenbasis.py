# SPDX-License-Identifier: MIT
"""The directions of SOAP: those of Adam, in an eigenbasis that turns slowly with the gradients.

    L = (1 - weight) L + weight G G^T      Q_L near its eigenvectors; likewise R of G^T G, and Q_R
    P = Q_L^T G Q_R                        the gradient in the basis
    D = Q_L A(P) Q_R^T                     Adam's direction (the momentum rule ``adam``), back again

A side without a basis, which is too long or a vector's, is not rotated. Matrices of one size whose
state is evenly spaced in memory, as that of parameters of one shape is, are one batch of products.
If a step fails (out of memory, say), this state may have moved on, but no parameter.
"""

import itertools
from typing import NamedTuple

import torch

from .. import backends
from ..backends.per_tensor import PerTensor, each
from ..rules import MOMENTA
from .batches import Batch, as_batch, as_whole, evenly_spaced, gathered, shaped_as, taken
from .directions import at_once
from .lapack import eigenvectors, orthonormal
from .matrices import Matrices
from .norms import with_products
from .shapes import squares

# what becomes of a basis once the gradient is taken in: it stays, is turned by a step of orthogonal
# iteration, or is found
KEPT, TURNED, FOUND = 0.0, 1.0, 2.0
# state of the left and of the right side: an average of Gram matrices, and its basis
SIDES = ("L", "Q_L"), ("R", "Q_R")
# options that say which sides have one, and how long they are
SHAPED_BY = (*Matrices.LAYOUT, "max_precond_dim")


class Numbers(NamedTuple):
    """The numbers of a step.

    Attributes:
        factor: of the gradients; it comes before those of the base.
        weight: of the newest Gram matrix.
        basis: ``KEPT``, ``TURNED`` or ``FOUND``.
        momentum: of the momentum rule.
        step: of the last pass; once known, after a factor of the directions.
    """

    factor: float
    weight: float
    basis: float
    momentum: tuple[float, ...]
    step: tuple[float, ...]

    @classmethod
    def of(cls, numbers):
        """Cut those of a step."""
        end = 3 + len(MOMENTA["adam"].numbers)
        factor, weight, basis = numbers[:3]
        return cls(factor, weight, basis, numbers[3:end], numbers[end:])

    def joined(self):
        """Those of the base in one tuple, as ``Base.numbers`` returns them."""
        # directions are taken as they are, their factor is 1
        return self.weight, self.basis, *self.momentum, 1.0, *self.step


class EigenDirections(Matrices):
    """The directions of SOAP; nothing is exchanged, since matrices lie here as wholes.

    Args:
        joint: the parameters, whose groups have one ``update_basis``.
    """

    def __init__(self, joint):
        super().__init__(joint)
        self.before = self.group["update_basis"] == "before"
        self._state: list[Batch] = []
        # matrices without bases so far, whatever their step: another base has stepped them
        self._bare: set[int] = set()

    def __call__(self, gs, numbers, skip):
        """Directions, no factors of them, and the numbers of the pass.

        Args:
            gs: gradients.
            numbers: of the step, a tuple or a ``PerTensor`` of such.
            skip: None: the host knows whether a step happens.
        """
        values, of = each(numbers, gs)
        sets = [Numbers.of(its) for its in values]
        momenta = [(its.factor, *its.momentum) for its in sets]
        owners = self._owners if len(sets) > 1 else [0] * len(self._owners)
        # only now what the user put in place of state is in its place
        if not self._state:
            self._state = self._batches_of_state()
            self._bare = {k for batch in self._state for k in _bare(batch)}
        gs, found = self.matrices(gs), {}
        with torch.autocast(self.bucket.device.type, enabled=False):
            for batch in self._state:
                keys = [(*sets[owners[k]][:3], k in self._bare) for k in batch.at]
                for some in batch.alike(keys):
                    own = PerTensor(momenta, [owners[k] for k in some.at])
                    its, its_numbers = [gs[k] for k in some.at], sets[owners[some.at[0]]]
                    if some.at[0] in self._bare:
                        its_numbers = its_numbers._replace(basis=FOUND)
                    directions = self._directions(some, its, its_numbers, own)
                    found.update(zip(some.at, directions, strict=True))
        self._bare = set()
        steps = [its.step for its in sets]
        return self._wholes(found), (), PerTensor(steps, of) if len(steps) > 1 else steps[0]

    def _batches_of_state(self):
        """All matrices with their state, cut where it is not evenly spaced."""
        averages = [self.matrices(c) for c in self.joint.columns(MOMENTA["adam"].state)]
        sides = [
            [
                self._squares(column, side, by_columns)
                for by_columns, column in enumerate(self.joint.columns(names))
            ]
            for side, names in enumerate(SIDES)
        ]
        sizes = [(s.rows, s.columns) for s in self.shapes for _ in range(s.matrices)]
        together = {}
        for k, size in enumerate(sizes):
            rotated = tuple(grams[k].numel() > 0 for grams, _ in sides)
            together.setdefault((size, rotated), []).append(k)
        batches = []
        for (size, rotated), all_of_size in together.items():
            has_bases = [side for side, has in zip(sides, rotated, strict=True) if has]
            most = at_once(max(size) * (max(size) if all(rotated) else min(size)))
            for at in evenly_spaced(all_of_size, [c for side in has_bases for c in side], most):
                own = [
                    tuple(as_batch([column[k] for k in at]) for column in side) if has else None
                    for side, has in zip(sides, rotated, strict=True)
                ]
                batches.append(Batch(at, [[c[k] for k in at] for c in averages], own))
        return batches

    def _squares(self, tensors, side, by_columns):
        """The square matrices of state that is shaped by ``square``."""
        owners = self.owners()
        return [
            matrix
            for shape, i in self.blocks
            for matrix in squares(
                tensors[i], shape, self.layouts[i], side, by_columns, owners[i].group
            )
        ]

    def _directions(self, batch, gs, numbers, momenta):
        """Directions, as matrices shaped like gradients; state moves on."""
        like, dtype = batch.averages[0], self.bucket.dtype
        moves = self.before or numbers.basis != FOUND
        if not any(batch.sides):
            directions = [torch.zeros(t.shape, dtype=dtype, device=t.device) for t in like]
            if moves:
                self._average(batch, directions, gs, momenta)
            return directions
        if numbers.basis == FOUND:
            # what another base has left is in no basis
            for t in itertools.chain(*batch.averages):
                t.zero_()
        # rows in order: products round by the layout of their factors, and where a gradient does
        # not define a basis, rounding does
        g = gathered([g.flatten(1).to(dtype).resolve_neg() for g in gs]).contiguous()
        if self.before:
            self._take_in(batch, g, numbers)
        if moves:
            found = self._rotated(batch, g)
            directions = shaped_as(found, like)
            self._average(batch, directions, directions, momenta)
            found = self._rotated(batch, found, back=True)
        else:
            found = torch.zeros_like(g)
        if not self.before:
            self._take_in(batch, g, numbers)
        return shaped_as(found, like)

    def _average(self, batch, directions, gs, momenta):
        """Run the momentum pass."""
        where = self.bucket.device.type, self.joint.backend
        tensors = directions, gs, batch.averages, momenta, self.bucket.dtype
        backends.call("apply_", *where, "momentum", ("adam",), *tensors)

    def _product(self, name, *args):
        return with_products(name, self.bucket.device, self.joint.backend, *args)

    def _rotated(self, batch, x, back=False):
        """Matrices in their bases, or back from there."""
        left, right = (side and side[1] for side in batch.sides)
        if left is not None:
            left = left.to(x.dtype)
            x = self._product("mm", left if back else left.mT, x)
        if right is not None:
            right = right.to(x.dtype)
            x = self._product("mm", x, right.mT if back else right)
        return x

    def _take_in(self, batch, g, numbers):
        """Move Gram matrices on with the gradients, and bases where their time has come."""
        weight, found = numbers.weight * numbers.factor**2, numbers.basis == FOUND
        for side, x in zip(batch.sides, (g, g.mT), strict=True):
            if side:
                grams, bases = side
                beta = 0.0 if found else 1 - numbers.weight
                # in place, unless the user gave the state another dtype
                new = grams.to(g.dtype)
                self._product("sym_mm", x, new, beta, weight, new)
                if new is not grams:
                    grams.copy_(new)
                if found:
                    bases.copy_(eigenvectors(new))
        if numbers.basis == TURNED:
            self._turn(batch)

    def _turn(self, batch):
        """One step of orthogonal iteration; the first average moves to the new bases.

        The average of squares keeps its values, each with the column that it belongs to. All is
        found before anything is written: bases and averages belong together.
        """
        dtype = self.bucket.dtype
        first, second = (gathered([t.flatten(1).to(dtype) for t in c]) for c in batch.averages)
        first, sides = self._rotated(batch, first, back=True), []
        for dim, side in enumerate(batch.sides):
            if side:
                bases, order = self._turned(*(t.to(dtype) for t in side))
                second, side = taken(second, order, dim), (side[0], bases)
            sides.append(side)
        first = self._rotated(Batch(batch.at, batch.averages, sides), first)
        for old, new in zip(batch.sides, sides, strict=True):
            if old:
                old[1].copy_(new[1])
        for column, new in zip(batch.averages, (first, second), strict=True):
            for to, value in zip(column, shaped_as(new, column), strict=True):
                to.copy_(value)

    def _turned(self, grams, bases):
        """New bases; the order in which columns were taken, by descending eigenvalue."""
        # (L Q)^T, whose rows are contiguous
        product = self._product("mm", bases.mT, grams)
        values = torch.einsum("bji,bij->bi", bases, product)
        order = values.sort(dim=-1, stable=True, descending=True).indices
        return orthonormal(taken(product, order, 0).mT, product.mT), order

    def _wholes(self, found):
        """Matrices put together to tensors of the parameters' shapes."""
        params, matrices, pieces = self.tensors(), iter([found[k] for k in range(len(found))]), []
        for shape, i in self.blocks:
            its = [*itertools.islice(matrices, shape.per_param)]
            pieces.append(as_whole(its, shape.part(params[i])))
        return self.wholes(pieces)


def _bare(batch):
    """Which matrices of a batch have no bases so far: an orthogonal matrix has no column of 0."""
    bases = [side[1][..., 0] for side in batch.sides if side]
    found = [base.any(1).tolist() for base in bases]
    return [k for k, *its in zip(batch.at, *found, strict=True) if not all(its)]
