"""What a call has prepared, for a later one that finds its tensors where that one found them.

A step is much the same as the one before: then no tensor is looked at but to see that it is. Kept
are a few integers of each tensor, and none of these itself.
"""

import contextlib
from typing import Any, NamedTuple

from ..backends import capture
from ..backends.guards import Layout
from ..backends.layout import scaled
from . import table
from .launch import Prepared, laid_out


class Known(NamedTuple):
    """What a memo keeps of the last call of a kind on one stream."""

    layout: Any
    begins: list | None
    prepared: list[Prepared]


def recall(memo, key, columns, begins=None):
    """What was prepared for tensors that lay where these do, or None.

    Args:
        memo: the back end's, or None.
        key: tells apart calls of different kinds.
        columns: lists of tensors, those of the call.
        begins: where each tensor's numbers begin, as ``joined`` says; None: they share them.
    """
    where = _where(memo, key, columns)
    known = where and memo.get(where)
    # another call may have written the tables since
    fits = (
        known is not None
        and known.begins == begins
        and all(each.current() for each in known.prepared)
        and known.layout.unchanged(columns)
    )
    return known.prepared if fits else None


def remember(memo, key, columns, prepared, begins=None):
    """Keep what was prepared for tensors, of which none is a copy, for ``recall``."""
    where = _where(memo, key, columns)
    if where is not None and Layout is not None:
        memo[where] = Known(Layout(columns), begins, prepared)


def _where(memo, key, columns):
    """Where a memo has what it keeps of a call; None for one of which nothing is kept."""
    if memo is None or not columns[0]:
        return None
    device = columns[0][0].device
    # a graph has tables that are kept for it alone
    if capture.capturing(device.type):
        return None
    return "known", key, table.stream_of(device)


@contextlib.contextmanager
def prepared(prepare, memo, key, dtype, begins, ys, inputs, columns, scales, writes_inputs):
    """For a ``with`` block that launches it, what is prepared for tensors that need not be flat.

    Args:
        prepare: makes it of ys, inputs, columns and scales as kernels take them.
        memo, key: as in ``recall``.
        dtype: of the arithmetic; part of the key.
        begins: as in ``recall``.
        ys, inputs, columns, writes_inputs: as in ``layout.flat``.
        scales: as in ``layout.scaled``.
    """
    given, key = [ys, inputs, *columns, scales], (*key, dtype)
    found = recall(memo, key, given, begins)
    if found is not None:
        yield found
        return
    if scales:
        inputs, scales = scaled(inputs, ys, scales, dtype)
    with laid_out(ys, inputs, columns, dtype, writes_inputs) as (ys, inputs, columns):
        found = prepare(ys, inputs, columns, scales)
        placed = [ys, inputs, *columns, scales]
        if all(map(_same, given, placed)):
            remember(memo, key, given, found, begins)
        yield found


def _same(tensors, others):
    """Whether two lists hold the same tensors."""
    return tensors is others or all(a is b for a, b in zip(tensors, others, strict=True))
