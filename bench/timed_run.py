# SPDX-License-Identifier: MIT
"""A run of the lab that is timed, and keeps the loss of every step."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from examples.lab.numbers import rounded
from examples.lab.training import Run

MOMENTS = "begin", "optimizer", "end"  # of a step


class Clock(NamedTuple):
    """How a moment is marked, and milliseconds from one to another."""

    mark: Callable
    between: Callable


def _in_queue():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


# type of the device -> its clock. CUDA marks a moment in its queue: nobody waits for it, and time
# is the device's wherever the host is ahead
CLOCKS = {
    "cpu": Clock(time.perf_counter, lambda begin, end: 1e3 * (end - begin)),
    "cuda": Clock(_in_queue, lambda begin, end: begin.elapsed_time(end)),
}


class TimedRun(Run):
    """A run that keeps more than its curves.

    Attributes:
        train: training loss of every step up to the last evaluation, at y.
        at_y: validation losses at y, where gradients are taken, beside those at x.
        step_ms, optimizer_ms: milliseconds of every step, and of ``optimizer.step()`` in it.
    """

    def __init__(self, settings, world, **options):
        self._clock = CLOCKS[world.device.type]
        # of steps that are not read yet: reading waits for the device
        self._marked = {name: [] for name in MOMENTS}
        self.train, self.at_y, self.step_ms, self.optimizer_ms = [], [], [], []
        super().__init__(settings, world, **options)

    def mark(self, moment):
        self._marked[moment].append(self._clock.mark())

    def _read(self):
        losses = super()._read()
        for begin, middle, end in zip(*self._marked.values(), strict=True):
            self.step_ms.append(self._clock.between(begin, end))
            self.optimizer_ms.append(self._clock.between(middle, end))
        for moments in self._marked.values():
            moments.clear()
        self.train += losses
        return losses

    def _evaluate(self):
        super()._evaluate()
        at_y = self.curves["loss"][-1]
        # without a lookahead y is x
        if self.settings.get("lookahead"):
            at_y = rounded(self.measured()["loss"])
        self.at_y.append(at_y)

    def final(self):
        """The numbers of the table; times are medians in ms."""
        return {
            "loss_x": self.curves["loss"][-1],
            "loss_y": self.at_y[-1],
            "step_ms": statistics.median(self.step_ms),
            "optimizer_ms": statistics.median(self.optimizer_ms),
            "optimizer_bytes_per_parameter": self.result()["state_bytes"],
        }
