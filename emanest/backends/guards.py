# SPDX-License-Identifier: MIT
"""Loops over all parameters that every step makes, in C++ where the extension is built."""

import functools

import torch
from torch.autograd.graph import increment_version
from torch.nn.parameter import is_lazy

from .storage import dispatches, in_storage, made_fake, waited


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
        self._sizes = [len(params) for params in lists]
        self._params = [p for params in lists for p in params]
        self._facts = [_facts(p) for p in self._params]
        self._mappings = list(mappings)
        dicts = (*zip(mappings, mappings, strict=True), *entries)
        self._dicts = [(each, [(key, fixed.get(key)) for key in each]) for each, fixed in dicts]

    def unchanged(self, lists, mappings):
        """Whether the parameters are the same objects, of the same kind, and have their state.

        False where tensors that are made would be fake. Gradients, which must be dense, are there
        for those parameters that had one. Parameters and gradients are in their storage, but for
        ``DTensor``, which are to be looked into.
        """
        params = [p for each in lists for p in each]
        return (
            # with their sizes: one that moves to the next list stays in its place among all
            [len(each) for each in lists] == self._sizes
            and not made_fake()
            and all(p is q for p, q in zip(params, self._params, strict=True))
            and all(_facts(p) == facts for p, facts in zip(params, self._facts, strict=True))
            and all(dispatches(p) or _both_in_storage(p) for p in params)
            and len(mappings) == len(self._mappings)
            and all(a is b for a, b in zip(mappings, self._mappings, strict=True))
            and all(_same(*each) for each in self._dicts)
        )


def _facts(p):
    shape = None if is_lazy(p) else p.shape
    layout = None if p.grad is None else p.grad.layout
    return dispatches(p), shape, p.dtype, p.device, layout


def _both_in_storage(p):
    return in_storage(p) and (
        p.grad is None or p.grad.layout != torch.strided or in_storage(p.grad)
    )


def _same(mapping, items):
    """Whether a dict has those keys, with those values; None stands for any."""
    pairs = zip(mapping.items(), items, strict=True)
    return len(mapping) == len(items) and all(
        key is known and (fixed is None or value is fixed) for (key, value), (known, fixed) in pairs
    )


try:
    from ..extension.loaded import _C
except ImportError:
    Guard, count_writes = _Guard, increment_version
    gradients, versions = _gradients, _versions
    # to look at every tensor here takes as long as what is done where something has changed
    Layout = None
else:
    Guard, count_writes = _C.Guard, _C.count_writes
    gradients, versions = functools.partial(_C.gradients, waited), _C.versions
    # How the tensors of a call lie, to tell quickly whether those of another lie alike: of each its
    # device, dtype and number of elements, and if it is not contiguous its shape and strides. If so
    # `find` gives the bytes of their addresses, the same object as long as these stay; else None.
    # No tensor is kept. Those that are not in their storage lie nowhere.
    Layout = _C.Layout
