"""EMA-Nesterov: look ahead along an average of past updates."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .. import schedules
from ..values import choice, count, flag, optional, real
from .method import Method, Plan, StepInfo, checked


@dataclass(frozen=True)
class EMANesterov(Method):
    """Look ahead along an exponential moving average of past updates.

        delta = x' - x
        m = decay * m + (1 - decay) * delta
        y' = x' + b * m              b = stepsize * lr / (largest lr so far)

    Averages run from the first step; b is 0 outside ``warmup <= t < rest``. Slow directions see
    their step size multiplied by 1 / (1 - b): compare with a sweep of the learning rate.
    Memory: one extra state value per parameter (``exp_avg_update``).

    Args:
        stepsize: the paper's beta, in (-(1 + decay) / (1 - decay), 1); 0.5 is a good start. Or a
            callable of the step index t, which then gives b itself (``follow_lr`` has no effect);
            a callable is not saved by ``state_dict``.
        decay: the paper's gamma, in [0, 1); 0.99 up to a few 100M parameters, 0.995 beyond.
        warmup: first step (counted from 0) whose gradient is taken ahead; about 30 % of the run.
        rest: first step whose gradient is taken at x again, an absolute index; None is never.
        follow_lr: make b proportional to the group's learning rate of the step before.
        init: ``"zero"``, ``"copy"`` (m starts at the first update) or ``"debias"``, by the number
            of updates that the parameter has had, those before the lookahead was added included.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range, or the window
            [warmup, rest) is empty.

    Source: EMA-Nesterov, arXiv:2605.25395, algorithm 1. The authors' wrapper reads the learning
    rate one scheduler tick later; ``schedules.proportional`` reproduces that.
    """

    name: ClassVar[str] = "ema_nesterov"
    state: ClassVar[tuple[str, ...]] = ("exp_avg_update",)
    points: ClassVar[tuple[str, str | None]] = ("x_along", "y_along")
    memory: ClassVar[dict[str, float]] = {"peak": 0.0}

    stepsize: float | Callable[[int], float] = 0.5
    decay: float = field(default=0.99, metadata=checked(real, 0, 1, "[)"))
    warmup: int = field(default=0, metadata=checked(count, 0))
    rest: int | None = field(default=None, metadata=checked(optional, count, 0))
    follow_lr: bool = field(default=True, metadata=checked(flag))
    init: schedules.Init = field(default="zero", metadata=checked(choice, schedules.INITS))

    def __post_init__(self) -> None:
        """Check what depends on other settings."""
        super().__post_init__()
        if not callable(self.stepsize):
            stepsize = self._check_stepsize("stepsize", self.stepsize)
            object.__setattr__(self, "stepsize", stepsize)
        if self.rest is not None and self.rest <= self.warmup:
            raise ValueError(
                f"rest must be above warmup: the window [{self.warmup}, {self.rest}) is empty "
                "(rest is an absolute step index, None means never)"
            )

    def _check_stepsize(self, name: str, value: float) -> float:
        return real(name, value, -(1 + self.decay) / (1 - self.decay), 1, "()")

    @property
    def capturable(self) -> bool:
        """A callable of t cannot be evaluated on a device."""
        return not callable(self.stepsize)

    def remember(self, t: Any, lr: Any, initial_lr: Any, memory: dict[str, Any]) -> dict[str, Any]:
        """Keep the largest learning rate so far."""
        peak = schedules.largest(memory["peak"], initial_lr)
        return {"peak": schedules.largest(peak, lr)}

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Advance the average and step ahead for step t + 1."""
        weight = schedules.INITS[self.init](self.decay, info.step)
        ahead = schedules.window(info.t + 1, self.warmup, self.rest) * self._size(info, memory)
        return Plan("ema_nesterov", (weight, info.ahead, ahead), ahead)

    def _size(self, info, memory):
        if callable(self.stepsize):
            return self._check_stepsize(f"stepsize({info.t + 1})", self.stepsize(info.t + 1))
        return self.stepsize * (schedules.ratio(info.lr, memory["peak"]) if self.follow_lr else 1.0)
