# SPDX-License-Identifier: MIT
"""A small decoder-only transformer, of bytes unless told otherwise."""

import torch.nn.functional as F
from torch import nn

from .options import check_counts, check_multiple, check_std


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each normalised before and added after."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, h):
        batch, context, width = h.shape
        qkv = self.qkv(self.norm1(h)).view(batch, context, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.proj(mixed.transpose(1, 2).reshape(batch, context, width))
        return h + self.down(F.gelu(self.up(self.norm2(h))))


class ByteTransformer(nn.Module):
    """Predicts each next byte, or token, from those before it.

    Args:
        layers: number of blocks, at least 1.
        width: size of the residual stream, a multiple of ``heads``.
        context: longest input.
        heads: of the attention.
        std: of the weights at the start; of those whose products are added to the residual stream
            it is divided by sqrt(2 * layers). GPT-2's is 0.02. None: as PyTorch starts them.
        vocabulary: number of different bytes, or tokens.
    """

    def __init__(self, layers=2, width=64, context=48, heads=4, std=None, vocabulary=256):
        check_counts(
            layers=layers, width=width, context=context, heads=heads, vocabulary=vocabulary
        )
        check_multiple("width", width, "heads", heads)
        super().__init__()
        self.split_rules = {r"qkv\.weight": {"split": 3}}
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if std is not None:
            check_std(std)
            for name, weight in self.named_parameters():
                share = (2 * layers) ** -0.5 if name.endswith(("proj.weight", "down.weight")) else 1
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=share * std)

    def forward(self, inputs):
        """Logits of the next byte, (batch, context, vocabulary), for inputs (batch, context)."""
        h = self.embed(inputs) + self.position.weight[: inputs.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))
