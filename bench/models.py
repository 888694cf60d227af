# SPDX-License-Identifier: MIT
"""Shapes of named models: what an optimizer sees of them."""

import math
import random


def gpt2(layers=12, width=768, vocabulary=50257, context=1024):
    """GPT-2 with a tied head (Radford et al. 2019); matrices as (inputs, outputs)."""
    block = [
        *((width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)),
        *((width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)),
    ]
    return [(vocabulary, width), (context, width), *block * layers, (width,), (width,)]


def llama(layers, width, hidden, vocabulary=32000):
    """Llama with an untied head, as GaLore (arXiv 2403.03507) and EMA-Nesterov train it on C4."""
    attention = [(width, width)] * 4
    mlp = [(hidden, width), (hidden, width), (width, hidden)]
    block = [*attention, *mlp, (width,), (width,)]
    return [(vocabulary, width), *block * layers, (width,), (vocabulary, width)]


def gpt2_matrices(layers=12, width=768):
    """What Muon gets of GPT-2, as (outputs, inputs)."""
    return [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers


def tiny(count=1000):
    """Biases, norms and small matrices, 1.8 million parameters: calls cost more than bytes."""
    cycle = [(256,), (1024,), (32, 64), (60, 64)]
    return [cycle[i % len(cycle)] for i in range(count)]


def vectors(count=150):
    """As many tensors as GPT-2 has, of 16 elements each: all that costs is to be called."""
    return [(16,)] * count


def small(count=4000):
    """Ragged vectors of 256 to 4096 elements, always the same ones."""
    draw = random.Random(0)
    return [(draw.randint(256, 4096),) for _ in range(count)]


MODELS = {
    "GPT-2 124M": gpt2(),
    "Llama 60M": llama(8, 512, 1376),
    "Llama 130M": llama(12, 768, 2048),
    "Llama 350M": llama(24, 1024, 2736),
    "Llama 1.3B": llama(24, 2048, 5461),
    "1000 tiny": tiny(),
    "150 of 16": vectors(),
    "465 of 16": vectors(465),
    "4000 small": small(),
    "GPT-2 matrices": gpt2_matrices(),
    "two GPT-2 blocks": gpt2_matrices(2),
    "768x768 x12": [(768, 768)] * 12,
    "768x768 x48": [(768, 768)] * 48,
    "768x3072": [(768, 3072)],
    "3072x768": [(3072, 768)],
    "768x3072 x24": [(768, 3072)] * 24,
    "3072x768 x24": [(3072, 768)] * 24,
    "2048x8192": [(2048, 8192)],
    "2048x8192 x24": [(2048, 8192)] * 24,
    "4096x4096": [(4096, 4096)],
    "4096x11008": [(4096, 11008)],
    "8192x28672": [(8192, 28672)],
}


def parameters(shapes):
    """The number of parameters."""
    return sum(math.prod(shape) for shape in shapes)


def hidden(shapes):
    """Which tensors of a Llama Muon gets: matrices between the embedding and the head."""
    return [i for i in range(1, len(shapes) - 1) if len(shapes[i]) == 2]


def shrunk(shapes, dimension=48, ratio=4, tensors=12):
    """A model of the same kind that costs milliseconds: fewer tensors, of 48 rows or columns.

    Matrices keep their proportions, up to 1 : 4.
    """

    def smaller(shape):
        scale = min(1, dimension / min(shape))
        return tuple(min(round(n * scale), ratio * dimension) for n in shape)

    return [smaller(shape) for shape in shapes[:tensors]]


def distinct(shapes):
    """Each shape once."""
    return list(dict.fromkeys(shapes))
