"""Where a kernel finds the tensors of a bucket.

Two levels: ``chunks`` says which part of which parameter each program takes and depends on sizes
alone; ``rows`` has the addresses, and changes with them. A back end keeps both in the memo that it
is handed.
"""

from array import array
from itertools import accumulate, chain

import torch

from .. import storage


class Table:
    """The two tensors that a kernel reads.

    Attributes:
        chunks: (n, 2) int32: a row, and which of its parameter's blocks.
        rows: (parameters, columns + 1 + more) int64: the address in each column, the size, and
            what else kernels want to know.
    """

    def __init__(self, chunks, sizes, columns, device):
        self.chunks, self.sizes, self.device = chunks, sizes, device
        self.rows = torch.empty((len(sizes), columns + 1), dtype=torch.int64, device=device)
        # what the device has, by column and by row
        self.addresses, self.entries = None, [None] * len(sizes)

    def find(self, columns, keep, more=()):
        """Bring the rows up to date: one copy of those that changed, none if none did."""
        addresses = [list(map(torch.Tensor.data_ptr, column)) for column in columns]
        addresses += more
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
        values = torch.frombuffer(values, dtype=torch.int64).view(len(rows), -1)
        upload(values, self.rows[rows.start : rows.stop], keep)
        self.addresses, self.entries = addresses, entries


def upload(values, to, keep):
    """Copy a CPU tensor to the device without waiting for the copy.

    The pinned block is a fresh one every time: one that was used before may only be written once
    its copy is done, and the allocator of pinned memory, which knows when that is, hands a block
    out again only then.

    Args:
        values: a CPU tensor, not written afterwards.
        to: a tensor of the same shape and dtype.
        keep: None, or a list for memory that must live on: during a capture, where a copy is
            repeated at every replay. Pinned memory cannot be asked for there, nor is it needed.
    """
    if keep is not None:
        keep.append(values)
    elif to.device.type == "cuda":
        values = values.pin_memory()
    to.copy_(values, non_blocking=True)


def place(memo, device):
    """Where to keep tables: the memo, or for a graph that is being captured a part of its own.

    What is copied during a capture reaches the device only when the graph is replayed, and again at
    every replay: no one else may use it, and it has to live as long as the memo.

    Returns:
        The dict, and ``upload``'s ``keep``.
    """
    memo = {} if memo is None else memo
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return memo, None
    own = {"blocks": []}
    memo.setdefault("graphs", []).append(own)
    return own, own["blocks"]


def lookup(memo, keep, key, columns, block, sizes=None, more=()):
    """The table of some tensors, from the memo or new.

    Args:
        memo, keep: from ``place``.
        key: tells apart the tables of different columns.
        columns: lists with one tensor per parameter, all dense and in one order.
        block: elements of a chunk.
        sizes: what is cut into chunks, if not the elements of the first column.
        more: lists with one integer per parameter, for the ends of its row.
    """
    device = columns[0][0].device
    sizes = sizes or tuple(map(torch.Tensor.numel, columns[0]))
    # kernels that read other columns of the same parameters have the same chunks
    shared = "chunks", block, sizes
    if shared not in memo:
        memo[shared] = _chunks(sizes, block, device, keep)
    table = memo.get(key)
    if table is None or table.chunks is not memo[shared]:
        table = memo[key] = Table(memo[shared], sizes, len(columns) + len(more), device)
    table.find(columns, keep, more)
    return table


def firsts(sizes, block):
    """The number of each parameter's first chunk; at the end, that of all chunks."""
    return list(accumulate((-(-size // block) for size in sizes), initial=0))


def _chunks(sizes, block, device, keep):
    # here, whatever a user's default device is
    counts = torch.tensor([-(-size // block) for size in sizes], device="cpu")
    row = torch.repeat_interleave(counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    block_of = torch.arange(len(row), device="cpu") - first
    pairs = torch.stack((row, block_of), 1).to(torch.int32)
    found = torch.empty_like(pairs, device=device)
    upload(pairs, found, keep)
    return found


def _check(tensors, device):
    for t in tensors:
        # most are plain, and cost no call; an empty one has no address either
        if type(t) is not torch.Tensor or t.data_ptr() == 0:
            storage.check("a tensor of this call", t)
        if t.device != device:
            raise RuntimeError(
                f"a parameter's gradient or state is on {t.device}, the parameter on {device}"
            )
