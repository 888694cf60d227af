# SPDX-License-Identifier: MIT
"""The lab's models in their small forms, batches of them, and steps of training."""

import torch
import torch.nn.functional as F

from examples.lab.models import MODELS, make

IMAGES = [name for name, row in MODELS.items() if "shape" in row.small]
TEXTS = [name for name in MODELS if name not in IMAGES]


def small(name, seed=0):
    return make({"name": name, **MODELS[name].small}, seed)


def batch(name, size=8):
    """Of a model in its small form: inputs and targets."""
    options = MODELS[name].small
    if name in IMAGES:
        return torch.randn(size, *options["shape"]), torch.randint(options["classes"], (size,))
    tokens = torch.randint(options["vocabulary"], (size, 9))
    return tokens[:, :-1], tokens[:, 1:]


def loss(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, -2).float(), targets.flatten())


def step(optimizer, model, inputs, targets, steps):
    """Losses before each step, and after the last."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model, inputs, targets)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return [*losses, loss(model, inputs, targets).item()]
