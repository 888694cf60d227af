# SPDX-License-Identifier: MIT
"""Which tiles the products of Newton-Schulz should be cut into: all of them timed, a new table.

Leaves ``tiles.json`` in the form of ``kernels/tiles.json``, which it can replace.
"""

import contextlib
import itertools
import shutil

import torch

from emanest import backends
from emanest.kernels import newton_schulz, tiles
from emanest.kernels.tiles import Tile

from . import Found
from .ceilings import seconds

# (batch, n, m), most wanted first
SHAPES = (
    *((48, 768, 768), (12, 768, 768), (24, 768, 3072), (24, 2048, 8192), (1, 2048, 8192)),
    *((1, 4096, 4096), (1, 4096, 11008)),
)
SMALL = ((2, 64, 128), (1, 128, 128))
# beside those of the table
CANDIDATES = {
    "symmetric": (
        Tile(128, 128, 64, 8, 8, 4),
        Tile(128, 128, 64, 8, 4, 3),
        Tile(64, 64, 64, 8, 4, 3),
    ),
    "product": (
        Tile(128, 256, 64, 8, 8, 4),
        Tile(256, 128, 64, 8, 8, 3),
        Tile(128, 128, 64, 8, 8, 4),
        Tile(64, 128, 64, 8, 4, 3),
    ),
}
# name -> kind of tiles, (namespace, x, r) -> result, torch's own, multiplications of a matrix
PRODUCTS = {
    "sym_mm": (
        "symmetric",
        lambda products, x, r: products.sym_mm(x),
        lambda x, r: torch.bmm(x, x.mT),
        lambda n, m: n * n * m / 2,
    ),
    "sym_baddbmm": (
        "symmetric",
        lambda products, x, r: products.sym_baddbmm(r, r, r, 0.5, 0.25),
        lambda x, r: torch.baddbmm(r, r, r, beta=0.5, alpha=0.25),
        lambda n, m: n * n * n / 2,
    ),
    "mm_add": (
        "product",
        lambda products, x, r: products.mm_add(x, r, 0.5, 0.25),
        lambda x, r: torch.baddbmm(x, r, x, beta=0.5, alpha=0.25),
        lambda n, m: n * n * m,
    ),
}
# of float16, relative to the largest entry
BOUND = 4e-3
# of the time of the best tile, that a table may lose
SLACK = 1.02


@contextlib.contextmanager
def forced(tile):
    """All products are cut into this one."""
    usual = newton_schulz.tile_for
    newton_schulz.tile_for = lambda *args: tile
    newton_schulz.forget()
    try:
        yield
    finally:
        newton_schulz.tile_for = usual
        newton_schulz.forget()


def candidates(arch, kind):
    """All tiles that are compared."""
    return [*tiles.TABLE[arch, 2, kind], *CANDIDATES[kind]]


def run(settings):
    shapes = SMALL if settings.small else SHAPES
    arch = newton_schulz.arch_of(torch.device("cuda", 0))
    processors = tiles.processors_of(arch, torch.device("cuda", 0))
    data, lines, wrong = [], [], []
    products = list(itertools.product(shapes, PRODUCTS))
    for shape, name in products[: 1 if settings.brief else None]:
        found, theirs = compared(arch, shape, name, settings, wrong)
        data += found
        if not found:
            continue
        best = min(found, key=lambda row: row["seconds"])
        usual = found[0]
        lines.append(
            f"{name} {shape}: {shown(usual)}; best {'x'.join(map(str, best['tile'][:6]))} "
            f"{shown(best)}; torch {theirs * 1e6:.0f} us"
        )
    kinds = {row["kind"]: [r for r in data if r["kind"] == row["kind"]] for row in data}
    changes = {(arch, 2, kind): fitted(rows, processors) for kind, rows in kinds.items()}
    target = settings.out / "tiles.json"
    shutil.copy(tiles.FILE, target)
    tiles.write(changes, target)
    lines = [f"wrong: {each}" for each in wrong] + lines
    return Found(lines, {"rows": data}, not wrong)


def shown(row):
    return f"{row['seconds'] * 1e6:.0f} us, {row['tflops']:.0f} TFLOP/s"


def compared(arch, shape, name, settings, wrong):
    """Every tile for a product: rows, of which the first is the table's choice; torch's seconds."""
    kind, ours, theirs, multiplications = PRODUCTS[name]
    batch, n, m = shape
    x = torch.randn(shape, device="cuda").div_(m**0.5).half()
    r = torch.bmm(x, x.mT)
    expected = theirs(x[-1:].double(), r[-1:].double())
    products = backends.pick("cuda").products("cuda")
    m_, k = (n, m) if name == "sym_mm" else (m, n) if name == "mm_add" else (n, n)
    usual = tiles.tile_for(arch, x.dtype, kind, (batch, n, k, m_), x.device)
    others = tiles.TABLE[arch, 2, kind] if settings.brief else candidates(arch, kind)
    found, first = [], None
    for tile in dict.fromkeys(Tile(*tile[:6]) for tile in (usual, *others)):
        try:
            with forced(tile):
                out = ours(products, x, r)
                time = seconds(lambda: ours(products, x, r), 3 if settings.small else 15)
        except Exception as failure:
            # of resources, say: the others are of use without it
            wrong.append(f"{name} {shape} {tile[:6]}: {type(failure).__name__}: {failure}")
            continue
        error = float((out[-1:].double() - expected).abs().max() / expected.abs().max())
        first = out if first is None else first
        same = torch.equal(out, first)
        if not (error <= BOUND and same):
            wrong.append(f"{name} {shape} {tile[:6]}: error {error:.1e}, same bits: {same}")
            continue
        flops = 2 * batch * multiplications(n, m)
        found.append(
            {
                **{"kind": kind, "product": name, "shape": shape, "tile": tile, "seconds": time},
                **{"tflops": flops / max(time, 1e-9) / 1e12, "error": error},
                **{"programs": tiles.programs(tile, kind, batch, n, m_), "terms": k},
            }
        )
        print(found[-1], flush=True)
    return found, seconds(lambda: theirs(x, r), 3 if settings.small else 15)


def fitted(rows, processors):
    """Tiles in order of preference, the largest first, with the programs that they want.

    Each wants so many that, with as many or more, it was nowhere slower than the best by more than
    ``SLACK``; one that is nowhere among the best is left out. The last is the best of them for all
    that is left; if nothing is, the smallest, for what has fewer programs than all that was timed.
    """
    cases = {}
    for row in rows:
        cases.setdefault((row["product"], tuple(row["shape"])), {})[Tile(*row["tile"])] = row
    left, chosen = dict(cases), []
    sizes = sorted({tile for each in cases.values() for tile in each}, key=_order)
    for tile in sizes:
        mine = [(each[tile]["programs"], case) for case, each in left.items() if tile in each]
        slow = [count for count, case in mine if not _is_good(tile, left[case])]
        good = [(count, case) for count, case in mine if count > max(slow, default=0)]
        if good:
            chosen.append(tile._replace(programs=min(good)[0] / processors, terms=0))
            for _, case in good:
                del left[case]
    if left:
        common = set.intersection(*(set(each) for each in left.values())) or sizes
    else:
        left, least = cases, min(tile.rows * tile.columns for tile in sizes)
        common = [tile for tile in sizes if tile.rows * tile.columns == least]
    last = min(common, key=lambda tile: _slowness(tile, left))._replace(programs=0.0, terms=0)
    if chosen and chosen[-1][:6] == last[:6]:
        chosen.pop()
    return [*chosen, last]


def _slowness(tile, cases):
    """In how many cases a tile failed, and its times over the best ones in the others, added up."""
    there = [each for each in cases.values() if tile in each]
    times = (each[tile]["seconds"] / _best(each.values()) for each in there)
    return len(cases) - len(there), sum(times)


def _order(tile):
    return (-tile.rows * tile.columns, *tile)


def _best(rows):
    return min(row["seconds"] for row in rows)


def _is_good(tile, rows):
    return rows[tile]["seconds"] <= SLACK * _best(rows.values())
