"""Models by name: ``make(settings, seed)``.

Each takes inputs and gives logits, ``(..., classes)``. Its list ``blocks`` is what FSDP2 shards,
and ``torch.compile`` compiles, one by one; ``split_rules`` is for ``emanest.split_params``.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch

from .bytes import ByteTransformer
from .options import ModelError
from .vision import LeNet5

__all__ = ["MODELS", "ModelError", "Row", "make"]


class Row(NamedTuple):
    """How a model is made, and options of a form that is small enough for a test."""

    make: Callable
    small: dict


MODELS = {
    "bytes": Row(ByteTransformer, {"layers": 1, "width": 16, "context": 8, "vocabulary": 32}),
    "lenet5": Row(LeNet5, {"shape": (1, 12, 12), "classes": 4}),
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
