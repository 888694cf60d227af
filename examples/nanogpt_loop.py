# SPDX-License-Identifier: MIT
"""The loop of nanoGPT-style trainers, with lookahead; lines marked ``emanest:`` are what it takes.

    python -m examples.nanogpt_loop                        # bytes of Python's own source, on a CPU
    python -m examples.nanogpt_loop --optimizer muon --lr 0.02 --out build/with_muon
    python -m examples.nanogpt_loop --data FOLDER --token_type uint16 --vocabulary 50304

FOLDER has train.bin and val.bin, as nanoGPT's prepare.py writes them. A run that was interrupted
goes on from its last checkpoint when it is started again, and ends in the same bits. Several GPUs:
examples/fsdp2.py and docs/distributed.md.
"""

import argparse
import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import emanest
from examples.lab.data.corpora import python
from examples.lab.models.gpt2 import GPT2  # your model


@dataclasses.dataclass
class Settings:
    out: str = "build/nanogpt_loop"
    data: str = ""  # folder of train.bin and val.bin; else bytes of Python's own source
    token_type: str = "uint8"  # of the files: uint16 for GPT-2's tokens
    vocabulary: int = 256
    layers: int = 2
    heads: int = 4
    width: int = 64
    context: int = 64
    batch: int = 16  # sequences of a step
    micro: int = 8  # sequences of a backward pass; they are accumulated
    steps: int = 300
    warmup: int = 30
    optimizer: str = "adamw"
    lr: float = 2e-3  # of AdamW; about 0.02 for the matrices of Muon
    adamw_lr: float = 2e-3  # of what is no matrix, beside Muon
    min_lr: float = 0.1  # times the learning rate, at the end
    weight_decay: float = 0.1
    clip: float = 1.0
    stepsize: float = 0.5  # of the lookahead; 0: the optimizer without it
    every: int = 100  # steps from one evaluation and checkpoint to the next
    validation: int = 8  # batches
    dtype: str = "float32"  # of autocast: bfloat16, or float16 with a scaler
    device: str = "cpu"
    seed: int = 0


def tokens(settings, side):
    """A row of tokens that stays in its file: only what a batch takes is read."""
    folder = Path(settings.data or settings.out)
    if not settings.data and not (folder / "val.bin").exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = python()
        text.train.numpy().tofile(folder / "train.bin")
        text.validation.numpy().tofile(folder / "val.bin")
    return np.memmap(folder / f"{side}.bin", settings.token_type, mode="r")


def batch_of(row, settings, *key):
    """Sequences at random places, which follow from the seed and the key (a step) alone."""
    draw = np.random.default_rng([settings.seed, *key])
    places = draw.integers(len(row) - settings.context, size=settings.batch)
    taken = np.stack([row[k : k + settings.context + 1] for k in places]).astype(np.int64)
    taken = torch.from_numpy(taken).to(settings.device)
    return taken[:, :-1], taken[:, 1:]


def optimizer_of(settings, model):
    # emanest: windows by the length of the run; compare with a sweep of lr (docs/methods.md)
    ahead = emanest.EMANesterov.for_run(settings.steps, stepsize=settings.stepsize)
    common = {"lr": settings.lr, "lookahead": ahead if settings.stepsize else None}
    if settings.optimizer == "muon":
        # emanest: hidden matrices to Muon, the rest to AdamW, in one optimizer
        adamw = {"lr": settings.adamw_lr, "betas": (0.9, 0.95), "weight_decay": 0.0}
        groups = emanest.split_params(model, adamw=adamw)
        return emanest.Muon(groups, weight_decay=settings.weight_decay, **common)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # emanest: in place of torch.optim.AdamW(groups, lr=..., betas=..., fused=True)
    return emanest.AdamW(groups, betas=(0.9, 0.95), **common)


def cosine(settings, step):
    """What every group's own learning rate is multiplied with: Muon's and AdamW's alike."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.min_lr + (1 - settings.min_lr) * (1 + math.cos(math.pi * min(1, done))) / 2


class Trainer:
    """All that a run consists of; ``advance`` takes a step, ``save`` and ``load`` resume it."""

    def __init__(self, settings):
        self.settings = settings
        self.train, self.validation = tokens(settings, "train"), tokens(settings, "val")
        torch.manual_seed(settings.seed)
        sizes = ("layers", "heads", "width", "context", "vocabulary")
        self.model = GPT2(**{k: getattr(settings, k) for k in sizes}).to(settings.device)
        self.optimizer = optimizer_of(settings, self.model)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: cosine(settings, step)
        )
        kind = torch.device(settings.device).type
        self.scaler = torch.amp.GradScaler(kind, enabled=settings.dtype == "float16")
        cast = getattr(torch, settings.dtype)
        self.casts = torch.autocast(kind, cast, enabled=cast != torch.float32)
        self.step = 0

    def loss(self, inputs, targets):
        with self.casts:
            logits = self.model(inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def advance(self):
        """Take one step; the loss of its batch, and the norm of the gradient before clipping."""
        inputs, targets = batch_of(self.train, self.settings, self.step)
        total, micro = 0.0, self.settings.micro
        for part in zip(inputs.split(micro), targets.split(micro), strict=True):
            loss = self.loss(*part) * (len(part[0]) / len(inputs))
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
        self.scaler.unscale_(self.optimizer)
        # gradients are those at y; nothing else changes (of Muon's: docs/recipes.md)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        return total, norm

    @torch.no_grad()
    def evaluate(self):
        """The loss at x on held-out batches, the same at every evaluation."""
        self.model.eval()
        # emanest: the parameters hold y while training; inside they hold x, and y again afterwards
        with self.optimizer.at_iterate():
            batches = (
                batch_of(self.validation, self.settings, 0, k)
                for k in range(self.settings.validation)
            )
            losses = [self.loss(*batch) for batch in batches]
            torch.save(self.model.state_dict(), Path(self.settings.out, "model.pt"))  # x, to use
        self.model.train()
        return torch.stack(losses).mean().item()

    def parts(self):
        names = "model", "optimizer", "schedule", "scaler"
        return {name: getattr(self, name) for name in names}

    def save(self):
        """Write all that the run goes on from: y, with the optimizer's state beside it."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        state |= {"step": self.step, "settings": dataclasses.asdict(self.settings)}
        state["random"] = torch.get_rng_state()  # a model may draw, for dropout
        if torch.cuda.is_available():
            state["random_cuda"] = torch.cuda.get_rng_state_all()
        path = Path(self.settings.out, "checkpoint.pt")
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)  # whole, or not there

    def load(self):
        """Go on from the checkpoint, if there is one."""
        path = Path(self.settings.out, "checkpoint.pt")
        if path.exists():
            state = torch.load(path, map_location=self.settings.device, weights_only=True)
            if state["settings"] != dataclasses.asdict(self.settings):
                raise ValueError(f"{path} is of other settings: give another --out, or remove it")
            for name, part in self.parts().items():
                part.load_state_dict(state[name])
            self.step = state["step"]
            torch.set_rng_state(state["random"].cpu())
            if "random_cuda" in state:
                torch.cuda.set_rng_state_all([each.cpu() for each in state["random_cuda"]])


def run(settings, until=None):
    """Train to the end of a run, or to step ``until`` of it; the trainer, and what was printed."""
    trainer, lines = Trainer(settings), []
    trainer.load()
    print(f"from step {trainer.step} to {until or settings.steps}, in {settings.out}")
    while trainer.step < (until or settings.steps):
        loss, norm = trainer.advance()
        if trainer.step % settings.every == 0 or trainer.step == settings.steps:
            line = trainer.step, loss.item(), norm.item(), trainer.evaluate()
            print("step {}: loss {:.4f}, gradient {:.3f}, validation at x {:.4f}".format(*line))
            lines.append(line)
            trainer.save()
    return trainer, lines


def main(arguments=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=" ")
    run(Settings(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
