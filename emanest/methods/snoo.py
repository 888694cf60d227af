# SPDX-License-Identifier: MIT
"""SNOO: a Nesterov SGD step of the slow weights at every sync."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..values import count, real
from .method import Method, Plan, State, StepInfo, checked
from .syncs import is_sync, never_syncs


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
    state: ClassVar[tuple[str, ...]] = (State("x", position=True), "outer_momentum_buffer")
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)
    syncs: ClassVar[bool] = True
    x_is_state: ClassVar[bool] = True

    every: int = field(metadata=checked(count))
    lr: float = field(default=0.7, metadata=checked(real, 0, 2, "()"))
    momentum: float = field(default=0.5, metadata=checked(real, 0, 1, "[)"))

    def misses(self, total_steps: int, begun: int = 0) -> str:
        """Say whether there is no sync."""
        return never_syncs(self, total_steps, begun, self.every)

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Take the outer step at a sync."""
        if is_sync(info.t, self.every):
            return Plan("snoo", (self.lr, self.momentum))
        return Plan("none", (), 1.0)
