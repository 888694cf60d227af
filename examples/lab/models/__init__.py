# SPDX-License-Identifier: MIT
"""Models by name: ``make(settings, seed)``.

Each takes inputs and gives logits, ``(..., classes)``. Its list ``blocks`` is what FSDP2 shards,
and ``torch.compile`` compiles, one by one; ``split_rules`` is for ``emanest.split_params``.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch

from .bytes import ByteTransformer
from .gpt2 import GPT2
from .llama import SIZES, Llama
from .nanogpt import BenchmarkGPT, NanoGPT
from .options import ModelError
from .resnet import ResNet18
from .vision import AlexNet, LeNet5, WideLeNet5

__all__ = ["MODELS", "ModelError", "Row", "compile_blocks", "make"]


class Row(NamedTuple):
    """How a model is made, and options of a form that is small enough for a test."""

    make: Callable
    small: dict


GPT = {"layers": 2, "heads": 2, "width": 16, "vocabulary": 32}
IMAGES = {"shape": (1, 12, 12), "classes": 4}

MODELS = {
    "bytes": Row(ByteTransformer, GPT | {"context": 8}),
    "gpt2": Row(GPT2, GPT | {"context": 8}),
    "nanogpt_124m": Row(NanoGPT, GPT),
    "nanogpt_162m": Row(BenchmarkGPT, GPT),
    **{
        f"llama_{size}": Row(functools.partial(Llama, **options), GPT | {"hidden": 40})
        for size, options in SIZES.items()
    },
    "lenet5": Row(LeNet5, IMAGES),
    "wide_lenet5": Row(WideLeNet5, IMAGES | {"channels": 8, "dense": (24, 16)}),
    "alexnet": Row(AlexNet, IMAGES | {"channels": (4, 6, 8, 8, 6), "dense": (24, 16)}),
    "resnet18": Row(ResNet18, IMAGES | {"width": 4}),
}


def make(settings, seed):
    """The model ``settings["name"]`` with the other entries as options, on torch's default device.

    Its initial weights depend on ``seed`` alone.

    Raises:
        ModelError: no such model or option, or a value that cannot be.
    """
    options = dict(settings)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in MODELS:
        raise ModelError(f"there is no model {name!r}: name one of {', '.join(MODELS)}")
    known = inspect.signature(MODELS[name].make).parameters
    for option in options:
        if option not in known:
            raise ModelError(f"model {name} has no option {option!r}: it has {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name].make(**options)


def compile_blocks(model, **options):
    """Compile the blocks of a model in place, as ``torch.compile`` with these options.

    They are alike: what is compiled for one serves all, in a fraction of the time that the whole
    model takes. What lies between them could be fused with little.
    """
    for block in model.blocks:
        block.compile(**options)
