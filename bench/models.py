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


def tiny(count=1000):
    """Biases, norms and small matrices, 1.8 million parameters: calls cost more than bytes."""
    cycle = [(256,), (1024,), (32, 64), (60, 64)]
    return [cycle[i % len(cycle)] for i in range(count)]


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
    "4000 small": small(),
}


def parameters(shapes):
    """The number of parameters."""
    return sum(math.prod(shape) for shape in shapes)


def shrunk(shapes, dimension=48, tensors=20):
    """A model of the same kind that costs milliseconds: fewer tensors, no dimension above 48."""
    return [tuple(min(n, dimension) for n in shape) for shape in shapes[:tensors]]
