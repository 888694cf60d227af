# SPDX-License-Identifier: MIT
"""Llama at the sizes that papers on optimizers train on C4."""

import torch.nn.functional as F
from torch import nn

from .layers import attend, draw, frequencies, rotate
from .options import check_counts, check_multiple

EPS = 1e-6
STD = 0.02

# the sizes of GaLore's configurations, which the EMA-Nesterov paper takes over
SIZES = {
    "60m": {"layers": 8, "heads": 8, "width": 512, "hidden": 1376},
    "130m": {"layers": 12, "heads": 12, "width": 768, "hidden": 2048},
    "350m": {"layers": 24, "heads": 16, "width": 1024, "hidden": 2736},
    "1b": {"layers": 24, "heads": 32, "width": 2048, "hidden": 5461},
}


class Block(nn.Module):
    """Rotary attention and a gated network, each normalised before and added after."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, EPS)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, EPS)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, h):
        x = self.norm1(h)
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        h = h + self.proj(attend(rotate(q, frequencies), rotate(k, frequencies), v))
        x = self.norm2(h)
        return h + self.down(F.silu(self.gate(x)) * self.up(x))


class Llama(nn.Module):
    """Llama: RMS norm, rotary positions, SwiGLU, no biases, an untied head.

    All matrices begin with a deviation of 0.02.

    Args:
        layers: number of blocks.
        heads: of the attention; each has an even size.
        width: size of the residual stream, a multiple of ``heads``.
        hidden: size of the gated network.
        vocabulary: number of tokens.
    """

    def __init__(self, layers, heads, width, hidden, vocabulary=32_000):
        check_counts(layers=layers, heads=heads, width=width, hidden=hidden, vocabulary=vocabulary)
        check_multiple("width", width, "2 * heads", 2 * heads)
        super().__init__()
        self.split_rules = {}
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, EPS)
        self.head = nn.Linear(width, vocabulary, bias=False)
        draw(self, lambda name: STD)

    def forward(self, inputs):
        """Logits of the next token, (batch, context, vocabulary), for inputs (batch, context)."""
        h = self.embed(inputs)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))
