"""The C++ back end: one pass over a bucket, for tensors on the CPU.

``eager`` documents the functions. Where tensors differ in memory order or format, so that one index
does not serve them all, they are copied first (``layout.flat``).
"""

import torch

from .eager import plan_ as plan_
from .layout import NATIVE, flat

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"the extension is not built ({error}); `pip install --no-build-isolation .` builds it and "
        "needs pybind11 and ninja (the `build` extra)"
    ) from error

DEVICES = ("cpu",)


def step_(base, look, ys, gs, base_state, look_state, numbers, dtype, skip=None, memo=None):
    """Advance parameters by one step, in place."""
    split = len(base_state)
    given = _floats(numbers), dtype == torch.float64

    def work(ys, gs, columns):
        return _C.step_(base, look, ys, gs, columns[:split], columns[split:], *given)

    if not _skipped(skip):
        _run(work, ys, gs, [*base_state, *look_state], dtype)


def follow_(look, ys, snapshots, look_state, numbers, dtype, skip=None, memo=None):
    """Apply a lookahead rule to what another optimizer did, in place."""
    given = _floats(numbers), dtype == torch.float64

    def work(ys, snapshots, columns):
        return _C.follow_(look, ys, snapshots, columns, *given)

    if not _skipped(skip):
        _run(work, ys, snapshots, look_state, dtype, writes_beside=True)


def move_(point, ys, state, numbers, dtype, memo=None):
    """Move parameters between x and y, in place."""
    given = _floats(numbers), dtype == torch.float64

    def work(ys, _, columns):
        return _C.move_(point, ys, columns, *given)

    _run(work, ys, [], state, dtype)


def nonfinite(gs, memo=None):
    """Whether any value is NaN or infinite: 1 or 0, as a 1-element float32 tensor."""
    found = _C.nonfinite(gs)
    if found is None:
        natives = [g if g.dtype in NATIVE else g.float() for g in gs]
        found = _C.nonfinite([g.contiguous() for g in natives])
    return torch.tensor([float(bool(found))])


def _run(work, ys, beside, columns, dtype, writes_beside=False):
    if not work(ys, beside, columns):
        with flat(ys, beside, columns, dtype, writes_beside) as tensors:
            if not work(*tensors):
                raise RuntimeError(f"no C++ loop for parameters of {ys[0].dtype}")


def _floats(numbers):
    return numbers.tolist() if isinstance(numbers, torch.Tensor) else numbers


def _skipped(skip):
    return skip is not None and skip.item() != 0
