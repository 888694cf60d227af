# SPDX-License-Identifier: MIT
"""NALA: lookahead whose slow weights take a gradient step of their own."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..values import count, real
from .method import Method, Plan, State, StepInfo, checked
from .syncs import never_syncs


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
    state: ClassVar[tuple[str, ...]] = (State("x", position=True),)
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)
    syncs: ClassVar[bool] = True
    x_is_state: ClassVar[bool] = True

    # what a parameter's `lookahead` says here, besides 0 for "at x"
    FAST: ClassVar[float] = 1.0
    EXTRAPOLATED: ClassVar[float] = 2.0

    every: int = field(default=5, metadata=checked(count))
    lr: float = field(default=1e-3, metadata=checked(real, 0))
    mu: float = field(default=-0.5, metadata=checked(real, -1, 1, "()"))

    def misses(self, total_steps: int, begun: int = 0) -> str:
        """Say whether no gradient moves the slow weights."""
        return never_syncs(self, total_steps, begun, self.every + 1)

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Extrapolate after k base steps; the parameter's next gradient moves the slow weights."""
        if info.ahead == self.EXTRAPOLATED:
            return Plan("anchor", base=("direction", (self.lr, 0.0)))
        if info.t % (self.every + 1) == self.every - 1:
            return Plan("extrapolate", (self.mu,), self.EXTRAPOLATED)
        return Plan("none", (), self.FAST)
