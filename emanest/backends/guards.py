"""Loops over all parameters that every step makes, in C++ where the extension is built."""

import functools

import torch
from torch.autograd.graph import increment_version
from torch.nn.parameter import is_lazy

from .storage import dispatches, in_storage, waited


def _gradients(params):
    """The gradients of parameters, ``waited`` for; None where there is none."""
    return [None if p.grad is None else waited(p.grad) for p in params]


def _versions(tensors):
    """The version counters of tensors."""
    return [t._version for t in tensors]


class _Guard:
    """What a step was taken on, to tell quickly whether the next one finds the same.

    Args:
        lists: the parameter lists of the groups.
        mappings: the dicts that hold the parameters' state, parameter -> entries.
        entries: for each parameter its entries, and those of them that must stay; the others may
            change, but not come and go.
    """

    def __init__(self, lists, mappings, entries):
        self._params = [p for params in lists for p in params]
        self._facts = [_facts(p) for p in self._params]
        self._mappings = [(mapping, list(mapping.items())) for mapping in mappings]
        self._entries = [(row, [(key, fixed.get(key)) for key in row]) for row, fixed in entries]

    def unchanged(self, lists, mappings):
        """Whether the parameters are the same objects, of the same kind, and have their state.

        Gradients, which must be dense, are there for those parameters that had one. Parameters and
        gradients are in their storage, but for ``DTensor``, which are to be looked into.
        """
        params = [p for each in lists for p in each]
        return (
            len(params) == len(self._params)
            and all(p is q for p, q in zip(params, self._params, strict=True))
            and all(_facts(p) == facts for p, facts in zip(params, self._facts, strict=True))
            and all(dispatches(p) or _both_in_storage(p) for p in params)
            and len(mappings) == len(self._mappings)
            and all(map(_same_items, mappings, self._mappings))
            and all(_has(row, items) for row, items in self._entries)
        )


def _facts(p):
    shape = None if is_lazy(p) else p.shape
    layout = None if p.grad is None else p.grad.layout
    return dispatches(p), shape, p.dtype, p.device, layout


def _both_in_storage(p):
    return in_storage(p) and (
        p.grad is None or p.grad.layout != torch.strided or in_storage(p.grad)
    )


def _same_items(mapping, known):
    before, items = known
    if mapping is not before or len(mapping) != len(items):
        return False
    pairs = zip(mapping.items(), items, strict=True)
    return all(a is c and b is d for (a, b), (c, d) in pairs)


def _has(row, items):
    pairs = zip(row.items(), items, strict=True)
    return len(row) == len(items) and all(
        key == known and (fixed is None or value is fixed) for (key, value), (known, fixed) in pairs
    )


class _Layout:
    """Where and how the tensors of a call lie, to tell quickly whether those of another lie so too.

    That is all that work on their memory depends on: of each tensor its address, device, dtype and
    number of elements, and if it is not contiguous its shape and strides. No tensor is kept.
    Tensors that are not in their storage lie nowhere. Here it is never known: to look at every
    tensor takes as long as what is done where something has changed.

    Args:
        columns: lists of strided tensors.
    """

    def __init__(self, columns):
        pass

    def unchanged(self, columns):
        """Whether tensors are known to lie where those did that this was made of."""
        return False


try:
    from .. import _C
except ImportError:
    Layout, Guard, count_writes = _Layout, _Guard, increment_version
    gradients, versions = _gradients, _versions
else:
    Layout, Guard, count_writes = _C.Layout, _C.Guard, _C.count_writes
    gradients, versions = functools.partial(_C.gradients, waited), _C.versions
