"""How kernels are launched: over the chunks of a table of columns of tensors."""

import contextlib
from array import array
from typing import Any, NamedTuple

import torch
import triton.language as tl

from ..backends.layout import flat
from ..backends.upload import upload
from .calls import call
from .rounding import INTERPRETED
from .table import lookup

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
    programs: int
    dtype: torch.dtype  # of the arithmetic
    constants: dict
    table: Any = None  # None: there are no tensors
    addresses: list | None = None  # which the table had

    def current(self):
        """Whether the table still has the addresses."""
        return self.table is None or self.table.addresses is self.addresses

    def launch(self, numbers, others):
        """The launch.

        Args:
            numbers: as a back end gets them; None if the kernel takes none.
            others: the kernel's remaining arguments.
        """
        if self.table is None:
            return Launch(self.kernel, 0, torch.device("cpu"), (), {})
        device, constants = self.table.device, self.constants
        if numbers is not None:
            numbers = given(numbers, self.dtype, device)
            constants = {**constants, "LOADED": isinstance(numbers, torch.Tensor)}
            others = (numbers, *others)
        arguments = self.table.chunks, self.table.rows, *others
        return Launch(self.kernel, self.programs, device, arguments, constants)


def prepare(kernel, key, columns, dtype, memo, constants, block, sizes=None, more=()):
    """What a launch over columns of tensors needs of these.

    Args:
        kernel, constants: what to run, and what it is compiled for.
        key: for the memo.
        columns: dense tensors, of one dtype in each column.
        dtype: of the arithmetic.
        memo: the back end's.
        block: elements of a chunk.
        sizes, more: as in ``table.lookup``.
    """
    if not columns[0]:
        return Prepared(kernel, 0, dtype, {})
    dtypes = [column[0].dtype for column in columns]
    check(columns[0][0].device, dtypes[0])
    table = lookup(memo, key, columns, block, sizes, more)
    constants = {**constants, **tensor_constants(dtypes, dtype, block)}
    return Prepared(kernel, len(table.chunks), dtype, constants, table, table.addresses)


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


def laid_out(ys, inputs, columns, dtype, writes_inputs=False):
    """``flat``, without its look at every tensor's strides in the usual case."""
    if {t.dtype for t in inputs} <= TYPES.keys() and as_they_are((ys, inputs), columns, dtype):
        return contextlib.nullcontext((ys, inputs, columns))
    return flat(ys, inputs, columns, dtype, writes_inputs)


def as_they_are(given, columns, dtype):
    """Whether tensors are contiguous, with no negation pending, and those of columns of a dtype."""
    every = [t for column in (*given, *columns) for t in column]
    return (
        all(map(torch.Tensor.is_contiguous, every))
        and not any(map(torch.Tensor.is_neg, every))
        and all(t.dtype == dtype for column in columns for t in column)
    )


def by_dtype(tensors, columns, more=()):
    """For each dtype among some tensors: it, and the columns and integers of those parameters."""
    dtypes = [t.dtype for t in tensors]
    found = dict.fromkeys(dtypes)
    if len(found) == 1:
        yield dtypes[0], columns, more
        return
    for dtype in found:
        same = [i for i, d in enumerate(dtypes) if d == dtype]
        yield dtype, *([[column[i] for i in same] for column in each] for each in (columns, more))


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
