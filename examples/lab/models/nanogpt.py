# SPDX-License-Identifier: MIT
"""The models of the NanoGPT speedrun: of the EMA-Nesterov paper, and of the optimizer benchmark."""

import math

import torch.nn.functional as F
from torch import nn

from .layers import attend, draw, frequencies, half_of_frequencies, plain_rms_norm, rotate
from .options import check_counts, check_multiple

EPS = 1e-6
# the benchmark's, in its attention and of its logits
SCALE, CAP = 0.12, 15.0


class PaperBlock(nn.Module):
    """Rotary attention, scaled down by the number of layers, and a two-layer network of GELU."""

    def __init__(self, width, heads, layers):
        super().__init__()
        self.heads = heads
        self.scale = (2 * layers) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, h):
        qkv = self.qkv(plain_rms_norm(h, EPS)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.unbind(2)
        mixed = attend(rotate(q, frequencies), rotate(k, frequencies), v)
        h = h + self.scale * self.proj(mixed)
        return h + self.down(F.gelu(self.up(plain_rms_norm(h, EPS))))


class NanoGPT(nn.Module):
    """The 124M model of the EMA-Nesterov paper's NanoGPT runs.

    GPT-2's sizes with rotary positions, RMS norms without weights, no biases, and a head tied to
    the embedding. It begins as PyTorch begins layers, the embedding as it begins a head.

    Args:
        layers: number of blocks.
        heads: of the attention; each has an even size.
        width: size of the residual stream, a multiple of ``heads``.
        vocabulary: number of tokens.
    """

    def __init__(self, layers=12, heads=12, width=768, vocabulary=50_257):
        check_counts(layers=layers, heads=heads, width=width, vocabulary=vocabulary)
        check_multiple("width", width, "2 * heads", 2 * heads)
        super().__init__()
        self.split_rules = {r"qkv\.weight": {"split": 3}}
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.kaiming_uniform_(self.embed.weight, a=math.sqrt(5))
        self.blocks = nn.ModuleList(PaperBlock(width, heads, layers) for _ in range(layers))

    def forward(self, inputs):
        """Logits of the next token, (batch, context, vocabulary), for inputs (batch, context)."""
        h = self.embed(inputs)
        for block in self.blocks:
            h = block(h)
        return F.linear(plain_rms_norm(h, EPS), self.embed.weight)


class BenchmarkBlock(nn.Module):
    """Attention of normalised, half-rotary queries and keys, and a network of squared ReLU."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, h):
        x = self.norm1(h)
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        q, k = (rotate(plain_rms_norm(each), half_of_frequencies) for each in (q, k))
        h = h + self.proj(attend(q, k, v, SCALE))
        return h + self.down(F.relu(self.up(self.norm2(h))).square())


class BenchmarkGPT(nn.Module):
    """The 162M model of the NanoGPT optimizer benchmark (modded-nanogpt, track 3).

    Heads of 128, RMS norms with weights, biases, an untied head whose logits stay within 15. What
    is added to the residual stream, and the head, begin at zero; embeddings with a deviation of 1,
    other matrices of sqrt(0.33 / inputs). There the embedding is kept in bfloat16, here in
    float32.

    Args:
        layers: number of blocks.
        heads: of the attention; the size of each is a multiple of 4.
        width: size of the residual stream, a multiple of ``heads``.
        vocabulary: number of tokens; GPT-2's, padded.
    """

    def __init__(self, layers=12, heads=6, width=768, vocabulary=50_304):
        check_counts(layers=layers, heads=heads, width=width, vocabulary=vocabulary)
        check_multiple("width", width, "4 * heads", 4 * heads)
        super().__init__()
        self.split_rules = {}
        self.embed = nn.Embedding(vocabulary, width)
        self.norm1 = nn.RMSNorm(width)
        self.blocks = nn.ModuleList(BenchmarkBlock(width, heads) for _ in range(layers))
        self.norm2 = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary)
        # deviations of matrices by the last part of their layer's name; of others by their inputs
        known = {"proj": 0.0, "down": 0.0, "head": 0.0, "embed": 1.0}
        inputs = (0.33 / width) ** 0.5
        draw(self, lambda name: known.get(name.split(".")[-2], inputs))

    def forward(self, inputs):
        """Logits of the next token, (batch, context, vocabulary), for inputs (batch, context)."""
        h = self.norm1(self.embed(inputs))
        for block in self.blocks:
            h = block(h)
        logits = self.head(self.norm2(h)).float()
        return CAP * logits * (logits.square() + CAP**2).rsqrt()
