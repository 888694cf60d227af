# SPDX-License-Identifier: MIT
"""The options of torch.optim's AdamW and SGD, for comparisons with ours."""

import pytest
import torch

import emanest

OPTIONS = {
    "AdamW": {
        "defaults": {},
        "betas 0, 0.99": {"betas": (0.0, 0.99)},
        "betas 0.95, 0.999": {"betas": (0.95, 0.999)},
        "betas 0, 0": {"betas": (0.0, 0.0)},
        "eps 1e-3": {"eps": 1e-3},
        "eps 1e-10": {"eps": 1e-10},
        "no decay": {"weight_decay": 0.0},
        "decay": {"weight_decay": 0.1},
        "lr": {"lr": 0.03},
        "amsgrad": {"amsgrad": True},
        "maximize": {"maximize": True},
        "all": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "maximize": True},
        "foreach": {"foreach": True},
        "fused": {"fused": True},
    },
    "SGD": {
        "defaults": {},
        "lr": {"lr": 0.1},
        "decay": {"weight_decay": 0.1},
        "lr, decay": {"lr": 0.1, "weight_decay": 0.1},
        "maximize": {"lr": 0.1, "maximize": True},
        "dampening alone": {"dampening": 0.1},
        "momentum": {"momentum": 0.9},
        "momentum, decay": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        "dampening": {"momentum": 0.9, "dampening": 0.1},
        "nesterov": {"momentum": 0.9, "nesterov": True},
        "nesterov, decay": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        "all": {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "maximize": True},
        "foreach": {"lr": 0.1, "momentum": 0.9, "foreach": True},
        "fused": {"lr": 0.1, "momentum": 0.9, "fused": True},
    },
}

each_class = pytest.mark.parametrize("name", OPTIONS)
each_option = pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n in OPTIONS for o in OPTIONS[n]]
)


def ours(name):
    return getattr(emanest, name)


def torchs(name):
    return getattr(torch.optim, name)
