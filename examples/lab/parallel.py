# SPDX-License-Identifier: MIT
"""One run on several processes, as ``torchrun`` starts them: each has a share of every batch."""

import contextlib
import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

# kind of device -> what its processes talk over
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


class ParallelError(ValueError):
    """Processes that cannot train together; the message says how to start them."""


class World(NamedTuple):
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        device: what this one computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self):
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, *tensors):
        """This process's part of tensors (batch, ...), on its device.

        Parts are of one size, so that the mean of the processes' gradients is the batch's.
        """
        for tensor in tensors:
            if len(tensor) % self.size:
                raise ParallelError(
                    f"batch must be a multiple of {self.size}, the processes, got {len(tensor)}"
                )
        parts = [tensor.chunk(self.size)[self.rank] for tensor in tensors]
        if self.device.type == "cuda":
            # from memory that is pinned and without gaps, the host does not wait for the copy
            pinned = [part.contiguous().pin_memory() for part in parts]
            return [part.to(self.device, non_blocking=True) for part in pinned]
        return [part.to(self.device) for part in parts]

    def total(self, value):
        """The sum of a number, or of a tensor of any shape, over all processes, in float64."""
        value = torch.as_tensor(value, dtype=torch.float64, device=self.device)
        if self.size > 1:
            # what is given stays as it is
            value = value.clone()
            dist.all_reduce(value)
        return value

    def mean(self, value):
        """The mean of a number or tensor over all processes: of a loss, that of the whole batch."""
        return self.total(value) / self.size


@contextlib.contextmanager
def processes(device="cpu"):
    """The world that the environment describes; without ``torchrun`` this process alone.

    Args:
        device: "cpu", over gloo, or "cuda", over nccl, with one GPU for each process of a machine.
    """
    device = torch.device(device)
    started = "RANK" in os.environ and not dist.is_initialized()
    if started:
        if device.type not in BACKENDS:
            raise ParallelError(
                f"device must be one of {', '.join(BACKENDS)} under torchrun, got {str(device)!r}"
            )
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group(BACKENDS[device.type])
    try:
        if dist.is_initialized():
            yield World(dist.get_rank(), dist.get_world_size(), device)
        else:
            yield World(0, 1, device)
    finally:
        if started:
            dist.destroy_process_group()


def distribute(model, how, world, dtype=None):
    """The model, as the processes of ``world`` train it together; make the optimizer afterwards.

    Args:
        model: of this lab; every process has made the same.
        how: "none": for one process; "ddp": a copy in each, whose gradients are averaged; "fsdp2":
            weights, gradients and the optimizer's state are sharded, by the model's ``blocks``.
        world: of ``processes``.
        dtype: for "fsdp2": what weights are gathered and computed in; gradients are added up in
            float32. None: as they are. With the others ``torch.autocast`` does that.
    """
    if how not in WAYS:
        raise ParallelError(f"how must be one of {', '.join(WAYS)}, got {how!r}")
    if how == "none" and world.size > 1:
        raise ParallelError(f"how is 'none' with {world.size} processes: choose ddp or fsdp2")
    if how != "none" and not dist.is_initialized():
        raise ParallelError(f"how is {how!r} without processes: start with torchrun")
    if how != "fsdp2" and dtype is not None:
        raise ParallelError(f"dtype is of how='fsdp2' alone, got how={how!r}: use torch.autocast")
    return WAYS[how](model, world, dtype)


def inside(model):
    """The model itself, with its ``blocks`` and ``split_rules``: what DDP has wrapped."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _alone(model, world, dtype):
    return model.to(world.device)


def _ddp(model, world, dtype):
    gpus = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model.to(world.device), device_ids=gpus)


def _fsdp2(model, world, dtype):
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy()
    if dtype is not None:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # torch keeps the outermost weights gathered from an evaluation to the next step, and does not
    # see that the optimizer has gone from x to y in between
    return fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


WAYS = {"none": _alone, "ddp": _ddp, "fsdp2": _fsdp2}
