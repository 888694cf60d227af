# SPDX-License-Identifier: MIT
"""Long-horizon lookahead: look ahead along the displacement of the last k steps."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..values import count, real
from .method import Method, Plan, State, StepInfo, checked
from .syncs import is_sync, never_syncs


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
    state: ClassVar[tuple[str, ...]] = (State("x", position=True),)
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)
    syncs: ClassVar[bool] = True

    every: int = field(metadata=checked(count))
    stepsize: float = field(default=0.5, metadata=checked(real, -1, 1, "()"))

    def misses(self, total_steps: int, begun: int = 0) -> str:
        """Say whether no gradient comes after a sync, at which x is still y."""
        return never_syncs(self, total_steps, begun, self.every, after=1)

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Extrapolate at a sync."""
        if is_sync(info.t, self.every):
            return Plan("long_horizon", (self.stepsize,), 1.0)
        return Plan("none")
