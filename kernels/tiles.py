# SPDX-License-Identifier: MIT
"""Configurations of the product kernels: a table of tiles, and a row for whatever is not in it.

``tiles.json`` is the table: a list of rows, each an object with the fields of ``Tile`` and

    arch    "sm_90", "gfx942", ...          bytes   of an element: 2, 4 or 8
    kind    "symmetric" or "product"

Rows of one arch, bytes and kind stand in order of preference, larger tiles first: the first one
whose wishes (``programs``, ``terms``) a product meets is taken. The last has none. All have the
same depth, and so add up in the same order: which one is taken changes no bit. Those of
sm_90 are from timings on an H200 (``bench/NOTES.md``); the others were chosen from what kernels
compile to (matrix instructions, no spills, shared memory), and their wishes from how many programs
run at once. ``write`` takes what a GPU has measured.
"""

import functools
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch

from .rounding import INTERPRETED


class Tile(NamedTuple):
    """How a result is cut, what a program is made of, and which products it is for."""

    rows: int  # of the result; these three are powers of two
    columns: int
    depth: int  # of the factors, per iteration
    group: int  # rows of tiles that are computed together, for the cache
    warps: int
    stages: int  # iterations whose loads are in flight
    programs: float = 0.0  # for each multiprocessor: with fewer, some would have nothing to do
    terms: int = 0  # of a sum: with fewer, a program begins and ends for too much of its time


FILE = Path(__file__).with_name("tiles.json")

# kind -> tiles of a result (m, n)
COUNTS = {
    "symmetric": lambda m, n: m * (m + 1) // 2,
    "product": lambda m, n: m * n,
}
# what has no row, by bytes of an element: exact products of float32 do not use tensor cores, and
# where rows begin at any address a load is one element, and its address takes registers
FALLBACK = {
    2: Tile(64, 64, 32, 8, 4, 3),
    4: Tile(64, 64, 16, 8, 4, 3),
    8: Tile(32, 32, 16, 8, 4, 2),
}
# the interpreter takes its time for operations, not for elements
INTERPRETER = Tile(32, 32, 32, 2, 4, 1)
# multiprocessors of the usual board, where kernels are compiled for one that is not here
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}


def tile_for(arch, dtype, kind, shape, device, aligned=True):
    """The configuration for a product of a batch.

    Args:
        arch: "sm_90", "gfx942", ...; None where kernels are interpreted.
        dtype: of the operands.
        kind: "symmetric" or "product".
        shape: (batch, m, k, n) for products of (m, k) and (k, n).
        device: of the operands.
        aligned: whether all rows (or columns) of the operands begin at multiples of 16 elements.
    """
    if arch is None:
        return INTERPRETER
    rows = TABLE.get((arch, dtype.itemsize, kind)) if aligned else None
    if rows is None:
        return FALLBACK[dtype.itemsize]
    batch, m, k, n = shape
    processors = processors_of(arch, device)

    def suits(tile):
        return k >= tile.terms and programs(tile, kind, batch, m, n) >= tile.programs * processors

    return next(filter(suits, rows))


def programs(tile, kind, batch, m, n):
    """How many tiles the results (m, n) of a batch have."""
    return batch * COUNTS[kind](math.ceil(m / tile.rows), math.ceil(n / tile.columns))


@functools.cache
def arch_of(device):
    """The name of a device's architecture in the table; None where kernels are interpreted."""
    if INTERPRETED or device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    hip = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    return hip.partition(":")[0] or f"sm_{properties.major}{properties.minor}"


@functools.cache
def processors_of(arch, device):
    """How many multiprocessors a device has; if it is no GPU, the usual board of ``arch``."""
    if device.type != "cuda":
        return PROCESSORS[arch]
    return torch.cuda.get_device_properties(device).multi_processor_count


# ---- the file -----------------------------------------------------------------------------------


def read(file=FILE):
    """The table in a file: (arch, bytes, kind) -> tiles, in order of preference.

    Raises:
        ValueError: a row lacks a field or has another one, or ``checked`` refuses the table.
    """
    table = {}
    for number, row in enumerate(json.loads(Path(file).read_text()), 1):
        expected = ["arch", "bytes", "kind", *Tile._fields]
        if not isinstance(row, dict) or sorted(row) != sorted(expected):
            raise ValueError(f"{file}, row {number} must be an object with {expected}, got {row}")
        *key, rest = *(row.pop(name) for name in expected[:3]), row
        table.setdefault(tuple(key), []).append(Tile(**rest))
    try:
        return checked(table)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def write(changes, file=FILE):
    """Replace rows of a file; processes that start afterwards use the new ones.

    Args:
        changes: (arch, bytes, kind) -> tiles, in order of preference. What the file has of other
            keys stays.
        file: of the format above; the package's own by default.

    Raises:
        ValueError: ``checked`` refuses the changes, or the file was not valid; it stays as it was.
    """
    table = {**read(file), **checked(changes)}
    rows = [
        json.dumps({**dict(zip(("arch", "bytes", "kind"), key, strict=True)), **tile._asdict()})
        for key, tiles in table.items()
        for tile in tiles
    ]
    new = Path(f"{file}.new")
    new.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    # whoever reads finds the old file or the new one
    os.replace(new, file)


# what a field must be, and whether a value is; True is no number
VALUES = {
    "a power of two": lambda v: type(v) is int and v.bit_count() == 1,
    "a whole number": lambda v: type(v) is int,
    "a finite number": lambda v: type(v) in (int, float) and math.isfinite(v),
}
# field -> what it must be, and from where to where
_SIDE = "a power of two", 16, 256
FIELDS = {
    **dict.fromkeys(("rows", "columns", "depth"), _SIDE),
    "group": ("a whole number", 1, math.inf),
    "warps": ("a power of two", 1, 16),
    "stages": ("a whole number", 1, 8),
    "programs": ("a finite number", 0, math.inf),
    "terms": ("a whole number", 0, math.inf),
}
KEYS = {
    "arch": ('the name of an architecture, as "sm_90"', lambda v: isinstance(v, str) and v != ""),
    "bytes": (f"one of {[*FALLBACK]}", lambda v: v in [*FALLBACK]),
    "kind": (f"one of {[*COUNTS]}", lambda v: v in [*COUNTS]),
}


def checked(table):
    """A table, with tuples of tiles.

    Args:
        table: (arch, bytes, kind) -> tiles, in order of preference.

    Raises:
        ValueError: a key or a field is not valid, a symmetric tile is not square, depths differ, or
            it is not the last tile, and that alone, that suits every product.
    """
    for key, tiles in table.items():
        for (name, (must, valid)), value in zip(KEYS.items(), key, strict=True):
            if not valid(value):
                raise ValueError(f"{name} must be {must}, got {value!r}")
        for number, tile in enumerate(tiles, 1):
            where = f"tile {number} of {', '.join(map(str, key))}"
            for name, (must, least, most) in FIELDS.items():
                value = getattr(tile, name)
                if not (VALUES[must](value) and least <= value <= most):
                    bounds = (
                        f" from {least} to {most}" if most < math.inf else f", at least {least}"
                    )
                    raise ValueError(f"{where}: {name} must be {must}{bounds}, got {value!r}")
            alike = {"depth": (tiles[0].depth, "as that of the first, for sums in one order")}
            if key[2] == "symmetric":
                alike["columns"] = tile.rows, "as rows, for the diagonal"
            for name, (must, why) in alike.items():
                if getattr(tile, name) != must:
                    raise ValueError(
                        f"{where}: {name} must be {must} {why}, got {getattr(tile, name)}"
                    )
            last = number == len(tiles)
            if (tile.programs == tile.terms == 0) != last:
                must = "be 0 in the last tile" if last else "not both be 0 before the last tile"
                raise ValueError(f"{where}: programs and terms must {must}")
        if not tiles:
            raise ValueError(f"{', '.join(map(str, key))} must have a tile")
    return {key: tuple(tiles) for key, tiles in table.items()}


TABLE = read()
