# SPDX-License-Identifier: MIT
"""EMA-Nesterov: look ahead along an average of past updates."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from .. import schedules
from ..values import choice, count, flag, optional, real
from .method import Method, Plan, StepInfo, checked


def _published(total_steps):
    """Warm-up and rest of a run: 30 % and 80 % of it, with no rest where that is the end."""
    # halves are rounded up: the first is below the second then, however short the run
    warmup, rest = (3 * total_steps + 5) // 10, (8 * total_steps + 5) // 10
    return warmup, rest if rest < total_steps else None


@dataclass(frozen=True)
class EMANesterov(Method):
    """Look ahead along an exponential moving average of past updates.

        delta = x' - x
        m = decay * m + (1 - decay) * delta
        y' = x' + b * m              b = stepsize * lr / (largest lr so far)

    Largest counts the rate that a scheduler multiplies (``initial_lr``): b warms up with the rate.
    Averages run from the first step; b is 0 outside ``warmup <= t < rest``. Slow directions see
    their step size multiplied by 1 / (1 - b): compare with a sweep of the learning rate.
    Memory: one extra state value per parameter (``exp_avg_update``).

    Args:
        stepsize: the paper's beta, in (-(1 + decay) / (1 - decay), 1); 0.5 is a good start. Or a
            callable of the step index t, which then gives b itself (``follow_lr`` has no effect);
            a callable is not saved by ``state_dict``.
        decay: the paper's gamma, in [0, 1); 0.99 up to a few 100M parameters, 0.995 beyond.
        warmup: first step (counted from 0) whose gradient is taken ahead; about 30 % of the run,
            which ``for_run`` finds.
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

    def fitted(self, total_steps: int, given: Container[str]) -> "EMANesterov":
        """Look ahead from 30 % of the run to 80 % of it, both rounded.

        That is the paper's rule, by which its Llama runs go; its NanoGPT runs rest from 90 % on.
        ``stepsize`` and ``decay`` stay: those that were published depend on the length of a run and
        on the size of the model, by no rule that is stated. A bound that would leave no step
        between it and a given one is not set, nor is the rest of a run of one or two steps.

        Source: arXiv:2605.25395, and the scripts of its authors (the table in docs/methods.md).
        """
        warmup, rest = _published(total_steps)
        windows = {k: v for k, v in {"warmup": warmup, "rest": rest}.items() if k not in given}
        first, end = windows.get("warmup", self.warmup), windows.get("rest", self.rest)
        return self if end is not None and end <= first else replace(self, **windows)

    def misses(self, total_steps: int, begun: int = 0) -> str:
        """Say whether no gradient is taken ahead, or whether a rest that was asked for never comes.

        At the first step m is zero still, and ahead of x is x.
        """
        windows = {"warmup": self.warmup or None, "rest": self.rest}
        given = ", ".join(f"{k}={v}" for k, v in windows.items() if v is not None)
        name = f"{type(self).__name__}({given})"
        run = f"in a run of {total_steps} step{'s' * (total_steps > 1)}"
        warmup, rest = _published(total_steps)
        if total_steps == 1:
            return f"{name} never looks ahead {run}: the first has no past updates"
        if max(self.warmup, 1) >= min(total_steps, self.rest or total_steps):
            fix = f"for_run({total_steps}) gives warmup={warmup}, rest={rest}"
            return f"{name} never looks ahead {run}: {fix}"
        if self.rest is not None and self.rest >= total_steps:
            return (
                f"{name} never rests {run}: its last gradients are taken ahead, where "
                f"published runs take them at x; for_run({total_steps}) gives rest={rest}, and "
                "rest=None says that no rest is wanted"
            )
        if self.rest is not None and self.rest <= begun:
            warmup, rest = _published(total_steps - begun)
            later = f"lookahead_warmup={begun + warmup}, lookahead_rest={rest and begun + rest}"
            return (
                f"{name} rests in the whole of a run that is its steps {begun} to "
                f"{total_steps - 1}: make a new optimizer for it, or set {later} in the groups"
            )
        return ""

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
