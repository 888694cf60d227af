# SPDX-License-Identifier: MIT
"""Where a kernel finds the tensors of a call.

Two levels: ``chunks`` says which part of which parameter each program takes and depends on sizes
alone; ``rows`` has the addresses, and changes with them. A back end keeps both in the memo that it
is handed, for each stream: on another one a launch could still read rows while these change, or
come before they have arrived.

A CUDA graph reads its tables whenever it is replayed. It takes one that a call before the capture
left, which is never written again, or else one of its own, which every replay writes first.
"""

from array import array
from itertools import accumulate

import torch

from ..backends import capture, storage
from ..backends.upload import upload


class Table:
    """The rows that a kernel reads.

    Attributes:
        rows: (parameters, 2 + columns + more) int64: the size, the number of the first chunk, the
            address in each column, and what else kernels want to know.
        entries: what they hold, row by row, in an array of the host.
        frozen: a graph reads them, so that they must stay as they are.
    """

    def __init__(self, count, width, device):
        self.entries, self.frozen = None, False
        # an evaluation in inference mode may be the first that needs them, and not the last
        with torch.inference_mode(False):
            self.rows = torch.empty((count, width), dtype=torch.int64, device=device)


class Tables:
    """The tables of calls of one kind on one stream, for parameters of some sizes.

    Args:
        chunks: (n, 2) int32: a row, and which of its parameter's blocks.
        width: of a row.
        tables: of which calls write the last one, unless it is frozen.
    """

    def __init__(self, chunks, width, *tables):
        self.chunks, self.width, self.tables = chunks, width, [*tables]

    def find(self, entries):
        """The rows that hold some entries: all are copied, as a step changes most if any."""
        last = self.tables[-1] if self.tables else None
        if last is None or (last.frozen and last.entries != entries):
            last = Table(len(entries) // self.width, self.width, self.chunks.device)
            self.tables.append(last)
        if last.entries is not entries and last.entries != entries:
            upload(entries, last.rows)
            last.entries = entries
        return last.rows


def lookup(memo, key, sizes, columns, more, block):
    """The tables for some tensors, from the memo or new, and the entries that they want there.

    Args:
        memo: the back end's, or None.
        key: tells apart the tables of different columns.
        sizes: of each parameter, what is cut into chunks.
        columns: lists with one tensor per parameter, all dense and in one order.
        more: lists with one integer per parameter, for the ends of its row.
        block: elements of a chunk.
    """
    device, memo = columns[0][0].device, {} if memo is None else memo
    first = [*accumulate((-(-size // block) for size in sizes), initial=0)]
    addresses = ([*map(torch.Tensor.data_ptr, column)] for column in columns)
    fields = sizes, first[:-1], *addresses, *more
    width = len(fields)
    entries = placed(array("q", bytes(8 * width * len(sizes))), width, 0, fields)
    # kernels that read other columns of the same parameters have the same chunks
    chunks = memo.setdefault(("chunks", block, sizes), {})
    found = memo.setdefault(("tables", key, block, sizes), {})
    same = [t for tables in found.values() for t in tables.tables if t.entries == entries]
    if not same:
        for column in columns:
            _check(column, device)
    stream, frozen = stream_of(device), []
    if capture.capturing(device.type):
        # one of any stream, since the capture comes after what was launched before it, or one that
        # nobody else knows, with the chunks of any: these are never written again
        frozen = same[:1]
        for table in frozen:
            table.frozen = True
        chunks, found = {stream: next(iter(chunks.values()))} if chunks else {}, {}
    if stream not in chunks:
        chunks[stream] = _chunks(first, device)
    if stream not in found:
        found[stream] = Tables(chunks[stream], width, *frozen)
    return found[stream], entries


def placed(entries, width, first, columns):
    """A copy of entries with other columns, from the first on: lists of integers."""
    entries = entries[:]
    for k, column in enumerate(columns, first):
        entries[k::width] = array("q", column)
    return entries


def stream_of(device):
    """The current stream of a device, for a memo."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def _chunks(first, device):
    """The chunks, from the number of each parameter's first one and, at the end, that of all."""
    begins = torch.empty(len(first), dtype=torch.int64, device=device)
    upload(array("q", first), begins)
    chunk = torch.arange(first[-1], device=device)
    # after how many parameters' ends it comes, those without elements among them
    row = torch.searchsorted(begins[1:], chunk, right=True)
    return torch.stack((row, chunk - begins[row]), 1).to(torch.int32)


def _check(tensors, device):
    for t in tensors:
        if t.device != device:
            raise RuntimeError(
                f"a parameter's gradient or state is on {t.device}, the parameter on {device}"
            )
        # most are plain, and cost no call; an empty one has no address either
        if type(t) is not torch.Tensor or t.data_ptr() == 0:
            storage.check("a tensor of this call", t)
