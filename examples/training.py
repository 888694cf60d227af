"""Train several runs side by side: same initial weights, same batches, one optimizer each."""

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from corpus import sample

EVALUATIONS = 16
# validation windows do not depend on the seed, so that losses of different seeds compare
VALIDATION_SEED = 20_260
VALIDATION_BATCHES, VALIDATION_BATCH = 8, 64


class Clock(NamedTuple):
    """How a moment is marked, and milliseconds from one to another."""

    mark: Callable
    between: Callable


def _synchronized():
    torch.accelerator.synchronize()
    return time.perf_counter()


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
WAITING = CLOCKS["cpu"]._replace(mark=_synchronized)


@dataclasses.dataclass
class Run:
    """One optimizer on its own copy of the model, with its curves and times.

    Attributes:
        name: of the optimizer, in tables and figures.
        lr: its peak.
        lookahead: the method's dataclass, or None.
        schedule: a torch scheduler, advanced once per step.
        device: what the model is on.
        train: training loss of every step up to the last evaluation, at y.
        steps, at_x, at_y: validation losses and the steps they were taken at.
        step_ms, optimizer_ms: milliseconds of every step, and of ``optimizer.step()`` in it.
        diverged: number of the step whose training loss was not finite; the run counts up to
            there, and stops at the next evaluation.
    """

    name: str
    lr: float
    lookahead: object
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    device: torch.device
    train: list = dataclasses.field(default_factory=list)
    steps: list = dataclasses.field(default_factory=list)
    at_x: list = dataclasses.field(default_factory=list)
    at_y: list = dataclasses.field(default_factory=list)
    step_ms: list = dataclasses.field(default_factory=list)
    optimizer_ms: list = dataclasses.field(default_factory=list)
    diverged: int | None = None

    @property
    def label(self):
        return f"{self.name}, lr {self.lr:g}"

    def __post_init__(self):
        self._clock = CLOCKS.get(self.device.type, WAITING)
        # loss, begin, middle and end of steps that are not read yet: reading waits for the device
        self._unread = []

    def advance(self, inputs, targets):
        """Take one optimizer step, and keep its loss and its times."""
        if self.diverged is not None:
            self.train.append(math.nan)
            return
        begin = self._clock.mark()
        self.optimizer.zero_grad()
        loss = self.model.loss(inputs, targets)
        loss.backward()
        middle = self._clock.mark()
        self.optimizer.step()
        end = self._clock.mark()
        self.schedule.step()
        self._unread.append((loss.detach(), begin, middle, end))

    def evaluate(self, batches):
        """Record the validation loss at y, where gradients are taken, and at x, the iterate."""
        self._read()
        self.steps.append(len(self.train))
        with self.optimizer.at_iterate():
            self.at_x.append(self._validation_loss(batches))
        # without a lookahead y is x
        at_y = self._validation_loss(batches) if self.lookahead else self.at_x[-1]
        self.at_y.append(at_y)

    def _read(self):
        """Record the losses and times of the steps since the last evaluation."""
        losses = torch.stack([row[0] for row in self._unread]).tolist() if self._unread else []
        for loss, (_, begin, middle, end) in zip(losses, self._unread, strict=True):
            self.train.append(loss if self.diverged is None else math.nan)
            if self.diverged is None:
                self.step_ms.append(self._clock.between(begin, end))
                self.optimizer_ms.append(self._clock.between(middle, end))
            if self.diverged is None and not math.isfinite(loss):
                self.diverged = len(self.train)
        self._unread.clear()

    @torch.no_grad()
    def _validation_loss(self, batches):
        if self.diverged is not None:
            return math.nan
        loss = torch.stack([self.model.loss(*batch) for batch in batches]).mean().item()
        return loss if math.isfinite(loss) else math.nan

    def final(self):
        """The numbers of the table; loss in nats per byte, times are medians in ms."""
        state = [t for s in self.optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        return {
            "loss_x": self.at_x[-1],
            "loss_y": self.at_y[-1],
            "step_ms": statistics.median(self.step_ms),
            "optimizer_ms": statistics.median(self.optimizer_ms),
            "optimizer_bytes_per_parameter": sum(t.numel() * t.element_size() for t in state)
            / sum(p.numel() for p in self.model.parameters()),
        }


def lr_factor(step, steps, decays=True):
    """The lr of ``step`` over its peak: linear warm-up, constant, linear decay.

    The warm-up takes 50 steps (a tenth of a short run), the decay the last quarter. Both leave out
    zero, so that no step is wasted.
    """
    warmup = max(1, min(50, steps // 10))
    decay = max(1, steps // 4)
    return min(1.0, (step + 1) / warmup, (steps - step) / decay if decays else 1.0)


def train(
    runs,
    text,
    *,
    steps,
    batch,
    context,
    seed,
    device,
    evaluations=EVALUATIONS,
    validation=(VALIDATION_BATCHES, VALIDATION_BATCH),
):
    """Train ``runs`` in turn on each batch, for ``steps`` steps.

    Args:
        runs: they see the same batches.
        text: a corpus; windows are drawn on the device that it is on, and differ between devices.
        evaluations: how often on the way the validation loss is taken.
        validation: batches of an evaluation, and windows of each.
    """
    batches = torch.Generator(text.train.device).manual_seed(seed)
    fixed = torch.Generator(text.validation.device).manual_seed(VALIDATION_SEED)
    count, size = validation
    held_out = [sample(text.validation, size, context, fixed, device) for _ in range(count)]
    for run in runs:
        run.evaluate(held_out)
    terminal = sys.stderr.isatty()
    begin = time.perf_counter()
    every = math.ceil(steps / evaluations)
    bar = _bar(steps) if terminal else range(steps)
    for step in bar:
        inputs, targets = sample(text.train, batch, context, batches, device)
        # rotated, so that it is not always the same run that meets cold caches
        for k in range(len(runs)):
            runs[(step + k) % len(runs)].advance(inputs, targets)
        done = step + 1
        if done % every == 0 or done == steps:
            for run in runs:
                run.evaluate(held_out)
            losses = " ".join(f"{run.at_x[-1]:.3f}" for run in runs)
            if terminal:
                bar.set_postfix_str(f"validation {losses}")
            elif done % (2 * every) == 0 or done == steps:
                seconds = time.perf_counter() - begin
                print(f"step {done:>5}/{steps}  validation {losses}  {seconds:.0f} s", flush=True)


def _bar(steps):
    # need not be there where there is no terminal
    from tqdm import tqdm

    return tqdm(range(steps), unit="step", dynamic_ncols=True)
