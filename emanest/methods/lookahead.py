# SPDX-License-Identifier: MIT
"""Lookahead: k steps forward, one step back."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..values import count, real
from .method import Method, Plan, State, StepInfo, checked
from .syncs import is_sync, never_syncs


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
    state: ClassVar[tuple[str, ...]] = (State("x", position=True),)
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)
    syncs: ClassVar[bool] = True
    x_is_state: ClassVar[bool] = True

    every: int = field(default=5, metadata=checked(count))
    alpha: float = field(default=0.5, metadata=checked(real, 0, 2, "[)"))

    def misses(self, total_steps: int, begun: int = 0) -> str:
        """Say whether there is no sync."""
        return never_syncs(self, total_steps, begun, self.every)

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Pull at a sync, else leave the fast weights alone."""
        if is_sync(info.t, self.every):
            return Plan("lookahead", (self.alpha,))
        return Plan("none", (), 1.0)
