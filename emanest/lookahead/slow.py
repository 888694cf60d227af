"""Methods that keep slow weights x beside the fast ones and bring the two together at syncs."""

from dataclasses import dataclass
from typing import ClassVar

from ..options import count, real
from .method import Method, Plan


def _syncs(t, every):
    return (t + 1) % every == 0


@dataclass(frozen=True)
class Lookahead(Method):
    """k steps forward, one step back.

        every k steps:   x = x + alpha * (y - x);  y = x

    x are the slow weights. The base optimizer's state is kept at a sync. Memory: one extra state
    value per parameter (``x``).

    Args:
        every: base steps between syncs, at least 1; syncs come after steps k, 2k, ...
        alpha: in [0, 2); 1 is the base optimizer itself, 0 returns to the slow weights.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range.

    Source: Zhang et al. 2019, arXiv:1907.08610, algorithm 1.
    """

    name: ClassVar[str] = "lookahead"
    state: ClassVar[tuple[str, ...]] = ("x",)
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)
    syncs: ClassVar[bool] = True
    rests: ClassVar[bool] = True

    every: int = 5
    alpha: float = 0.5

    def __post_init__(self):
        """Check the ranges."""
        self._set(every=count("every", self.every))
        self._set(alpha=real("alpha", self.alpha, 0, 2, "[)"))

    def plan(self, at, memory):
        """Pull at a sync, else leave the fast weights alone."""
        if _syncs(at.t, self.every):
            return Plan("lookahead", (self.alpha,))
        return Plan("none", (), 1.0)


@dataclass(frozen=True)
class LongHorizon(Method):
    """Look ahead along the displacement of the last k steps.

        every k steps:   y = y + stepsize * (y - x);  x = y before that

    Between syncs the iterate is y itself; at a sync it is the point before the extrapolation.
    k = 1 is NAG. Memory: one extra state value per parameter (``x``).

    Args:
        every: base steps between syncs, at least 1.
        stepsize: in (-1, 1); 0.25 to 0.75 in published sweeps.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range.

    Source: EMA-Nesterov, arXiv:2605.25395, equation 6.
    """

    name: ClassVar[str] = "long_horizon"
    state: ClassVar[tuple[str, ...]] = ("x",)
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)
    syncs: ClassVar[bool] = True

    every: int
    stepsize: float = 0.5

    def __post_init__(self):
        """Check the ranges."""
        self._set(every=count("every", self.every))
        self._set(stepsize=real("stepsize", self.stepsize, -1, 1, "()"))

    def plan(self, at, memory):
        """Extrapolate at a sync."""
        if _syncs(at.t, self.every):
            return Plan("long_horizon", (self.stepsize,), 1.0)
        return Plan("none")


@dataclass(frozen=True)
class SNOO(Method):
    """A Nesterov SGD step of the slow weights on the displacement of the last k steps.

        every k steps:   delta = y - x
                         b = momentum * b + delta
                         x = x + lr * (delta + momentum * b);  y = x

    This is also the outer step of DiLoCo (``SNOO(500, 0.7, 0.9)`` on one worker) and of MuLoCo (for
    a constant outer lr). momentum = 0 is Lookahead with alpha = lr; lr = 1 is LongHorizon.
    Memory: two extra state values per parameter (``x``, ``outer_momentum_buffer``).

    Args:
        every: base steps between syncs, at least 1; syncs come after steps k, 2k, ...
        lr: outer learning rate, in (0, 2).
        momentum: outer momentum, in [0, 1).

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range.

    Source: Kallusky et al. 2025, arXiv:2510.15830; DiLoCo, arXiv:2311.08105.
    """

    name: ClassVar[str] = "snoo"
    state: ClassVar[tuple[str, ...]] = ("x", "outer_momentum_buffer")
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)
    syncs: ClassVar[bool] = True
    rests: ClassVar[bool] = True

    every: int
    lr: float = 0.7
    momentum: float = 0.5

    def __post_init__(self):
        """Check the ranges."""
        self._set(every=count("every", self.every))
        self._set(lr=real("lr", self.lr, 0, 2, "()"))
        self._set(momentum=real("momentum", self.momentum, 0, 1, "[)"))

    def plan(self, at, memory):
        """Take the outer step at a sync."""
        if _syncs(at.t, self.every):
            return Plan("snoo", (self.lr, self.momentum))
        return Plan("none", (), 1.0)


@dataclass(frozen=True)
class NALA(Method):
    """Lookahead whose slow weights take a gradient step of their own.

        after k base steps:   y = y + mu * (y - x)
        the next gradient:    x = y - lr * g;  y = x      (raw: not through the base, no decay)

    ``every + 1`` gradients per outer step, no closure. The published setting has mu < 0: an
    interpolation towards the slow weights. Memory: one extra state value per parameter (``x``).

    Args:
        every: base steps per outer step, at least 1.
        lr: step size of the raw gradient step, at least 0; 1e-4 to 1e-2 in the paper.
        mu: in (-1, 1); -0.3 to -0.7 in the paper.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range.

    Source: Zuo et al. 2024, algorithm 1. x starts at the parameters (the authors' code starts it at
    zero), and the gradient at y is that of the next batch.
    """

    name: ClassVar[str] = "nala"
    state: ClassVar[tuple[str, ...]] = ("x",)
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)
    syncs: ClassVar[bool] = True
    rests: ClassVar[bool] = True

    # what a parameter's `lookahead` says here, besides 0 for "at x"
    FAST: ClassVar[float] = 1.0
    EXTRAPOLATED: ClassVar[float] = 2.0

    every: int = 5
    lr: float = 1e-3
    mu: float = -0.5

    def __post_init__(self):
        """Check the ranges."""
        self._set(every=count("every", self.every))
        self._set(lr=real("lr", self.lr, 0))
        self._set(mu=real("mu", self.mu, -1, 1, "()"))

    def plan(self, at, memory):
        """Extrapolate after k base steps; the parameter's next gradient moves the slow weights."""
        if at.ahead == self.EXTRAPOLATED:
            return Plan("anchor", base=("direction", (self.lr, 0.0)))
        if at.t % (self.every + 1) == self.every - 1:
            return Plan("extrapolate", (self.mu,), self.EXTRAPOLATED)
        return Plan("none", (), self.FAST)
