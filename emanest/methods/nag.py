# SPDX-License-Identifier: MIT
"""NAG: look ahead along the last displacement."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..values import real
from .method import Method, Plan, StepInfo, checked, momentum_of


@dataclass(frozen=True)
class NAG(Method):
    """Nesterov's accelerated gradient around any base optimizer, in the canonical form.

        x' = y + u
        y' = x' + momentum * (x' - x)

    Safe under learning-rate schedules, where PyTorch's ``SGD(nesterov=True)`` rescales the carried
    velocity. A base with a momentum of its own keeps it; one without must stay without: OneCycleLR
    and CyclicLR would switch it on, unless they get ``cycle_momentum=False``. Memory: one extra
    state value per parameter (``velocity``).

    Args:
        momentum: in (-1, 1).

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range, or (at a step, or a
            load) a base that was made without momentum has one.

    Source: Nesterov 1983; Sutskever et al. 2013, whose v is ``velocity``.
    """

    name: ClassVar[str] = "nag"
    state: ClassVar[tuple[str, ...]] = ("velocity",)
    points: ClassVar[tuple[str, str | None]] = ("x_along", "y_along")

    momentum: float = field(metadata=checked(real, -1, 1, "()"))

    def note_base(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Whether the base has a momentum of its own; if that was noted, what was."""
        name = "lookahead_on_momentum"
        return {name: group.get(name, bool(momentum_of(group)))}

    def check_base(self, group: Mapping[str, Any]) -> None:
        """A base that was made without momentum must stay without: two would multiply."""
        momentum = momentum_of(group)
        if momentum and not group.get("lookahead_on_momentum", True):
            raise ValueError(
                f"NAG brings the momentum of a base that was made without one, and now has "
                f"{momentum}: pass cycle_momentum=False to the scheduler that sets it, or make the "
                "base with a momentum to have both"
            )

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Step ahead along the last displacement."""
        return Plan("nag", (info.ahead, self.momentum), self.momentum)
