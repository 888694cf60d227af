# SPDX-License-Identifier: MIT
"""What is assumed of machines and of how steps run, from which ``bench/predict.py`` predicts times.

Estimates, each from a source that ``bench/NOTES.md`` names; a measurement replaces them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from . import orthogonal as o
from . import peers as p


class Machine(NamedTuple):
    """Rates that were measured or are known of a machine, in bytes and operations per second."""

    name: str  # a part of what torch calls it
    copy: float  # read and written
    dense: float  # cuBLAS, float16 and bfloat16, random data


MACHINES = (Machine("H100", 3.0e12, 700e12), Machine("H200", 4.3e12, 765e12))
UNITS = 132  # multiprocessors
GAP = 1.5e-6  # seconds between two kernels in a queue or a graph
LAUNCH = 5e-6  # seconds of the host for a kernel that torch launches


class Pass(NamedTuple):
    """How an elementwise step runs: its bytes are those of ``Variant.traffic``."""

    share: float  # of the copy rate
    launches: Callable[[int, int], int]  # (tensors, parameters) -> count
    host: Callable[[int], float]  # tensors -> seconds
    last: bool = False  # one kernel at the end of the host's part does nearly all


def _chunks(tensors, parameters):
    """Launches of torch's multi-tensor kernels: 36 tensors or 320 chunks of 65,536 each."""
    return max(math.ceil(tensors / 36), math.ceil(parameters / 65536 / 320))


# our host's part as measured with a driver that launches nothing, for a CPU 1.8 times as fast
_OURS = Pass(0.92, lambda n, size: 1, lambda n: 110e-6 + 1.95e-6 * n, True)
_FUSED = Pass(0.80, _chunks, lambda n: 50e-6 + 3.1e-6 * n)
_FLAT = Pass(0.93, lambda n, size: 9, lambda n: 0.12e-3, True)


def _around(inner, launches):
    """What adds launches for each tensor to another optimizer, at nearly the same share."""
    return Pass(
        0.84,
        lambda n, size: launches * n + inner.launches(n, size),
        lambda n: inner.host(n) + LAUNCH * launches * n,
    )


_NOTHING = Pass(1.0, lambda n, size: 0, lambda n: 0.0)
_FOREACH = Pass(0.85, lambda n, size: 9 * _chunks(n, size), lambda n: 6.5e-6 * n)
PASSES = {
    p.OURS: _OURS,
    p.OURS_ALONE: _OURS._replace(host=lambda n: 90e-6 + 1.7e-6 * n),
    p.OURS_WRAP: _OURS,
    p.FUSED: _FUSED,
    p.FOREACH: _FOREACH,
    p.COMPILED: _FLAT,
    p.COMPILED_ALONE: _FLAT,
    p.TWO_PHASE: _around(_FUSED, 4),
    p.TWO_PHASE_FOREACH: _around(_FOREACH, 4),
    p.TWO_PHASE_16: _around(_FUSED, 4),
    p.TWO_PHASE_MASTER: _around(_FUSED, 4),
    p.TWO_PHASE_IDLE: _around(_NOTHING, 4),
}


class Products(NamedTuple):
    """How an iteration runs: kernels as (rows, columns, share of the dense rate) of their tiles."""

    form: str | None  # None: the cheaper one
    symmetric: tuple  # for X X^T and products of symmetric matrices
    wide: tuple  # for A X
    half: bool  # whether symmetric products take half of their tiles
    bytes: float  # per entry, outside of products
    copies: bool  # whether an added matrix is copied first, as torch.baddbmm does on CUDA
    launches: int = 0  # more than the products, a stack
    host: float = 0.0  # seconds of the host per stack


_CUBLAS = ((128, 256, 1.0), (128, 128, 0.92), (64, 128, 0.75))
_TRITON = ((128, 128, 0.70), (64, 64, 0.43))
_WIDE = ((128, 256, 0.78), (128, 128, 0.70), (64, 128, 0.56), (64, 64, 0.43))
_POINTERS, _DESCRIPTORS = ((128, 128, 0.65), (64, 64, 0.40)), ((128, 128, 0.75), (64, 64, 0.45))
_TORCH = Products("standard", _CUBLAS, _CUBLAS, False, 24, True, 5, 0.10e-3)
_MINE = Products(None, _TRITON, _WIDE, True, 16, False, 8, 0.30e-3)
FORMS = {
    o.OURS_NS: _MINE,
    o.PLAIN_16: _TORCH,
    o.PLAIN_B16: _TORCH,
    o.COMPILED_16: _TORCH._replace(bytes=14, launches=2),
    o.GRAM_16: _TORCH._replace(form="gram"),
    o.DION: _TORCH._replace(symmetric=_POINTERS, half=True, host=0.7e-3),
    o.EMERGING: _TORCH._replace(symmetric=_DESCRIPTORS, half=True, host=0.4e-3),
    o.GRAM_NEWTON_SCHULZ: Products("gram", ((128, 256, 0.88),), _CUBLAS, True, 14, False, 7, 1e-3),
}


class Muon(NamedTuple):
    """How a Muon step runs: an iteration, stacked by shape or not, and what is around it."""

    products: Products
    stacked: bool
    bytes: float  # per entry of a matrix, outside of the iteration
    host: float  # seconds of the host, and per matrix
    each: float
    others: str | None = None  # the variant that steps what is no matrix
    lookahead: float = 0.0  # bytes per parameter, with launches of their own ...
    launches: int = 0  # ... for each tensor


_OURS_MUON = Muon(_MINE._replace(bytes=0, launches=2), True, 38, 0.9e-3, 18e-6)
_ALONE = _OURS_MUON._replace(bytes=30)
_TORCH_MUON = Muon(_TORCH._replace(bytes=0, launches=18), False, 74, 0.0, 190e-6)
_STACKED = Muon(_TORCH._replace(bytes=0, launches=12), True, 74, 1.3e-3, 15e-6)
MUONS = {
    o.OURS_MUON: _OURS_MUON,
    o.OURS_MUON_ALONE: _ALONE,
    o.TORCH_MUON: _TORCH_MUON,
    o.PYTORCH_OPTIMIZER_MUON: _STACKED,
    o.PYTORCH_OPTIMIZER_GRAM_MUON: _STACKED._replace(
        products=_STACKED.products._replace(form="gram")
    ),
    o.OURS_MIXED: _OURS_MUON._replace(others=p.OURS),
    o.OURS_MIXED_ALONE: _ALONE._replace(others=p.OURS_ALONE),
    o.TWO_PHASE_MIXED: _TORCH_MUON._replace(others=p.FUSED, lookahead=44, launches=4),
}
