# SPDX-License-Identifier: MIT
"""How kernels are launched: over the chunks of a table of columns of tensors.

A step is much the same as the one before: then no tensor is looked at but to see that it is, and
where it lies. Kept are a few integers of each tensor, and none of these itself.
"""

from array import array
from typing import Any, NamedTuple

import torch
import triton.language as tl

from ..backends import capture
from ..backends.guards import Layout
from ..backends.upload import upload
from . import table
from .calls import call
from .rounding import INTERPRETED

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
# without contraction to fused multiply-adds rules round as in the other back ends, and a base has
# the same bits whatever lookahead it is paired with; memory, not arithmetic, takes the time
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
if torch.version.hip is None:
    # of a thread, far above what is needed: ptxas, left to itself, spills an address of one kernel
    # to have the room for another program, which nobody asked for
    OPTIONS["maxnreg"] = 128


class Launch(NamedTuple):
    """A launch that is ready, to be called."""

    kernel: Any
    programs: int
    device: torch.device
    arguments: tuple
    constants: dict

    def __call__(self):
        """Run the kernel, unless it has nothing to do."""
        if self.programs:
            call(self.kernel, self.programs, self.device, self.arguments, self.constants, OPTIONS)


class Prepared(NamedTuple):
    """What a launch over columns of tensors needs of these."""

    kernel: Any
    dtype: torch.dtype  # of the arithmetic
    constants: dict
    tables: table.Tables
    entries: array  # of the table

    def moved(self, addresses):
        """The same for tensors that lie elsewhere: bytes of their addresses, column by column."""
        addresses, width = array("q", addresses), self.tables.width
        count = len(self.entries) // width
        columns = [addresses[k : k + count] for k in range(0, len(addresses), count)]
        return self._replace(entries=table.placed(self.entries, width, 2, columns))

    def launch(self, numbers, others):
        """The launch.

        Args:
            numbers: as a back end gets them; None if the kernel takes none.
            others: the kernel's remaining arguments.
        """
        chunks, constants = self.tables.chunks, self.constants
        if numbers is not None:
            numbers = given(numbers, self.dtype, chunks.device)
            constants = {**constants, "LOADED": isinstance(numbers, torch.Tensor)}
            others = (numbers, *others)
        arguments = chunks, self.tables.find(self.entries), *others
        return Launch(self.kernel, len(chunks), chunks.device, arguments, constants)


def prepare(kernel, key, of, sizes, columns, more, dtype, memo, constants, block):
    """What launches over columns of tensors need of these, one for each set of dtypes.

    Args:
        kernel, constants: what to run, and what it is compiled for.
        key: for the memo.
        of: those lists, with one tensor per parameter, whose dtypes may differ.
        sizes, columns, more: as in ``table.lookup``.
        dtype: of the arithmetic.
        memo: the back end's.
        block: elements of a chunk.
    """
    found = []
    for its, same in by_dtypes(*of).items():
        some, its_more = (
            [[column[i] for i in same] for column in each] for each in (columns, more)
        )
        its_sizes = tuple([sizes[i] for i in same])
        dtypes = [column[0].dtype for column in some]
        check(some[0][0].device, dtypes[0])
        its_constants = {**constants, **tensor_constants(dtypes, dtype, block)}
        tables = table.lookup(memo, (*key, its), its_sizes, some, its_more, block)
        found.append(Prepared(kernel, dtype, its_constants, *tables))
    return found


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
    # a graph has tables that are kept for it alone
    if memo is None or not columns[0] or capture.capturing(columns[0][0].device.type):
        return make()[0]
    where = "known", key, table.stream_of(columns[0][0].device)
    known = memo.get(where)
    if known is not None and known.begins == begins:
        addresses = known.layout.find(columns)
        if addresses is not None and addresses is known.addresses:
            return known.prepared
        # several have some of the tensors each
        if addresses is not None and len(known.prepared) == 1:
            moved = [known.prepared[0].moved(addresses)]
            memo[where] = known._replace(addresses=addresses, prepared=moved)
            return moved
    found, kept = make()
    if kept and Layout is not None:
        layout = Layout(columns)
        memo[where] = Known(layout, layout.find(columns), begins, found)
    return found


def tensor_constants(dtypes, dtype, block):
    """What a kernel is compiled for, of the columns' dtypes and the arithmetic's."""
    return {
        "TYPES": tuple(TYPES[d] for d in dtypes),
        "VECTOR": 16 // max(d.itemsize for d in dtypes),
        "DTYPE": TYPES[dtype],
        "BLOCK": block,
    }


def given(numbers, dtype, device):
    """Numbers as a kernel takes them: a tuple of floats, or a vector on the device."""
    if isinstance(numbers, torch.Tensor):
        return numbers.to(device).contiguous()
    # an integer would be an int32, or a constant; a tuple should not be empty
    floats = tuple(map(float, numbers)) or (0.0,)
    if dtype == torch.float32:
        return floats
    # as an argument it would be a float32
    vector = torch.empty(len(floats), dtype=dtype, device=device)
    upload(array("d", floats), vector)
    return vector


def by_dtypes(*columns):
    """The dtypes of some tensors, a tuple of those of each column, and which tensors have them."""
    found = {}
    for i, each in enumerate(zip(*columns, strict=True)):
        found.setdefault(tuple([t.dtype for t in each]), []).append(i)
    return found


def check(device, dtype):
    """Raise RuntimeError unless there are kernels for a dtype on a device, as things are."""
    if INTERPRETED and device.type != "cpu":
        raise RuntimeError(
            f"TRITON_INTERPRET is set: backend='triton' then serves CPU tensors, got {device.type}"
        )
    if not INTERPRETED and device.type == "cpu":
        raise RuntimeError(
            "backend='triton' serves CPU tensors only if TRITON_INTERPRET=1 is set before Triton "
            "is imported"
        )
    if dtype not in TYPES:
        raise RuntimeError(f"backend='triton' has no kernel for parameters of {dtype}")
