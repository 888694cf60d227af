# SPDX-License-Identifier: MIT
"""GPT-2: learned positions, layer norm, biases, GELU, and a head tied to the embedding."""

import torch.nn.functional as F
from torch import nn

from .layers import attend, draw
from .options import check_counts, check_multiple

STD = 0.02


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each normalised before and added after."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, h):
        q, k, v = self.qkv(self.norm1(h)).unflatten(2, (3, self.heads, -1)).unbind(2)
        h = h + self.proj(attend(q, k, v))
        return h + self.down(F.gelu(self.up(self.norm2(h)), approximate="tanh"))


class GPT2(nn.Module):
    """GPT-2, of 124M parameters unless told otherwise; without dropout.

    Weights begin with a deviation of 0.02; those whose products are added to the residual stream
    with that over sqrt(2 * layers).

    Args:
        layers: number of blocks.
        heads: of the attention.
        width: size of the residual stream, a multiple of ``heads``.
        context: longest input.
        vocabulary: number of tokens. GPT-2 has 50,257; the default is the next multiple of 64.
    """

    def __init__(self, layers=12, heads=12, width=768, context=1024, vocabulary=50_304):
        check_counts(
            layers=layers, heads=heads, width=width, context=context, vocabulary=vocabulary
        )
        check_multiple("width", width, "heads", heads)
        super().__init__()
        self.split_rules = {r"qkv\.weight": {"split": 3}}
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        small = STD * (2 * layers) ** -0.5
        draw(self, lambda name: small if name.endswith(("proj.weight", "down.weight")) else STD)

    def forward(self, inputs):
        """Logits of the next token, (batch, context, vocabulary), for inputs (batch, context)."""
        h = self.embed(inputs) + self.position.weight[: inputs.shape[1]]
        for block in self.blocks:
            h = block(h)
        return F.linear(self.norm(h), self.embed.weight)
