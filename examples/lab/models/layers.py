# SPDX-License-Identifier: MIT
"""What the language models have in common: attention, rotary positions, initial weights."""

import torch
import torch.nn.functional as F
from torch import nn


def attend(q, k, v, scale=None):
    """Causal attention of three tensors (batch, context, heads, size), heads side by side."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


def frequencies(size, device):
    """Angles by which rotary positions turn the pairs of a head from one place to the next."""
    return 10_000.0 ** (torch.arange(0, size, 2, device=device) / -size)


def half_of_frequencies(size, device):
    """Angles of the NanoGPT benchmark: the slower half of the pairs does not turn at all."""
    turning = 1024.0 ** -torch.linspace(0, 1, size // 4, device=device)
    return torch.cat((turning, turning.new_zeros(size // 2 - size // 4)))


def rotate(x, angles):
    """Rotary positions: the pairs of (batch, context, heads, size), each turned with its place.

    Made in float32 at every call: a buffer would be rounded with the model, or stay unwritten where
    the model begins on the meta device.
    """
    places = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
    turned = (places[:, None] * angles(x.shape[-1], x.device))[:, None]
    cos, sin = turned.cos(), turned.sin()
    first, second = x.float().chunk(2, dim=-1)
    pairs = (first * cos - second * sin, first * sin + second * cos)
    return torch.cat(pairs, dim=-1).type_as(x)


def plain_rms_norm(x, eps=None):
    """RMS norm of the last dimension, without weights."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)


@torch.no_grad()
def draw(model, std):
    """Begin with normal matrices of the deviation ``std(name)``, and biases of zero."""
    for name, p in model.named_parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=std(name))
        elif name.endswith("bias"):
            nn.init.zeros_(p)
