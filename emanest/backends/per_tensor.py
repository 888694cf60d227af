# SPDX-License-Identifier: MIT
"""Numbers of a pass that differ between tensors: one call for many groups of parameters."""

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

from .upload import upload

# of an array's items
_CODES = {torch.float32: "f", torch.float64: "d"}


class PerTensor(NamedTuple):
    """Numbers of a pass that differ between tensors.

    Attributes:
        values: sets of numbers, all of one length: tuples of floats, or float64 vectors on the
            device.
        of: for each tensor the index of its set in ``values``.
    """

    values: Sequence[Any]
    of: list[int]


def each(numbers, tensors):
    """The numbers of a call in any form as a ``PerTensor``.

    Raises:
        ValueError: there is not one index for each tensor, or one points at no set; or sets differ
            in length, or a vector is none of float64 on the device.
    """
    if not isinstance(numbers, PerTensor):
        return PerTensor([numbers], [0] * len(tensors))
    values, of = numbers
    if len(of) != len(tensors):
        raise ValueError(
            f"numbers.of: expected {len(tensors)} indices, one a tensor, got {len(of)}"
        )
    if not of:
        return numbers
    if not 0 <= min(of) <= max(of) < len(values):
        found = f"{min(of)} to {max(of)}"
        raise ValueError(f"numbers.of: expected indices of {len(values)} sets, got {found}")
    lengths = set(map(len, values))
    if len(lengths) > 1:
        raise ValueError(f"numbers.values: expected sets of one length, got {sorted(lengths)}")
    if isinstance(values[0], torch.Tensor):
        _check_vectors(values, tensors[0].device)
    return numbers


def _check_vectors(vectors, device):
    for v in vectors:
        if v.dtype != torch.float64 or v.device != device or v.dim() != 1 or not v.is_contiguous():
            raise ValueError(
                f"numbers.values: expected contiguous vectors of float64 on {device}, got one of "
                f"sizes {list(v.shape)} of {v.dtype} on {v.device}"
            )


def joined(numbers, tensors, dtype):
    """The numbers of a call as kernels find them.

    Args:
        numbers: as in ``eager.apply_``.
        tensors: those of the call.
        dtype: that numbers of the host have on the device, where tensors have their own.

    Returns:
        The numbers and None, if all tensors share them. Otherwise a vector on the device, the first
        set, and a list that says of each tensor how many elements after that vector's first its own
        numbers begin: in the same memory, or, of vectors that were given, wherever theirs is.

    Raises:
        ValueError: as ``each``.
    """
    if not isinstance(numbers, PerTensor):
        return numbers, None
    values, of = each(numbers, tensors)
    if len(values) < 2 or not of or not len(values[0]):
        return values[0] if values else (), None
    first, count = values[0], len(values[0])
    if isinstance(first, torch.Tensor):
        begin, size = first.data_ptr(), first.element_size()
        begins = [(v.data_ptr() - begin) // size for v in values]
        return first, [begins[i] for i in of]
    vector = torch.empty(count * len(values), dtype=dtype, device=tensors[0].device)
    # of a list: an iterator takes it three times as long
    upload(array(_CODES[dtype], [*chain.from_iterable(values)]), vector)
    return vector[:count], [i * count for i in of]
