"""A small decoder-only transformer over bytes."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

BYTES = 256
HEADS = 4


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
    """Predicts each next byte from the bytes before it.

    Args:
        layers: number of blocks, at least 1.
        width: size of the residual stream, a multiple of ``heads``.
        context: longest input, in bytes.
        heads: of the attention.
        dtype: of products, by autocast; None: that of the weights.
        std: of the weights at the start; of those whose products are added to the residual stream
            it is divided by sqrt(2 * layers). GPT-2's is 0.02. None: as PyTorch starts them.
    """

    def __init__(self, layers, width, context, heads=HEADS, dtype=None, std=None):
        super().__init__()
        self.dtype = dtype
        self.embed = nn.Embedding(BYTES, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        if std is not None:
            for name, weight in self.named_parameters():
                share = (2 * layers) ** -0.5 if name.endswith(("proj.weight", "down.weight")) else 1
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=share * std)

    def forward(self, inputs):
        """Logits of the next byte, (batch, context, 256), for inputs (batch, context)."""
        h = self.embed(inputs) + self.position.weight[: inputs.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    def loss(self, inputs, targets):
        """Mean cross-entropy in nats per byte; both arguments are (batch, context)."""
        casts = contextlib.nullcontext()
        if self.dtype is not None:
            casts = torch.autocast(inputs.device.type, self.dtype)
        with casts:
            return F.cross_entropy(self(inputs).flatten(0, 1), targets.flatten())

    def compile_blocks(self, **options):
        """Compile the blocks in place, as ``torch.compile`` with these options.

        They are alike: what is compiled for one serves all, in a fraction of the time that the
        whole model takes. What lies between them could be fused with little.
        """
        for block in self.blocks:
            block.compile(**options)


def make_model(layers, width, context, seed, device, **options):
    """The model with initial weights that depend on ``seed`` alone, not on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ByteTransformer(layers, width, context, **options).to(device)
