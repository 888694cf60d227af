# SPDX-License-Identifier: MIT
"""What the tests of all frameworks train: small models, optimizers, batches."""

import torch
from torch import nn

import emanest
from helpers import METHODS, bits

# ahead along a direction; positions, every step and every few
LOOKAHEADS = {name: METHODS[name] for name in ("ema", "gpa", "lookahead")}


def _adamw(model, method):
    return emanest.AdamW(model.parameters(), lr=0.05, lookahead=method)


def _muon(model, method):
    groups = emanest.split_params(model, verbose=False)
    return emanest.Muon(groups, lr=0.02, lookahead=method)


def _wrap(model, method):
    return emanest.Wrap(torch.optim.AdamW(model.parameters(), lr=0.05), method)


OPTIMIZERS = {"adamw": _adamw, "muon": _muon, "wrap": _wrap}


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def batches(count, seed=2):
    """Pairs of input and target, as a dataset: 4 rows belong to one batch."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count * 4, 4, generator=generator)
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True).sin())


def loader(count):
    return torch.utils.data.DataLoader(batches(count), batch_size=4)


def weights(state_dict):
    """A model's or a checkpoint's tensors, by name, bit for bit."""
    return {name: bits(value) for name, value in state_dict.items()}


def in_train_mode(holder):
    """The mode of all optimizers that something holds; they have one."""
    (mode,) = {each.param_groups[0]["train_mode"] for each in emanest.find_all(holder)}
    return mode
