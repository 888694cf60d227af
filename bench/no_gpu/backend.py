# SPDX-License-Identifier: MIT
"""The back end "triton" of a GPU that is not there: it launches nothing, and eager computes."""

import functools
import sys
import types

import torch

from emanest import backends
from emanest.backends import eager
from emanest.backends.products import PRODUCTS
from emanest.kernels import backend, launch, scaling, tiles
from emanest.kernels import newton_schulz as kernels
from emanest.matrix import newton_schulz

from .driver import TARGET

NAME = f"{__package__}.computing"
# what ``eager`` documents
FUNCTIONS = ("apply_", "rows_", "nonfinite", "plan_")


def both(launching, computing):
    """A function that launches, and returns what another computes."""

    @functools.wraps(computing)
    def run(*args, out=None, **kwargs):
        if out is None:
            launching(*args, **kwargs)
            return computing(*args, **kwargs)
        # what is copied there when nothing has been launched is whatever memory held
        launching(*args, **kwargs, out=out.clone())
        return computing(*args, **kwargs, out=out)

    return run


def _of_products():
    """The namespace of products: what ``backends.products.Products`` has in public."""
    found = {}
    for name in dir(PRODUCTS):
        if hasattr(kernels, name) and name[0] != "_":
            own = getattr(kernels, name)
            found[name] = both(own, getattr(PRODUCTS, name)) if callable(own) else own
    return types.SimpleNamespace(**found)


def _computing():
    """A module like ``kernels.backend`` whose functions compute as well."""
    module = sys.modules[NAME] = types.ModuleType(NAME)
    for name in FUNCTIONS:
        setattr(module, name, both(getattr(backend, name), getattr(eager, name)))
    found = _of_products()
    module.products = lambda device_type: found
    return module


def install(compute):
    # kernels take CPU tensors for those of a GPU of the driver's kind
    arch = f"sm_{TARGET.arch}"
    for module in (launch, kernels, scaling):
        module.check = lambda device, dtype: None
    for module in (tiles, kernels):
        module.arch_of = lambda device: arch
    newton_schulz._FASTEST["cpu"] = newton_schulz._FASTEST["cuda"]
    module = _computing() if compute else backend
    module.DEVICES = ("cpu", "cuda")
    row = backends.Backend(module.__name__, ("cpu", "cuda"))
    backends.BACKENDS = {**backends.BACKENDS, "triton": row}
    for device in ("cpu", "cuda"):
        for choice in ("triton", None):
            backends._picked[device, choice] = module
    torch.backends.cuda.is_built = lambda: True
