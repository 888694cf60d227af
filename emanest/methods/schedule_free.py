# SPDX-License-Identifier: MIT
"""Schedule-Free: averaging in place of a learning-rate schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .. import schedules
from ..values import real
from .gpa import between
from .method import Method, Plan, State, StepInfo, checked, momentum_of


@dataclass(frozen=True)
class ScheduleFree(Method):
    """Replace the learning-rate schedule by averaging.

        y = (1 - momentum) * z + momentum * x
        z = z + u
        x = x + c * (z - x)          c = w / (sum of all w),  w = (t + 1) ** r * peak ** power

    peak is the largest learning rate so far. The momentum here replaces the base's: it needs
    ``betas=(0, beta2)`` or ``momentum=0``. The base's weight decay acts at y. For a warm-up use a
    scheduler (``LinearLR``). Memory: one extra state value per parameter (``z``; x is implicit).

    Args:
        momentum: weight of x at the gradient point, in (0, 1].
        r: power of the step index in the weights, at least 0.
        weight_lr_power: power of the peak learning rate in the weights, at least 0.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range, or the base has a
            momentum of its own.

    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """

    name: ClassVar[str] = "schedule_free"
    state: ClassVar[tuple[str, ...]] = (State("z", position=True),)
    points: ClassVar[tuple[str, str | None]] = ("x_between", "y_between")
    memory: ClassVar[dict[str, float]] = {"peak": 0.0, "weight": 0.0, "weight_sum": 0.0}

    momentum: float = field(default=0.9, metadata=checked(real, 0, 1, "(]"))
    r: float = field(default=0.0, metadata=checked(real, 0))
    weight_lr_power: float = field(default=2.0, metadata=checked(real, 0))

    def check_base(self, group: Mapping[str, Any]) -> None:
        """The base must not have a momentum of its own."""
        momentum = momentum_of(group)
        if momentum:
            where = f" in a group with base {group['base']!r}" if "base" in group else ""
            raise ValueError(
                "ScheduleFree replaces the base's momentum: pass betas=(0, beta2) or momentum=0, "
                f"got {momentum}{where}; OneCycleLR and CyclicLR need cycle_momentum=False"
            )

    def remember(self, t: Any, lr: Any, initial_lr: Any, memory: dict[str, Any]) -> dict[str, Any]:
        """Add this step's weight."""
        peak = schedules.largest(memory["peak"], lr)
        weight = (t + 1) ** self.r * peak**self.weight_lr_power
        return {"peak": peak, "weight": weight, "weight_sum": memory["weight_sum"] + weight}

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Average with the weight of this step."""
        total = memory["weight_sum"]
        c = memory["weight"] / (total + (total == 0))
        return between(c, self.momentum)
