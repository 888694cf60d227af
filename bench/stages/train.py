"""A real training run: AdamW and Muon, each with and without EMA-Nesterov, on source text.

Short runs find the best lr of each base; long ones compare at it. Each leaves a line in
``train.jsonl``. Runs whose lines are there, or in the folder of what was brought along, are not
done again, so that a training that was cut off goes on in the next call.
"""

import dataclasses
import json
import sys
import time
import traceback
from typing import NamedTuple

import torch

from .. import train_report
from ..devices import DEVICES
from . import ROOT, Found

sys.path.append(str(ROOT / "examples"))

import lm_report
from corpus import check_length, installed_python, sample
from methods import make_run
from training import train
from transformer import make_model

NAME = "train.jsonl"
SEED = 0
# base -> lrs, a factor of 2 apart. AdamW: 6e-3 is the best of examples/lm.py at width 64, and that
# of matrices falls with the width, to 5e-4 at 768; GPT-3 of this size took 6e-4, EMA-Nesterov's
# authors 1e-3. Muon's updates have one spectral norm at any width: 0.02 as at width 64, and
# between 0.02 and 0.04 in the NanoGPT speed runs
LRS = {"adamw": (5e-4, 1e-3, 2e-3), "muon": (0.01, 0.02, 0.04)}
METHODS = ("none", "ema-nesterov")
# a run is begun if it would end in time when it were slower than the last one by so much
ROOM = 1.1


class Planned(NamedTuple):
    """A run: names of ``examples/methods.py``, and how often on the way it is evaluated."""

    base: str
    method: str
    lr: float
    steps: int
    evaluations: int

    def __str__(self):
        return f"{self.base} with {self.method} at lr {self.lr:g}, {self.steps} steps"


class Sizes(NamedTuple):
    """Of the model, the batches and the runs."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    batch: int = 32
    context: int = 1024
    dtype: str | None = "bfloat16"  # of products
    std: float | None = 0.02  # of the weights at the start
    short: tuple[int, int] = (250, 2)  # steps, evaluations
    long: tuple[int, int] = (1000, 12)
    validation: tuple[int, int] = (8, 32)  # batches, windows
    corpus: int = 40 * 2**20  # bytes at most
    lrs: dict[str, tuple[float, ...]] = LRS
    compiler: str | None = "inductor"


# what stands in for a GPU is not understood by a compiler
SMALL = Sizes(
    *(1, 16, 4, 4, 8), short=(3, 1), long=(8, 4), validation=(1, 4), corpus=2**18, compiler=None
)
# without the kernels of Muon
BRIEF = SMALL._replace(short=(2, 1), long=(4, 2), lrs={"adamw": LRS["adamw"][:2]})


class Trainer:
    """A model, compiled once, that every run starts afresh.

    Attributes:
        about: what it is and how fast, for a reader.
        pace: seconds of a step of the last run; before, of a forward and a backward pass.
    """

    PLANS = "short", "long", "lrs", "compiler"  # sizes that do not concern a run

    def __init__(self, sizes, text, device):
        self.sizes, self.device = sizes, device
        halves = {side: getattr(text, side).to(device) for side in ("train", "validation")}
        self.text = dataclasses.replace(text, **halves)
        self.model, self.pace, times = self._fastest()
        self.start = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.about = (
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters; forward and backward "
            f"{times}; {text.name}: {len(text.train) / 1e6:.1f} MB to train on, "
            f"{len(text.validation) / 1e6:.1f} to validate on"
        )

    def _fastest(self):
        """The model, compiled if it is faster so; its pace; both paces in words."""
        model = self._made()
        eager = self._pace(model)
        words = f"{1e3 * eager:.3g} ms"
        if self.sizes.compiler is None:
            return model, eager, words
        begin = time.monotonic()
        try:
            model.compile_blocks(backend=self.sizes.compiler, dynamic=False)
            with torch.no_grad():
                model.loss(*self._batch())
            compiled = self._pace(model)
        except Exception as error:
            # the runs take longer, that is all
            traceback.print_exc()
            return self._made(), eager, f"{words}, not compiled: {type(error).__name__}"
        took = time.monotonic() - begin
        words += f", {1e3 * compiled:.3g} ms compiled in {took:.0f} s"
        return (model, compiled, words) if compiled < eager else (self._made(), eager, words)

    def _made(self):
        s = self.sizes
        options = {"heads": s.heads, "dtype": s.dtype and getattr(torch, s.dtype), "std": s.std}
        return make_model(s.layers, s.width, s.context, SEED, self.device, **options)

    def _batch(self):
        generator = torch.Generator(self.device).manual_seed(SEED)
        s = self.sizes
        return sample(self.text.train, s.batch, s.context, generator, self.device)

    def _pace(self, model):
        """Seconds of a forward and a backward pass."""
        batch = self._batch()
        for count in (2, 5):
            begin = time.perf_counter()
            for _ in range(count):
                loss = model.loss(*batch)
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
        s = self.sizes
        self.model.load_state_dict(self.start)
        begin = time.monotonic()
        *names, evaluations = planned
        run = make_run(self.model, *names, self.device)
        train(
            [run],
            self.text,
            steps=planned.steps,
            batch=s.batch,
            context=s.context,
            seed=SEED,
            device=self.device,
            evaluations=evaluations,
            validation=s.validation,
        )
        took = time.monotonic() - begin
        self.pace = took / planned.steps
        final = run.final()
        kept = {name: getattr(run, name) for name in ("steps", "at_x", "at_y", "train", "diverged")}
        kept["train"] = [round(loss, 4) for loss in run.train]
        return lm_report.strict(
            {
                **{"name": run.name, "key": self.key(planned), **kept, "final": final},
                **{"share": final["optimizer_ms"] / final["step_ms"], "seconds": took},
                **{"torch": torch.__version__, "corpus": self.text.name, "about": self.about},
            }
        )


def best(lines):
    """The lr of the run that ends lowest; None if no run has ended, or all have diverged."""
    ended = [line for line in lines if line and line["final"]["loss_x"] is not None]
    key = min(ended, key=lambda line: line["final"]["loss_x"], default={"key": {}})["key"]
    return key.get("lr")


def run(settings, *bases, sizes=None, device="cuda"):
    """Of the bases that are named, or of all."""
    end = time.monotonic() + settings.seconds
    if settings.small:
        # of a model this small more of them wait for each other
        torch.set_num_threads(1)
    sizes = sizes or (BRIEF if settings.brief else SMALL if settings.small else Sizes())
    text = installed_python(sizes.corpus, [ROOT / "examples"] if settings.brief else None)
    check_length(text, sizes.context)
    trainer = Trainer(sizes, text, torch.device(device))
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
