"""What a call has prepared, for a later one with tensors like those of that one.

A step is much the same as the one before: then no tensor is looked at but to see that it is, and
where it lies. Kept are a few integers of each tensor, and none of these itself.
"""

from typing import Any, NamedTuple

from ..backends import capture
from ..backends.guards import Layout
from . import table
from .launch import Prepared


class Known(NamedTuple):
    """What a memo keeps of the last call of a kind on one stream."""

    layout: Any
    addresses: bytes | None
    begins: list | None
    prepared: list[Prepared]


def prepared(memo, key, columns, begins, make):
    """What is prepared for launches over tensors: what was for others that lay alike, or new.

    Args:
        memo: the back end's, or None.
        key: tells apart calls of different kinds.
        columns: lists of tensors, those of the call, in the order in which rows have them.
        begins: where each tensor's numbers begin, as ``joined`` says; None: they share them.
        make: prepares anew; also returns whether for these tensors, and not for a copy of any.
    """
    where = _where(memo, key, columns)
    known = memo.get(where) if where else None
    if known is not None and known.begins == begins:
        addresses = known.layout.find(columns)
        if addresses is not None and addresses is known.addresses:
            return known.prepared
        # several have some of the tensors each
        if addresses is not None and len(known.prepared) == 1:
            moved = [each.moved(addresses) for each in known.prepared]
            memo[where] = known._replace(addresses=addresses, prepared=moved)
            return moved
    found, kept = make()
    if where and kept and Layout is not None:
        layout = Layout(columns)
        memo[where] = Known(layout, layout.find(columns), begins, found)
    return found


def _where(memo, key, columns):
    """Where a memo has what it keeps of a call; None for one of which nothing is kept."""
    if memo is None or not columns[0]:
        return None
    device = columns[0][0].device
    # a graph has tables that are kept for it alone
    if capture.capturing(device.type):
        return None
    return "known", key, table.stream_of(device)
