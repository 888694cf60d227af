# SPDX-License-Identifier: MIT
"""The directions of ``directions.py`` for matrices that are sharded over processes (``DTensor``).

Momentum is averaged where it lies. Each update is then put together in one process, iterated there
and cut up again, so that every matrix is iterated once, whatever the number of processes. A stack
of matrices that is cut into whole ones needs none of that: each process iterates its own.
"""

import itertools
from typing import NamedTuple

import torch

from ..rules import MOMENTA, ROWS
from .directions import Directions, Numbers, at_once
from .exchange import Exchange, Sharding
from .norms import norms_of
from .polar import Polar
from .shapes import is_stack


class Unit(NamedTuple):
    """What is put together in one process: a parameter, or of a stack one index."""

    member: int
    at: tuple[int, ...]

    def of(self, tensors):
        """Its part of one of the parameters' tensors; shares memory with it."""
        return tensors[self.member][self.at]

    def sharding(self, params, dims=None):
        """How it, or state of its first ``dims`` dimensions, is sharded over a 1-D mesh."""
        p, first = params[self.member], len(self.at)
        (placement,) = p.placements
        shape = tuple(p.shape[first:])
        shape = shape if dims is None else (*shape[:dims], 1)
        cut = placement.is_shard() and placement.dim - first < len(shape[:dims])
        return Sharding(shape, placement.dim - first if cut else None)


class ShardedDirections(Directions):
    """The directions of sharded matrices.

    The same steps as ``Directions`` but for the norm, which is that of the whole update and not of
    sums that came out of the momentum pass: the results can differ in the last bit. Memory during a
    step: two values for each entry that lies here, of a stack three, and what ``Directions`` needs
    for the matrices that this process iterates.
    """

    def __call__(self, gs, numbers, skip):
        """As ``Directions``."""
        numbers = Numbers.of(numbers, self.row_rule)
        us = [torch.empty(g.shape, dtype=self.polar.update_dtype, device=g.device) for g in gs]
        state = self.joint.columns(MOMENTA["ema"].state)
        self.average(us, gs, state, numbers.momentum, skip)
        found, scales, start, kinds = list(us), list(self.scales), 0, {}
        for i, shapes in enumerate(self.layouts):
            kinds.setdefault(shapes, []).append(i)
        for shapes, members in kinds.items():
            stack = shapes[0].stack
            indices = [*itertools.product(*map(range, stack))]
            units = [Unit(i, index) for i in members for index in indices]
            one, parts, factors = [s._replace(stack=()) for s in shapes], {}, {}
            size = at_once(sum(s.per_param * s.rows * s.columns for s in one))
            size *= self.bucket.mesh.size()
            for k in range(0, len(units), size):
                some = units[k : k + size]
                self._together(one, some, start, us, parts, factors, numbers.rows, skip)
                start += len(some)
            for i, each in parts.items():
                found[i] = torch.stack(each) if stack else each[0]
            for i, each in factors.items():
                scales[i] = torch.cat(each)
        return found, scales, numbers.step

    def here(self, i, scales):
        """As ``Directions``, cut as the rows are."""
        (placement,), shapes = self.joint.params[i].placements, self.layouts[i]
        stack = shapes[0].stack
        if len(shapes) == 1 or not placement.is_shard() or placement.dim > len(stack):
            return scales
        scales = scales.view(*stack, sum(s.split * s.rows for s in shapes))
        group = self.bucket.mesh.get_group()
        rank, count = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        begin, end = Sharding(tuple(scales.shape), placement.dim).part(rank, count)
        return scales.narrow(placement.dim, begin, end - begin).flatten()

    def tensors(self):
        """What matrices are made of: the parameters as wholes."""
        return self.joint.params

    def _together(self, shapes, units, start, us, parts, factors, numbers, skip):
        """Find directions of some units of one kind, and factors of them, by parameter.

        Args:
            shapes: of each unit, from its first row to its last.
            units, us, numbers, skip: as in ``__call__``.
            start: how many units came before.
            parts, factors: by parameter, receive what is found.
        """
        mesh, params = self.bucket.mesh, self.tensors()
        owners = [(start + k) % mesh.size() for k in range(len(units))]
        exchange = Exchange(mesh.get_group(), owners)
        shardings = [unit.sharding(params) for unit in units]
        wholes = exchange.gather(shardings, [unit.of(us) for unit in units])
        os = self._iterated(shapes, wholes)
        if self.row_rule:
            self._even_rows(exchange, shapes, units, os, factors, numbers, skip)
        like = torch.empty(0, dtype=self.polar.dtype, device=us[0].device)
        new = exchange.scatter(shardings, os, like)
        for unit, part in zip(units, new, strict=True):
            parts.setdefault(unit.member, []).append(part)

    def _iterated(self, shapes, wholes):
        if not wholes:
            return []
        found = []
        for shape in shapes:
            u = torch.stack([m.flatten(1) for m in shape.cut(wholes)])
            o = self.orthogonal(u, self.polar.inverses(norms_of(u, self.joint.backend)))
            found.append(o.view(len(wholes), shape.split * shape.rows, *shape.row))
        return list(_joined(found, 1).unbind())

    def _even_rows(self, exchange, shapes, units, os, factors, numbers, skip):
        """Find a factor for each row; an average over rows lies beside the rows."""
        params = self.tensors()
        shardings = [unit.sharding(params, dims=1) for unit in units]
        columns = self.joint.columns(ROWS[self.row_rule].state)
        held = [[unit.of(column) for unit in units] for column in columns]
        wholes = [exchange.gather(shardings, parts) for parts in held]
        mine = [units[k].member for k in exchange.mine]
        scales = {
            (i, s.start): scale for (s, i), scale in zip(self.blocks, self.of_blocks, strict=True)
        }
        owners = [(shape, scales[i, shape.start]) for shape in shapes for i in mine]
        cut = [[m for shape in shapes for m in shape.cut(column)] for column in wholes]
        matrices = [m for shape in shapes for m in shape.cut(os)]
        news = self.even(owners, matrices, cut, numbers, skip)
        news = [_joined(news[k :: len(mine)], 0) for k in range(len(mine))]
        like = self.scales[0].new_empty(0)
        for parts, column in zip(held, wholes, strict=True):
            for part, new in zip(parts, exchange.scatter(shardings, column, like), strict=True):
                part.copy_(new)
        news = [new.view(-1, 1) for new in news]
        for unit, new in zip(units, exchange.scatter(shardings, news, like), strict=True):
            factors.setdefault(unit.member, []).append(new.view(-1))


def _joined(tensors, dim):
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def alike(polar, part):
    """What parts have in common whose directions are found together, iterated by ``polar``."""
    # processes exchange the matrices of one part
    sharded = part.bucket.mesh and (part.bucket.number, *part.indices[:1])
    return sharded, *map(part.group.get, polar.OPTIONS)


def divided(joint, row_rule, polar=Polar):
    """What finds the directions of some parameters: local where matrices lie here as wholes.

    Args:
        joint, row_rule, polar: as these take them.
    """
    if joint.first.mesh is None:
        return Directions(joint, row_rule, polar)
    stack, kinds = joint.parts[0].group["stack"], {Directions: [], ShardedDirections: []}
    for k, p in enumerate(joint.params):
        kinds[Directions if _whole_here(p, stack) else ShardedDirections].append(k)
    each = [(its, kind(joint.some(its), row_rule, polar)) for kind, its in kinds.items() if its]

    def find(gs, numbers, skip):
        found, scales, step = list(gs), list(gs), numbers
        for positions, directions in each:
            *new, step = directions([gs[k] for k in positions], numbers, skip)
            for k, direction, scale in zip(positions, *new, strict=True):
                found[k], scales[k] = direction, scale
        return found, scales, step

    return find


def _whole_here(p, stack):
    """Whether a stack is cut between its matrices."""
    (placement,) = p.placements
    return is_stack(p, stack) and placement.is_shard() and placement.dim == 0
