# SPDX-License-Identifier: MIT
"""How far to look ahead at each step: numbers in, numbers out.

Everything here works on Python numbers and on 0-d tensors alike (no branch on an argument), so
that a step captured in a CUDA graph can evaluate it on the device.
"""

import math
from collections.abc import Callable
from typing import Any, Literal


def window(t: Any, warmup: int, rest: int | None) -> Any:
    """1 for ``warmup <= t < rest``, else 0; steps are counted from 0, ``rest=None`` is never."""
    # 0 * t: of a condition on a tensor, torch would make a float32
    return (t >= warmup) * (t < (math.inf if rest is None else rest)) + 0 * t


def largest(a: Any, b: Any) -> Any:
    """The larger of two finite numbers, bit for bit."""
    larger = (a > b) + 0 * a + 0 * b
    return larger * a + (1 - larger) * b


def ratio(lr: Any, peak: Any) -> Any:
    """``lr / peak``, for ``lr <= peak``; 1 where both are 0 (a warm-up that starts from 0)."""
    idle = peak == 0
    return (lr + idle) / (peak + idle)


def zero(decay: float, step: Any) -> float:
    """Weight of the newest update in an average that starts at zero."""
    return 1.0 - decay


def copy(decay: float, step: Any) -> Any:
    """As ``zero``, but the average starts at the first update."""
    first = (step == 0) + 0 * step
    return first + (1 - first) * (1.0 - decay)


def debias(decay: float, step: Any) -> Any:
    """Weight that makes the average the bias-corrected one, ``m / (1 - decay ** steps)``."""
    return (1.0 - decay) / (1.0 - decay ** (step + 1))


# the rows of the table below, for annotations
Init = Literal["zero", "copy", "debias"]

INITS: dict[str, Callable[[float, Any], Any]] = {"zero": zero, "copy": copy, "debias": debias}


def proportional(
    stepsize: float, lr_lambda: Callable[[int], float], peak: float = 1.0
) -> Callable[[int], float]:
    """A step size that follows a learning-rate schedule known in advance.

    Pass the function given to ``LambdaLR``: the step size used at step t then follows the learning
    rate of step t itself, as in the authors' wrapper. The default of ``EMANesterov`` follows that
    of step t - 1, because a fused step fixes the step size one scheduler tick earlier.

    Args:
        stepsize: the step size at the peak, in the range of ``EMANesterov``'s.
        lr_lambda: factor of the learning rate at step t, counted from 0.
        peak: the largest value of ``lr_lambda``, above 0.

    Returns:
        A callable of t for ``EMANesterov(stepsize=...)``.

    Raises:
        ValueError: peak is not above 0.
    """
    if not peak > 0:
        raise ValueError(f"peak must be above 0, got {peak}")
    return lambda t: stepsize * ratio(lr_lambda(t), peak)
