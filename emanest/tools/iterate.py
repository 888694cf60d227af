# SPDX-License-Identifier: MIT
"""A model at x: its state dict, its BatchNorm statistics."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import swa_utils

from .find import at_iterate, find_all

_BatchNorm = nn.modules.batchnorm._BatchNorm


def iterate_state_dict(model: nn.Module, optimizer: object) -> dict[str, Any]:
    """The state dict of a model at x; the model and the optimizer stay as they are.

    Buffers, and parameters that the optimizer does not step, are in it as they are. Tied parameters
    share memory in it, as in the model. It shares none with the model.

    Memory: one copy of the model, and during the call one value of its dtype for every parameter
    that is ahead (``Optimizer.eval``).

    Args:
        model: an ``nn.Module``, wrapped or not; its own ``state_dict()`` names the entries.
        optimizer: an optimizer of this library, or what holds one or several (``find``).

    Raises:
        TypeError: no optimizer of this library was found.
        ValueError: it has none of the model's parameters.
    """
    _check_pair(model, optimizer)
    with at_iterate(optimizer):
        return copy.deepcopy(model.state_dict())


def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    optimizer: object,
    device: torch.device | str | int | None = None,
) -> None:
    """Recompute the running statistics of BatchNorm layers at x, where the model is evaluated.

    While training they are collected at y. ``torch.optim.swa_utils.update_bn`` inside
    ``at_iterate``: one pass over the loader in training mode without gradients, statistics averaged
    over all batches. Afterwards every module is in the mode it was in and parameters hold what they
    held, bit for bit. The statistics stay x's until the next forward pass in training mode mixes
    those of y into them again: call this before each evaluation that matters, and before saving.

    Memory: during the call, one value of its dtype for every parameter that is ahead.

    Args:
        loader: yields batches: a tensor, or a list or tuple whose first item is one.
        model: an ``nn.Module``; without BatchNorm layers nothing happens.
        optimizer: an optimizer of this library, or what holds one or several (``find``).
        device: where batches are sent first, if not None.

    Raises:
        TypeError: no optimizer of this library was found.
        ValueError: it has none of the model's parameters, or the loader is empty. The statistics
            are what they were, as after any other error.
    """
    _check_pair(model, optimizer)
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    before = [(layer, layer.momentum, [b.clone() for b in layer.buffers()]) for layer in layers]
    try:
        with at_iterate(optimizer):
            # names of devices do as well
            swa_utils.update_bn(_not_empty(loader), model, device)  # pyright: ignore[reportArgumentType]
    except BaseException:
        for layer, momentum, statistics in before:
            layer.momentum = momentum
            for buffer, value in zip(layer.buffers(), statistics, strict=True):
                buffer.copy_(value)
        raise
    finally:
        for module, mode in modes:
            module.training = mode


def _not_empty(loader):
    empty = True
    for batch in loader:
        empty = False
        yield batch
    if empty:
        raise ValueError("loader is empty (has it been consumed already?)")


def _check_pair(model, optimizer):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    groups = [group for each in find_all(optimizer) for group in each.param_groups]
    stepped = {p for group in groups for p in group["params"]}
    if stepped.isdisjoint(model.parameters()):
        raise ValueError(
            "the optimizer has none of the model's parameters: pass the model that it steps. One "
            "that steps copies of them (DeepSpeed, Megatron) cannot put the model at x by itself"
        )
