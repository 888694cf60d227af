"""Configurations of the product kernels: one table, and a row for whatever is not in it.

Chosen from what kernels compile to (tensor-core instructions, no spills, shared memory), not yet
from timings. ``tests/test_triton_products_compiled.py`` holds every row to that.
"""

import functools
from typing import NamedTuple

import torch

from .rounding import INTERPRETED


class Tile(NamedTuple):
    """How a result is cut, and what a program is made of."""

    rows: int
    columns: int
    depth: int  # of the factors, per iteration
    group: int  # rows of tiles that are computed together, for the cache
    warps: int
    stages: int  # iterations whose loads are in flight


# a side of the result up to which tiles must be small to keep a GPU busy
SMALL = 1024

# (architecture, bytes of an element) -> kind -> tiles of small results, and of large ones
TABLE = {
    ("sm_80", 2): {
        "symmetric": (Tile(64, 64, 64, 8, 4, 4), Tile(128, 128, 32, 8, 8, 4)),
        "product": (Tile(64, 128, 64, 8, 4, 3), Tile(128, 128, 32, 8, 8, 4)),
    },
    ("sm_90", 2): {
        "symmetric": (Tile(64, 64, 64, 8, 4, 4), Tile(128, 128, 64, 8, 8, 3)),
        "product": (Tile(64, 128, 64, 8, 4, 4), Tile(128, 128, 64, 8, 8, 3)),
    },
    ("sm_100", 2): {
        "symmetric": (Tile(128, 128, 64, 8, 4, 3), Tile(128, 128, 64, 8, 4, 3)),
        "product": (Tile(128, 128, 64, 8, 4, 3), Tile(128, 128, 64, 8, 4, 3)),
    },
    ("gfx942", 2): {
        "symmetric": (Tile(64, 64, 64, 8, 4, 2), Tile(128, 128, 32, 8, 4, 2)),
        "product": (Tile(64, 128, 64, 8, 4, 2), Tile(128, 128, 32, 8, 4, 2)),
    },
}
# others, by bytes of an element: exact products of float32 do not use tensor cores, and where rows
# begin at any address a load is one element, and its address takes registers
FALLBACK = {
    2: Tile(64, 64, 32, 8, 4, 3),
    4: Tile(64, 64, 16, 8, 4, 3),
    8: Tile(32, 32, 16, 8, 4, 2),
}
# the interpreter takes its time for operations, not for elements
INTERPRETER = Tile(32, 32, 32, 2, 4, 1)


def tile_for(arch, dtype, kind, side, aligned=True):
    """The configuration for a result whose smaller side is ``side``.

    Args:
        arch: "sm_90", "gfx942", ...; None where kernels are interpreted.
        dtype: of the operands.
        kind: "symmetric" or "product".
        side: in elements.
        aligned: whether all rows (or columns) of the operands begin at multiples of 16 elements.
    """
    if arch is None:
        return INTERPRETER
    row = TABLE.get((arch, dtype.itemsize)) if aligned else None
    return row[kind][side > SMALL] if row else FALLBACK[dtype.itemsize]


@functools.cache
def arch_of(device):
    """The name of a device's architecture in the table; None where kernels are interpreted."""
    if INTERPRETED or device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    hip = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    return hip.partition(":")[0] or f"sm_{properties.major}{properties.minor}"
