# SPDX-License-Identifier: MIT
"""What a row of the tables of variants is: how to make it, and what is counted of it by formula."""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from emanest import backends
from emanest.matrix import forms
from emanest.matrix.coefficients import polynomials

from .reference import NS_COEFFICIENTS, NS_STEPS, TwoPhase


@dataclass
class Stepper:
    """A variant on its parameters."""

    step: Callable[[], object]
    iterate: Callable[[], list[torch.Tensor]] = list  # x, or views of it
    at_iterate: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    take_gradients: Callable[[], object] = lambda: None  # called after gradients have changed

    def read(self, indices):
        """Copies of some tensors of x, in float64."""
        with torch.no_grad(), self.at_iterate():
            x = self.iterate()
            return [x[i].detach().to(torch.float64, copy=True) for i in indices]


class Traffic(NamedTuple):
    """Values that a step reads and writes per parameter, counted by its formula."""

    param: int
    grad: int
    state: int
    state_itemsize: int | None = None  # None: that of the parameters

    def bytes(self, dtype):
        """Bytes per parameter."""
        state = self.state_itemsize or dtype.itemsize
        return (self.param + self.grad) * dtype.itemsize + self.state * state


class Work(NamedTuple):
    """The matrix products of a step, counted by their formula: Newton-Schulz and nothing else."""

    form: str | None  # None: ours, the one that is cheaper on the device
    share: float = 1.0  # of the work of a full product that a symmetric one needs
    matrices: Callable = lambda shapes: range(len(shapes))  # shapes -> which are orthogonalised

    def flops(self, shapes, device, dtype):
        """Floating-point operations of a step.

        Args:
            shapes: of the parameters.
            device: type of the device.
            dtype: of the iteration.
        """
        rows, _ = polynomials(NS_COEFFICIENTS, NS_STEPS)
        return sum(
            forms.flops(
                self.form or _cheapest(n, m, rows, device, dtype), n, m, rows, dtype, self.share
            )
            for n, m in (sorted(shapes[i]) for i in self.matrices(shapes))
        )


def _cheapest(n, m, rows, device, dtype):
    def share(backend):
        return backend.products(device).SYMMETRIC_SHARE

    return forms.cheapest(n, m, rows, dtype, backends.run(share, device, None))


class Variant(NamedTuple):
    """A row of the table."""

    family: str
    make: Callable  # (params, capturable) -> Stepper
    traffic: Traffic | None = None  # None: not counted
    needs: str | None = None  # a package that is not ours
    slack: float = 1.0  # factor of the tolerance, where a low precision is the variant's own choice
    flat: bool = False  # holds parameters and gradients of its own
    spoils: bool = False  # overwrites gradients
    work: Work | None = None  # None: next to none
    own: bool = False  # emanest's: where it fails or computes something else, that is an error
    # (device type, dtype of the parameters) -> dtype of the arithmetic
    arithmetic: Callable = lambda device, dtype: dtype


def missing(variant):
    """Why a variant cannot run here, or None."""
    if variant.needs and importlib.util.find_spec(variant.needs) is None:
        return f"the package {variant.needs} is not installed"
    return None


def build(make, params, capturable=False):
    """Make a stepper; what others warn of while being made is not ours to treat as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(params, capturable)


def ours(optimizer, params):
    """Of an optimizer of emanest."""
    return Stepper(optimizer.step, lambda: params, optimizer.at_iterate)


def plain(optimizer, params):
    """Of an optimizer whose parameters hold x."""
    return Stepper(optimizer.step, lambda: params)


def two_phase(cls, **options):
    """How to make the eager reference around an optimizer."""

    def make(params, capturable):
        more = {"capturable": True} if capturable else {}
        inner = cls(params, **options, **more)
        return Stepper(TwoPhase(inner, params).step, lambda: params)

    return make
