# SPDX-License-Identifier: MIT
"""A real training run: AdamW and Muon, each with and without EMA-Nesterov, on source text.

Short runs find the best lr of each base; long ones compare at it. Each leaves a line in
``train.jsonl``. Runs whose lines are there, or in the folder of what was brought along, are not
done again, so that a training that was cut off goes on in the next call.
"""

import json
import math
import time
import traceback

import torch

from examples.lab import models
from examples.lab.parallel import World
from examples.lab.training import Run, loaded

from .. import train_report
from ..devices import DEVICES
from ..timed_run import TimedRun
from ..train_settings import BRIEF, METHODS, SEED, SMALL, Planned, Sizes, settings_of
from . import ROOT, Found

NAME = "train.jsonl"
# a run is begun if it would end in time when it were slower than the last one by so much
ROOM = 1.1
# for what is the same for all runs
ANY = Planned("adamw", "none", 1e-3, 1, 1)


class Trainer:
    """A model, compiled once, that every run starts afresh.

    Args:
        folders: of the corpus; None: those of the running Python.

    Attributes:
        about: what it is and how fast, for a reader.
        pace: seconds of a step of the last run; before, of a forward and a backward pass.
    """

    PLANS = "short", "long", "lrs", "compiler"  # sizes that do not concern a run

    def __init__(self, sizes, folders, device):
        self.sizes, self.folders, self.world = sizes, folders, World(0, 1, device)
        self.text = loaded(self._settings(ANY))
        self.model, self.pace, times = self._fastest()
        self.start = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.about = (
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters; forward and backward "
            f"{times}; {self.text.name}: {len(self.text.train) / 1e6:.1f} MB to train on, "
            f"{len(self.text.validation) / 1e6:.1f} to validate on"
        )

    def _settings(self, planned):
        return settings_of(planned, self.sizes, self.folders)

    def _fastest(self):
        """The model, compiled if it is faster so; its pace; both paces in words."""
        model = self._made()
        eager = self._pace(model)
        words = f"{1e3 * eager:.3g} ms"
        if self.sizes.compiler is None:
            return model, eager, words
        begin = time.monotonic()
        try:
            models.compile_blocks(model, backend=self.sizes.compiler, dynamic=False)
            compiled = self._pace(model)
        except Exception as error:
            # the runs take longer, that is all
            traceback.print_exc()
            return self._made(), eager, f"{words}, not compiled: {type(error).__name__}"
        took = time.monotonic() - begin
        words += f", {1e3 * compiled:.3g} ms compiled in {took:.0f} s"
        return (model, compiled, words) if compiled < eager else (self._made(), eager, words)

    def _made(self):
        return models.make(self._settings(ANY)["model"], SEED).to(self.world.device)

    def _pace(self, model):
        """Seconds of a forward and a backward pass; the model has been evaluated before."""
        run = Run(self._settings(ANY), self.world, model=model)
        batch = self.world.share(*run.feed(0))
        for count in (2, 5):
            begin = time.perf_counter()
            for _ in range(count):
                loss = run.loss(*batch)
                loss.backward()
            # waits for all of it
            loss.item()
        return (time.perf_counter() - begin) / count

    def key(self, planned):
        """All that decides what comes of a run but the commit, in the form that JSON gives back."""
        key = {**self.sizes._asdict(), **planned._asdict(), "seed": SEED}
        key = {name: key[name] for name in key if name not in self.PLANS}
        return json.loads(json.dumps({**key, "corpus": self.text.digest}))

    def train(self, planned):
        """Do a run; its line, but for the commit and the name of the device."""
        self.model.load_state_dict(self.start)
        begin = time.monotonic()
        run = TimedRun(self._settings(planned), self.world, model=self.model)
        while not run.done:
            run.advance()
            steps, losses = run.curves["steps"], run.curves["loss"]
            if steps[-1] == run.step:
                print(f"step {run.step:>5}/{planned.steps}  validation {losses[-1]}", flush=True)
        took = time.monotonic() - begin
        self.pace = took / max(1, run.step)
        final = run.final()
        return {
            **{"name": planned.name, "key": self.key(planned), "steps": steps, "at_x": losses},
            **{"at_y": run.at_y, "train": [stored(loss) for loss in run.train]},
            **{"diverged": run.diverged, "final": final},
            **{"share": final["optimizer_ms"] / final["step_ms"], "seconds": took},
            **{"torch": torch.__version__, "corpus": self.text.name, "about": self.about},
        }


def stored(loss):
    """A step's loss, of which there are many; None, as JSON has it, where it is not finite."""
    return round(loss, 4) if math.isfinite(loss) else None


def best(lines):
    """The lr of the run that ends lowest; None if no run has ended, or all have diverged."""
    ended = [line for line in lines if line and line["diverged"] is None]
    key = min(ended, key=lambda line: line["final"]["loss_x"], default={"key": {}})["key"]
    return key.get("lr")


def run(settings, *bases, sizes=None, device="cuda"):
    """Of the bases that are named, or of all."""
    end = time.monotonic() + settings.seconds
    if settings.small:
        # of a model this small more of them wait for each other
        torch.set_num_threads(1)
    sizes = sizes or (BRIEF if settings.brief else SMALL if settings.small else Sizes())
    folders = [str(ROOT / "examples")] if settings.brief else None
    trainer = Trainer(sizes, folders, torch.device(device))
    print(trainer.about, flush=True)
    lines = train_report.Lines(settings.out / NAME, [settings.carry / NAME], settings.commit)
    done, left, before = [], [], len(lines.lines)

    def result(planned):
        """The result of a run, which is done unless it is there; None: no time is left for it."""
        found = lines.find(trainer.key(planned))
        if found is None and time.monotonic() + ROOM * planned.steps * trainer.pace < end:
            print(f"-- {planned}", flush=True)
            where = {"commit": settings.commit, "device": DEVICES[device].name()}
            found = {**trainer.train(planned), **where}
            lines.add(found)
        (left if found is None else done).append(found or str(planned))
        return found

    chosen = {}
    for base in bases or sizes.lrs:
        lrs = sizes.lrs[base]
        swept = [result(Planned(base, "none", lr, *sizes.short)) for lr in lrs]
        # of all or of none: half a sweep would choose another
        chosen[base] = best(swept) if all(swept) else None
    for base, lr in chosen.items():
        if lr is None:
            left.append(f"{base}, {sizes.long[0]} steps: its lr is not known")
            continue
        for method in METHODS:
            result(Planned(base, method, lr, *sizes.long))
    print(*train_report.table(done), sep="\n", flush=True)
    said = [f"not done: {'; '.join(left)}"] if left else []
    there = len(done) - (len(lines.lines) - before)
    said += [f"{there} of {len(done)} runs were there; {trainer.about}"]
    said += train_report.summary(done)
    return Found(said, {"left": left, "lr": chosen})
