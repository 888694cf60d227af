# SPDX-License-Identifier: MIT
"""The C++ back end: one pass over all tensors of a call, on the CPU, or a GPU if built with CUDA.

``eager`` documents the functions. Where tensors differ in memory order or format, so that one index
does not serve them all, they are copied first (``layout.flat``).
"""

import functools

import torch

from ..extension.loaded import _C
from ..rules import PASSES
from . import eager
from .cpu_products import PRODUCTS as CPU_PRODUCTS
from .eager import plan_ as plan_
from .layout import NATIVE, check_squares, flat, scaled
from .per_tensor import PerTensor, joined
from .products import PRODUCTS


def apply_(
    name, rules, ys, inputs, state, numbers, dtype, skip=None, scales=(), squares=None, memo=None
):
    """Do a pass over parameters, in place."""
    pass_ = PASSES[name]
    if squares is not None:
        check_squares(squares, ys)
    if scales:
        inputs, scales = scaled(inputs, ys, scales, dtype)
    target = _target(ys, numbers, skip, memo, (name, *rules))
    run = getattr(_C, f"{name}_")
    given = rules, dtype == torch.float64, target, list(scales), squares
    if run(*given, [ys, inputs or [], *state]):
        return
    ys, inputs, state, written = flat(ys, inputs, state, dtype, "input" in pass_.writes)
    if not run(*given, [ys, inputs, *state]):
        raise RuntimeError(f"no C++ loop for parameters of {ys[0].dtype}")
    for tensor, copy in written:
        tensor.copy_(copy)


def rows_(name, os, state, scales, factors, numbers, dtype, skip=None, memo=None):
    """Find for each row of a matrix a factor that evens rows out and keeps the matrix's norm."""
    target = _target(os, numbers, skip, memo, ("rows", name))
    double = dtype == torch.float64
    if not _C.rows_((name,), double, target, scales, None, [os, [], *state, factors]):
        # of one value for each row, and in an odd format: not worth a loop of its own
        eager.rows_(name, os, state, scales, factors, numbers, dtype, skip=skip)


def products(device_type):
    """The namespace of matrix products: on a GPU torch's, which are those of cuBLAS."""
    return _PRODUCTS[device_type]


def nonfinite(gs, memo=None):
    """Whether any value is NaN or infinite: 1 or 0, as a 1-element float32 tensor on the device."""
    found = torch.zeros(1, dtype=torch.float32, device=gs[0].device)
    target = _target(gs, (), None, memo, ("nonfinite",))
    check = functools.partial(_C.nonfinite, (), False, target, [], found)
    if not check([[], gs]):
        natives = [g if g.dtype in NATIVE else g.float() for g in gs]
        # of any order: only whether a value is there matters
        check([[], [g.resolve_neg().contiguous() for g in natives]])
    return found


# ---- where a call runs --------------------------------------------------------------------------


def _target(tensors, numbers, skip, memo, key):
    """Where a call on some tensors runs."""
    device, begins = tensors[0].device, None
    if isinstance(numbers, PerTensor):
        numbers, begins = joined(numbers, tensors, torch.float64)
    where = _TARGETS[device.type](device, memo, key)
    return _C.Target(numbers, begins or [], skip, *where)


def _on_cpu(device, memo, key):
    return ()


def _on_cuda(device, memo, key):
    # on another stream a call could still read the table while this one changes it
    stream = torch.cuda.current_stream(device).cuda_stream
    tables = {} if memo is None else memo
    key = "cuda", *key, stream
    if key not in tables:
        tables[key] = _C.Tables()
    return tables[key], stream


_PRODUCTS = {"cpu": CPU_PRODUCTS, "cuda": PRODUCTS}
_TARGETS = {"cpu": _on_cpu, "cuda": _on_cuda}


def _devices(has_cuda, cuda_version):
    """Device types served; torch has a CUDA version unless it was built for the CPU or for ROCm."""
    return ("cpu", "cuda") if has_cuda and cuda_version else ("cpu",)


DEVICES = _devices(_C.build_info()["cuda"], torch.version.cuda)
