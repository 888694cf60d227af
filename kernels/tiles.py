"""Configurations of the product kernels: one table, with a row for whatever is not in it."""

from typing import NamedTuple

class Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    group: int
    warps: int
    stages: int
def tile_for(*a): pass
