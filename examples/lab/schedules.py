# SPDX-License-Identifier: MIT
"""Schedules: the learning rate of a step over its peak."""

import math


def trapezoid(step, steps, warmup=0, decay=0):
    """Linear up, constant, linear down; both ways leave out zero, so that no step is wasted."""
    up = (step + 1) / warmup if warmup else 1.0
    down = (steps - step) / decay if decay else 1.0
    return min(1.0, up, down)


def warmup_stable_decay(step, steps, warmup=0.1, decay=0.1, last=0.1):
    """Linear up from zero, constant, exponential down to ``last``; shares of all steps.

    The schedule of the Llama runs of EMA-Nesterov's paper.
    """
    up, down = warmup * steps, decay * steps
    falling = max(0.0, step - (steps - down)) / down if down else 0.0
    return min(1.0, step / up if up else 1.0) * last**falling


def stairs(step, steps, every, factor=0.5):
    """Times ``factor`` after every so many steps."""
    return factor ** (step // every)


def cosine(step, steps, warmup=0, last=0.0):
    """Linear up, then half a cosine down to ``last``."""
    if step < warmup:
        return (step + 1) / warmup
    way = (step - warmup) / max(1, steps - warmup)
    return last + (1 - last) * (1 + math.cos(math.pi * way)) / 2


SCHEDULES = {
    "trapezoid": trapezoid,
    "warmup_stable_decay": warmup_stable_decay,
    "stairs": stairs,
    "cosine": cosine,
}
