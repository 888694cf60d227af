# SPDX-License-Identifier: MIT
"""Whole tensors out of the parts that several processes hold, and parts out of wholes."""

import math
from typing import NamedTuple

import torch


class Sharding(NamedTuple):
    """A tensor that is spread over the processes of a group: the shape of the whole, and how."""

    shape: tuple[int, ...]
    dim: int | None  # cut into equal parts along it, the last ones smaller; None: whole everywhere

    def part(self, rank, count):
        """Where the part of a process begins and ends along ``dim``, of ``count`` processes."""
        size = self.shape[self.dim or 0]
        if self.dim is None:
            return 0, size
        chunk = -(-size // count)
        return min(size, chunk * rank), min(size, chunk * (rank + 1))

    def part_shape(self, rank, count):
        """The shape of the part of a process."""
        start, end = self.part(rank, count)
        dim = self.dim or 0
        return (*self.shape[:dim], end - start, *self.shape[dim + 1 :])


class Exchange:
    """Two exchanges of all processes with all: parts to wholes, and wholes to parts.

    Each tensor has one owner, to which ``gather`` brings the parts, and from which ``scatter``
    takes them. All processes must do the same with tensors of the same shapes.

    Args:
        group: the processes.
        owners: for each tensor the process that owns it, a number below the size of the group.
    """

    def __init__(self, group, owners):
        self.group, self.rank = group, torch.distributed.get_rank(group)
        self.count = torch.distributed.get_world_size(group)
        self.owned = [[i for i, o in enumerate(owners) if o == rank] for rank in range(self.count)]
        self.mine = self.owned[self.rank]

    def gather(self, shardings, parts):
        """The whole tensors that this process owns, in the order of ``mine``.

        Args:
            shardings: a ``Sharding`` for each tensor.
            parts: the part of each that lies here, all of one dtype.
        """
        sent = [[parts[i] for i in its] for its in self.owned]
        mine = [shardings[i] for i in self.mine]
        shapes = [[s.part_shape(rank, self.count) for s in mine] for rank in range(self.count)]
        received = self._all_to_all(sent, shapes, parts[0])
        wholes = []
        for s, *each in zip(mine, *received, strict=True):
            # of a tensor that is whole everywhere, that of any process will do
            wholes.append(each[self.rank] if s.dim is None else torch.cat(each, s.dim))
        return wholes

    def scatter(self, shardings, wholes, like):
        """The part of every tensor that belongs here.

        Args:
            shardings: as in ``gather``.
            wholes: those that this process owns, in the order of ``mine``.
            like: a tensor of their dtype and device; this process may own none.
        """
        mine = [shardings[i] for i in self.mine]
        sent = []
        for rank in range(self.count):
            spans = [s.part(rank, self.count) for s in mine]
            pairs = zip(wholes, mine, spans, strict=True)
            sent.append([w.narrow(s.dim or 0, a, b - a) for w, s, (a, b) in pairs])
        here = [s.part_shape(self.rank, self.count) for s in shardings]
        shapes = [[here[i] for i in its] for its in self.owned]
        found = {}
        for its, parts in zip(self.owned, self._all_to_all(sent, shapes, like), strict=True):
            found.update(zip(its, parts, strict=True))
        return [found[i] for i in range(len(shardings))]

    def _all_to_all(self, sent, shapes, like):
        """Send lists of tensors, one list to each process; receive tensors of some shapes."""
        sizes = [[math.prod(shape) for shape in each] for each in shapes]
        out = like.new_empty(sum(map(sum, sizes)))
        pieces = [t.reshape(-1) for each in sent for t in each]
        torch.distributed.all_to_all_single(
            out,
            torch.cat(pieces) if pieces else like.new_empty(0),
            [sum(each) for each in sizes],
            [sum(t.numel() for t in each) for each in sent],
            group=self.group,
        )
        flat = iter(out.split([size for each in sizes for size in each]))
        return [[next(flat).view(shape) for shape in each] for each in shapes]
