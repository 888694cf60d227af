# SPDX-License-Identifier: MIT
"""A model that FSDP2 spreads over processes, and runs of it with the same data everywhere."""

import functools

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import mse_loss

import emanest
import helpers
from helpers import METHODS, bits

LR = 0.05


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 10), nn.Tanh(), nn.Linear(10, 3))


def sharded(plain):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in plain:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(plain, mesh=mesh)


def muon(module, method, cls=emanest.Muon):
    """On the matrices in the middle; AdamW for the rest, in the same optimizer."""
    return cls(groups_of(module), lr=LR, lookahead=METHODS[method])


def groups_of(module):
    # said explicitly, since wrappers fill in the options of the first base
    return emanest.split_params(module, verbose=False, adamw={"lr": LR, "weight_decay": 0.1})


def normuon(module, method):
    return muon(module, method, emanest.NorMuon)


# on a module
MAKERS = {
    "adamw": lambda module, method: helpers.adamw(module.parameters(), METHODS[method]),
    "sgd": lambda module, method: helpers.sgd(module.parameters(), METHODS[method]),
    "wrap": lambda module, method: helpers.wrap_adamw(module.parameters(), METHODS[method]),
    "muon": muon,
    "normuon": normuon,
    "aurora": functools.partial(muon, cls=emanest.Aurora),
}


def train(module, optimizer, steps, each=lambda t: None):
    """Steps of a range on data that all processes have in common, so that averages are exact."""
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        inputs, targets = (
            torch.randn(4, 6, generator=generator),
            torch.randn(4, 3, generator=generator),
        )
        mse_loss(module(inputs), targets).backward()
        each(t)
        optimizer.step()
        optimizer.zero_grad()


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def content(module, optimizer):
    """Parameters by name and all state as wholes, and the groups' plain entries."""
    found = {}
    for name, p in module.named_parameters():
        entries = {"value": p.detach(), **optimizer.state.get(p, {})}
        found.update({(name, k): bits(whole(v)) for k, v in entries.items()})
    for i, group in enumerate(optimizer.param_groups):
        # some of torch's ways make lists of tuples
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in group.items()}
        found.update({(f"group {i}", k): v for k, v in plain.items() if not k.startswith("param")})
    return found
