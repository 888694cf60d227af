# SPDX-License-Identifier: MIT
"""FSDP2 with Muon and a lookahead: sharded, evaluated at x, saved and resumed by all processes.

    torchrun --nproc-per-node 2 -m examples.fsdp2                  # two processes of a CPU, gloo
    torchrun --nproc-per-node 8 -m examples.fsdp2 --device cuda    # eight GPUs, nccl
    python -m examples.fsdp2                                       # the same run in one process

Started again, a run goes on from its last checkpoint, on any number of processes; on the number
that wrote it, to the same bits. Lines marked ``emanest:`` are what the lookahead takes.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import emanest
from examples.lab.models.gpt2 import GPT2  # your model


@dataclasses.dataclass
class Settings:
    out: str = "build/fsdp2"
    layers: int = 2
    heads: int = 4
    width: int = 64
    context: int = 32
    vocabulary: int = 64
    batch: int = 16  # sequences of a step, of all processes together
    steps: int = 200
    every: int = 50  # steps from one evaluation and checkpoint to the next
    lr: float = 0.02  # of Muon
    adamw_lr: float = 3e-3
    clip: float = 1.0
    device: str = "cpu"
    seed: int = 0


def sequences(settings, number, device, rank, size):
    """This process's share of a made-up batch: each value follows from the two before it."""
    draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    rows = torch.randint(settings.vocabulary, (settings.batch, 2), generator=draw)
    while rows.shape[1] <= settings.context:
        rows = torch.cat((rows, (rows[:, -1:] + rows[:, -2:-1] + 1) % settings.vocabulary), 1)
    rows = rows.chunk(size)[rank].to(device)
    return rows[:, :-1], rows[:, 1:]


def shard(model, size, kind):
    mesh = init_device_mesh(kind, (size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    # emanest: True, since the outermost weights would stay gathered from an evaluation at x to the
    # next step, which wants y
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


class Trainer:
    """All that a run consists of, in each of its processes."""

    def __init__(self, settings):
        self.settings = settings
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if settings.batch % self.size:
            raise ValueError(f"batch must be a multiple of {self.size}, got {settings.batch}")
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)  # the same first weights everywhere
        sizes = ("layers", "heads", "width", "context", "vocabulary")
        model = GPT2(**{name: getattr(settings, name) for name in sizes}).to(self.device)
        self.model = shard(model, self.size, self.device.type)
        # emanest: groups of the sharded parameters; every matrix is put together in one process
        groups = emanest.split_params(self.model, adamw={"lr": settings.adamw_lr})
        ahead = emanest.EMANesterov.for_run(settings.steps, decay=0.95)
        self.optimizer = emanest.Muon(groups, lr=settings.lr, lookahead=ahead)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.1, settings.steps)
        self.step = 0

    def mean(self, loss):
        """The mean of all processes' losses: that of the whole batch."""
        loss = loss.detach().clone()
        dist.all_reduce(loss)
        return loss.item() / self.size

    def loss(self, number):
        inputs, targets = sequences(self.settings, number, self.device, self.rank, self.size)
        return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())

    def advance(self):
        loss = self.loss(self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        return self.mean(loss)

    @torch.no_grad()
    def evaluate(self):
        """The loss at x, and a file of the whole model at x; in all processes alike."""
        self.model.eval()
        # emanest: each process goes to x with its own shards, without communication
        with self.optimizer.at_iterate():
            loss = self.mean(self.loss(1_000_000))  # a batch that is never trained on
            whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights = get_model_state_dict(self.model, options=whole)  # all of them in process 0
            if self.rank == 0:
                torch.save(weights, Path(self.settings.out, "model.pt"))
        self.model.train()
        return loss

    def state(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        progress = {"schedule": self.schedule.state_dict(), "step": self.step}
        return {"model": model, "optimizer": optimizer, "progress": progress}

    def checkpoints(self):
        """Folders of all that are whole, the newest last."""
        return sorted(path.parent for path in Path(self.settings.out).glob("step-*/.metadata"))

    def save(self):
        """Write a checkpoint, each process its shards; the one before it goes."""
        # emanest: in train mode, not inside at_iterate
        folder = Path(self.settings.out, f"step-{self.step:08}")
        dcp.save(self.state(), checkpoint_id=folder)
        if self.rank == 0:
            for old in self.checkpoints()[:-1]:
                shutil.rmtree(old)

    def load(self):
        """Go on from the last checkpoint, if there is one."""
        found = self.checkpoints()
        if found:
            state = self.state()
            dcp.load(state, checkpoint_id=found[-1])
            names = {"model_state_dict": "model", "optim_state_dict": "optimizer"}
            parts = {name: state[part] for name, part in names.items()}
            set_state_dict(self.model, self.optimizer, **parts)
            self.schedule.load_state_dict(state["progress"]["schedule"])
            self.step = state["progress"]["step"]


def run(settings, until=None):
    """Train to the end of a run, or to step ``until`` of it; the trainer, and what was printed."""
    trainer, lines = Trainer(settings), []
    Path(settings.out).mkdir(parents=True, exist_ok=True)
    trainer.load()
    while trainer.step < (until or settings.steps):
        loss = trainer.advance()
        if trainer.step % settings.every == 0 or trainer.step == settings.steps:
            lines.append((trainer.step, loss, trainer.evaluate()))
            if trainer.rank == 0:
                print("step {}: loss {:.4f}, at x {:.4f}".format(*lines[-1]), flush=True)
            trainer.save()
    return trainer, lines


@contextlib.contextmanager
def processes(device):
    """The group that torchrun has started, or one of this process; the device of this process."""
    alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    started = "RANK" in os.environ
    backend = {"cpu": "gloo", "cuda": "nccl"}[device]
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, **({} if started else alone))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def main(arguments=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=" ")
    settings = Settings(**vars(parser.parse_args(arguments)))
    with processes(settings.device) as device:
        run(dataclasses.replace(settings, device=device))


if __name__ == "__main__":
    main()
