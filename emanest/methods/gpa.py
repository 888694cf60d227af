# SPDX-License-Identifier: MIT
"""GPA: take gradients between an average x and the base optimizer's own iterate z."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..values import real
from .method import Method, Plan, State, StepInfo, checked


def between(c, mu, decay=0.0, options=None):
    """Z has weight c in the new x, and x weight mu in the new y."""
    return Plan("gpa", (c, c - (1.0 - c) * mu, decay), 1.0 / mu - 1.0, options or {})


@dataclass(frozen=True)
class GPA(Method):
    """Generalized primal averaging: a smooth DiLoCo.

        y = mu_y * x + (1 - mu_y) * z
        z = (1 - lr * weight_decay) * z + u
        x = mu_x * x + (1 - mu_x) * z

    The base's weight decay acts on z, decoupled, and is switched off at y (under ``Wrap`` the
    inner optimizer's decay acts at y). mu_x = 0 is the base optimizer. Memory: one extra state
    value per parameter (``z``; x is implicit).

    Args:
        mu_x: weight of x in its own average, in [0, 1); about 0.9 ** (1 / H) replaces DiLoCo with H
            inner steps.
        mu_y: weight of x at the gradient point, in (0, 1].

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range.

    Source: Defazio et al. 2025, arXiv:2512.17131.
    """

    name: ClassVar[str] = "gpa"
    state: ClassVar[tuple[str, ...]] = (State("z", position=True),)
    points: ClassVar[tuple[str, str | None]] = ("x_between", "y_between")

    mu_x: float = field(default=0.9967, metadata=checked(real, 0, 1, "[)"))
    mu_y: float = field(default=0.7, metadata=checked(real, 0, 1, "(]"))

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Average, with the decay moved from y to z."""
        return between(
            1.0 - self.mu_x, self.mu_y, info.lr * info.weight_decay, {"weight_decay": 0.0}
        )
