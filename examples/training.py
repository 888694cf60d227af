"""Train several runs side by side: same initial weights, same batches, one optimizer each."""

import dataclasses
import math
import statistics
import sys
import time

import torch
from tqdm import tqdm

from corpus import sample

EVALUATIONS = 16
# validation windows do not depend on the seed, so that losses of different seeds compare
VALIDATION_SEED = 20_260
VALIDATION_BATCHES, VALIDATION_BATCH = 8, 64


@dataclasses.dataclass
class Run:
    """One optimizer on its own copy of the model, with its curves and times.

    Attributes:
        name: of the optimizer, in tables and figures.
        lr: its peak.
        lookahead: the method's dataclass, or None.
        schedule: a torch scheduler, advanced once per step.
        train: training loss of every step, at y.
        steps, at_x, at_y: validation losses and the steps they were taken at.
        step_ms, optimizer_ms: milliseconds of every step, and of ``optimizer.step()`` in it.
        diverged: number of the step whose training loss was not finite; the run stops there.
    """

    name: str
    lr: float
    lookahead: object
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
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

    def advance(self, inputs, targets):
        """Take one optimizer step and record its loss and its times."""
        if self.diverged is not None:
            self.train.append(math.nan)
            return
        begin = _now(inputs.device)
        self.optimizer.zero_grad()
        loss = self.model.loss(inputs, targets)
        loss.backward()
        middle = _now(inputs.device)
        self.optimizer.step()
        end = _now(inputs.device)
        self.schedule.step()
        self.step_ms.append(1e3 * (end - begin))
        self.optimizer_ms.append(1e3 * (end - middle))
        self.train.append(loss.item())
        if not math.isfinite(self.train[-1]):
            self.diverged = len(self.train)

    def evaluate(self, batches):
        """Record the validation loss at y, where gradients are taken, and at x, the iterate."""
        self.steps.append(len(self.train))
        with self.optimizer.at_iterate():
            self.at_x.append(self._validation_loss(batches))
        # without a lookahead y is x
        at_y = self._validation_loss(batches) if self.lookahead else self.at_x[-1]
        self.at_y.append(at_y)

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


def train(runs, text, *, steps, batch, context, seed, device):
    """Train ``runs`` in turn on each batch, for ``steps`` steps; evaluate 16 times on the way."""
    batches = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(VALIDATION_SEED)
    validation = [
        sample(text.validation, VALIDATION_BATCH, context, fixed, device)
        for _ in range(VALIDATION_BATCHES)
    ]
    for run in runs:
        run.evaluate(validation)
    terminal = sys.stderr.isatty()
    begin = time.perf_counter()
    every = math.ceil(steps / EVALUATIONS)
    bar = tqdm(range(steps), disable=not terminal, unit="step", dynamic_ncols=True)
    for step in bar:
        inputs, targets = sample(text.train, batch, context, batches, device)
        # rotated, so that it is not always the same run that meets cold caches
        for k in range(len(runs)):
            runs[(step + k) % len(runs)].advance(inputs, targets)
        done = step + 1
        if done % every == 0 or done == steps:
            for run in runs:
                run.evaluate(validation)
            losses = " ".join(f"{run.at_x[-1]:.3f}" for run in runs)
            bar.set_postfix_str(f"validation {losses}")
            if not terminal and (done % (2 * every) == 0 or done == steps):
                seconds = time.perf_counter() - begin
                print(f"step {done:>5}/{steps}  validation {losses}  {seconds:.0f} s", flush=True)


def _now(device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
