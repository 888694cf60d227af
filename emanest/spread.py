"""The searches of ``search.py`` for matrices that are spread over processes (``DTensor``).

Momentum is averaged where it lies. Each update is then put together in one process, iterated there
and cut up again, so that every matrix is iterated once, whatever the number of processes.
"""

import torch

from .exchange import Exchange, Spread
from .rules import MOMENTA, ROWS
from .search import HEAD, ROW_HEAD, EvenRows, Search


def spread_of(p, dims=None):
    """How a parameter, or state of its first ``dims`` dimensions, is spread over a 1-D mesh."""
    (placement,) = p.placements
    shape = tuple(p.shape) if dims is None else (*p.shape[:dims], 1)
    cut = placement.is_shard() and placement.dim < len(shape[:dims])
    return Spread(shape, placement.dim if cut else None)


class SpreadSearch(Search):
    """A search for spread matrices.

    The same steps as ``Search`` but for the norm, which is that of the whole update and not of sums
    that came out of the momentum pass: the results can differ in the last bit. Memory during a
    step: two values for each entry that lies here, and what ``Search`` needs for the matrices that
    this process iterates.
    """

    def __call__(self, gs, numbers, skip):
        """As ``Search``."""
        us = [torch.empty(g.shape, dtype=self.update_dtype, device=g.device) for g in gs]
        state = self.bucket.columns(MOMENTA["ema"].state, self.indices)
        self.average(us, gs, state, numbers[:HEAD], skip)
        found, scales, start = list(us), list(self.scales), 0
        for stack in self.stacks:
            size = self.at_once(stack) * self.bucket.mesh.size()
            for k in range(0, len(stack.members), size):
                members = stack.members[k : k + size]
                self._together(members, start, us, found, scales, numbers[HEAD:], skip)
                start += len(members)
        return found, scales, self.left(numbers)

    def left(self, numbers):
        """The numbers of the pass."""
        return numbers[HEAD:]

    def _together(self, members, start, us, found, scales, numbers, skip):
        """Find directions of some parameters of one shape, and factors of them."""
        mesh, params = self.bucket.mesh, self.bucket.owners(self.indices)
        owners = [(start + k) % mesh.size() for k in range(len(members))]
        exchange = Exchange(mesh.get_group(), owners)
        spreads = [spread_of(params[i]) for i in members]
        wholes = exchange.gather(spreads, [us[i] for i in members])
        mine = [members[k] for k in exchange.mine]
        os = self._iterated(wholes)
        self.finish(exchange, members, mine, os, scales, numbers, skip)
        like = torch.empty(0, dtype=self.dtype, device=us[0].device)
        parts = exchange.scatter(spreads, os, like)
        for i, part in zip(members, parts, strict=True):
            found[i] = part

    def _iterated(self, wholes):
        if not wholes:
            return []
        u = torch.stack([m.flatten(1) for m in self.cut(wholes)])
        norms = torch.linalg.vector_norm(u, dim=(1, 2), dtype=torch.float64)
        o = self.orthogonal(u, norms)
        shape = len(wholes), *wholes[0].shape
        return list(o.view(shape).unbind())

    def finish(self, exchange, members, mine, os, scales, numbers, skip):
        """What remains to be done with whole directions."""


class SpreadEvenRows(SpreadSearch, EvenRows):
    """A search that also finds a factor for each row; an average over rows lies beside them."""

    def left(self, numbers):
        """The numbers of the pass."""
        return numbers[HEAD + ROW_HEAD :]

    def finish(self, exchange, members, mine, os, scales, numbers, skip):
        """Find a factor for each row, in place of one for each parameter."""
        params = self.bucket.owners(self.indices)
        spreads = [spread_of(params[i], dims=1) for i in members]
        columns = self.bucket.columns(ROWS["normuon"].state, self.indices)
        held = [[column[i] for i in members] for column in columns]
        wholes = [exchange.gather(spreads, parts) for parts in held]
        factors = [torch.empty(len(o), 1, **self.like) for o in os]
        if os:
            wide, each = [o.flatten(1) for o in os], [scales[i].expand(self.split) for i in mine]
            flat = self.cut([f.view(-1) for f in factors])
            whole_columns = [self.cut(column) for column in wholes]
            self.even(whole_columns, self.cut(wide), self.cut(each), flat, numbers[:ROW_HEAD], skip)
        like = torch.empty(0, **self.like)
        for parts, column in zip(held, wholes, strict=True):
            for part, new in zip(parts, exchange.scatter(spreads, column, like), strict=True):
                part.copy_(new)
        for i, factor in zip(members, exchange.scatter(spreads, factors, like), strict=True):
            scales[i] = factor.view(-1)
