"""Where a kernel finds the tensors of a call.

Two levels: ``chunks`` says which part of which parameter each program takes and depends on sizes
alone; ``rows`` has the addresses, and changes with them. A back end keeps both in the memo that it
is handed, for each stream: on another one a launch could still read rows while these change, or
come before they have arrived.

A CUDA graph reads its tables whenever it is replayed. It takes one that a call before the capture
left, which is never written again, or else one of its own, which every replay writes first.
"""

from array import array
from itertools import accumulate, chain
from typing import NamedTuple

import torch

from ..backends import capture, storage
from ..backends.upload import upload


class Table:
    """The two tensors that a kernel reads.

    Attributes:
        chunks: (n, 2) int32: a row, and which of its parameter's blocks.
        rows: (parameters, columns + 1 + more) int64: the address in each column, the size, and
            what else kernels want to know.
        frozen: a graph reads it, so that the rows must stay as they are.
    """

    def __init__(self, chunks, sizes, columns, device):
        self.chunks, self.sizes, self.device, self.frozen = chunks, sizes, device, False
        # an evaluation in inference mode may be the first that needs them, and not the last
        with torch.inference_mode(False):
            self.rows = torch.empty((len(sizes), columns + 1), dtype=torch.int64, device=device)
        # what the device has, by column and by row
        self.addresses, self.entries = None, [None] * len(sizes)

    def find(self, columns, addresses):
        """Bring the rows up to date: one copy of those that changed, none if none did.

        Args:
            columns: lists with one tensor per parameter.
            addresses: of these, and the lists of integers that end the rows.
        """
        if addresses == self.addresses:
            return
        known, more = addresses[: len(columns)], addresses[len(columns) :]
        entries = list(zip(*known, self.sizes, *more, strict=True))
        pairs = enumerate(zip(entries, self.entries, strict=True))
        changed = [i for i, (new, old) in pairs if new != old]
        for column in columns:
            _check([column[i] for i in changed], self.device)
        # what lies between two of them is written again: a second copy costs more than its bytes
        rows = range(changed[0], changed[-1] + 1)
        values = array("q", chain.from_iterable(entries[rows.start : rows.stop]))
        upload(values, self.rows[rows.start : rows.stop])
        self.addresses, self.entries = addresses, entries


class Kept(NamedTuple):
    """What a memo keeps for parameters of some sizes on one stream."""

    chunks: torch.Tensor
    tables: dict  # key -> tables, of which calls write the last one, unless it is frozen


def lookup(memo, key, columns, block, sizes=None, more=()):
    """The table of some tensors, from the memo or new.

    Args:
        memo: the back end's, or None.
        key: tells apart the tables of different columns.
        columns: lists with one tensor per parameter, all dense and in one order.
        block: elements of a chunk.
        sizes: what is cut into chunks, if not the elements of the first column.
        more: lists with one integer per parameter, for the ends of its row.
    """
    device = columns[0][0].device
    sizes = sizes or tuple(map(torch.Tensor.numel, columns[0]))
    addresses = [*(list(map(torch.Tensor.data_ptr, column)) for column in columns), *more]
    # kernels that read other columns of the same parameters have the same chunks
    streams = {} if memo is None else memo.setdefault(("tables", block, sizes), {})
    stream = stream_of(device)
    if capture.capturing(device.type):
        found = _frozen(streams, key, addresses)
        if found is not None:
            return found
        # one that nobody else knows, with the chunks of any: these are never written again
        chunks = next((kept.chunks for kept in streams.values()), None)
        streams = {} if chunks is None else {stream: Kept(chunks, {})}
    if stream not in streams:
        streams[stream] = Kept(_chunks(sizes, block, device), {})
    chunks, tables = streams[stream]
    tables = tables.setdefault(key, [])
    if not tables or (tables[-1].frozen and tables[-1].addresses != addresses):
        tables.append(Table(chunks, sizes, len(addresses), device))
    tables[-1].find(columns, addresses)
    return tables[-1]


def _frozen(streams, key, addresses):
    """A table with such addresses, whatever stream it was made on, frozen for a graph; or None.

    The capture comes after what was launched before it, as the parameters want it.
    """
    for kept in streams.values():
        for table in kept.tables.get(key, ()):
            if table.addresses == addresses:
                table.frozen = True
                return table
    return None


def stream_of(device):
    """The current stream of a device, for a memo."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def firsts(sizes, block):
    """The number of each parameter's first chunk; at the end, that of all chunks."""
    return list(accumulate((-(-size // block) for size in sizes), initial=0))


def _chunks(sizes, block, device):
    first = firsts(sizes, block)
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
