# SPDX-License-Identifier: MIT
"""Matrices in memory: several as one batch, or put together to one tensor, without copies."""

import itertools

import torch


class Batch:
    """Matrices of one size of which the same sides are rotated, and their state.

    Attributes:
        at: their places among all matrices.
        averages: the state of the momentum rule: columns of matrices.
        sides: for each side a batch of Gram matrices and one of bases, which are the state; None:
            it is not rotated.
    """

    def __init__(self, at, averages, sides):
        self.at, self.averages, self.sides = at, averages, sides

    def alike(self, keys):
        """Its parts with equal keys, one for each matrix; usually that is all of it."""
        runs = [[*run] for _, run in itertools.groupby(range(len(keys)), keys.__getitem__)]
        return [self] if len(runs) == 1 else [self._part(run[0], run[-1] + 1) for run in runs]

    def _part(self, begin, end):
        sides = [side and tuple(t[begin:end] for t in side) for side in self.sides]
        return Batch(self.at[begin:end], [c[begin:end] for c in self.averages], sides)


def evenly_spaced(places, columns, most):
    """Places cut into runs of at most so many, where the tensors of each column are one batch.

    Args:
        places: indices.
        columns: lists of matrices of one shape.
        most: at least 1.
    """
    runs = []
    for k in places:
        run = runs[-1] if runs else []
        if run and len(run) < most and all(_follows(c, run, k) for c in columns):
            run.append(k)
        else:
            runs.append([k])
    return runs


def _follows(column, run, k):
    """Whether a tensor lies after the last of a run as that lies after the one before it."""
    *before, last = [column[i] for i in run[-2:]]
    t = column[k]
    step = t.data_ptr() - last.data_ptr()
    return (
        _memory(t) == _memory(last)
        and t.stride() == last.stride()
        and (step == last.data_ptr() - before[0].data_ptr() if before else step > 0)
    )


def as_batch(matrices):
    """Evenly spaced matrices as one tensor, in their memory."""
    first = matrices[0]
    if len(matrices) == 1:
        return first[None]
    step = matrices[1].storage_offset() - first.storage_offset()
    return first.as_strided((len(matrices), *first.shape), (step, *first.stride()))


def gathered(matrices):
    """Matrices as one tensor, in their memory where they are evenly spaced, else a copy."""
    count = len(matrices)
    (run, *others) = evenly_spaced(range(count), [matrices], count)
    return torch.stack(matrices) if others else as_batch([matrices[k] for k in run])


def as_whole(matrices, like):
    """Matrices one below the other as one contiguous tensor shaped like another.

    It is in their memory if they are contiguous and follow each other there, else a copy.
    """
    if len(matrices) == 0:
        return like.new_empty(like.shape)
    first = matrices[0]
    begin, memory, size = first.storage_offset(), _memory(first), first.numel()
    if all(
        m.is_contiguous() and _memory(m) == memory and m.storage_offset() == begin + k * size
        for k, m in enumerate(matrices)
    ):
        return first.as_strided(like.shape, torch.empty(like.shape, device="meta").stride())
    return torch.cat([m.flatten() for m in matrices]).view(like.shape)


def _memory(t):
    return t.untyped_storage().data_ptr()


def shaped_as(batch, tensors):
    """The matrices of a batch, each shaped as one of some tensors."""
    return [m.view(t.shape) for m, t in zip(batch, tensors, strict=True)]


def taken(matrices, orders, dim):
    """Rows (dim 0) or columns (1) of each matrix of a batch in an order of its own."""
    found = torch.empty(matrices.shape, dtype=matrices.dtype, device=matrices.device)
    for matrix, order, out in zip(matrices, orders, found, strict=True):
        torch.index_select(matrix, dim, order, out=out)
    return found
