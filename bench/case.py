# SPDX-License-Identifier: MIT
"""What a case is: which variants are timed together on what, and what must come out."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .models import MODELS

# calls before a capture, and before timing starts
WARM_UP = 5


class Claim(NamedTuple):
    """A number of the report, with the values that it must and should reach."""

    quantity: str  # a row of report.QUANTITIES
    peer: str | None = None
    must: float | None = None
    stretch: float | None = None
    timing: str = "idle"  # that of the times in it


class Case(NamedTuple):
    """Variants that are timed in turn, on copies of the same parameters."""

    name: str
    device: str
    model: str
    ours: str
    peers: tuple[str, ...]
    claims: tuple[Claim, ...]
    dtype: torch.dtype = torch.float32
    timings: tuple[str, ...] = ("idle",)  # rows of clocks.CLOCKS
    steps: int = 1  # per timed call: a cycle of methods that have one, or a burst
    warm_up: int = WARM_UP  # calls before, at least 2
    cold: bool = True  # the caches hold something else when a call begins
    sigma: float = 0.02  # of the parameters, when timing starts; gradients have 1
    spread: float = 1.0  # of gradients: sigma of the last column over that of the first
    full_size: bool = False  # errors are found at full size too
    # shape -> whether rounding leaves its result alone: others, and any in less than float64 or
    # after steps with the same gradients, are not compared; None: all are
    defined: Callable | None = None

    @property
    def shapes(self):
        """Shapes of the model."""
        return MODELS[self.model]

    @property
    def variants(self):
        """Names of all variants."""
        return (self.ours, *self.peers)


def label(variant, timing):
    """What a time is listed as: a variant's name alone is its time on an idle device."""
    return variant if timing == "idle" else f"{variant}, {timing}"


def speedup(peer, must=None, stretch=None, timing="idle"):
    """Time of a peer over ours."""
    return Claim("speedup", peer, must, stretch, timing)


def cost(peer, must=None, stretch=None, timing="idle"):
    """Our time over a peer's that does less."""
    return Claim("cost", peer, must, stretch, timing)


def of_ours(peer, must=None, stretch=None, timing="idle"):
    """What share of our time, in %, a peer that does less does not need."""
    return Claim("lookahead", peer, must, stretch, timing)


SPREAD = 1e-2
# as gradients of matrices are: some columns matter little
MATRICES = {"spread": SPREAD, "full_size": True}
# Newton-Schulz alone: from zero, x is what the function returns
FUNCTION = {**MATRICES, "sigma": 0.0, "warm_up": 2}


def memory(alone):
    """Claims of bytes: one more value per parameter than an optimizer, and none in passing."""
    return (Claim("state", alone, 4, 4), Claim("transient", None, 0, 0))
