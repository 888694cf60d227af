# SPDX-License-Identifier: MIT
"""What a parameter of a model is, by its module, its shape and its name; and where that goes."""

import inspect
import re
from typing import Any, NamedTuple

from torch import nn

from . import names
from .layers import COLOURS, CONVOLUTIONS, LAST, NAMED, WIDE, Layers

MUON, ADAMW = "muon", "adamw"

_CONTAINERS = nn.ParameterDict, nn.ParameterList
# smaller sides belong to kernels, adapters, a number for each head
_EXPERT_SIDE = 16
_NORMS = nn.LayerNorm, nn.RMSNorm
# torch's recurrent layers -> matrices below each other, one for each gate
_GATES = ((nn.LSTM, nn.LSTMCell), 4), ((nn.GRU, nn.GRUCell), 3)
# where classes are from that torch makes of a module's own: with parametrizations, by fully_shard
_MADE_BY_TORCH = "torch.nn.utils.parametrize", "torch.distributed."


class _Unknown(nn.Module):
    """What stands for the module of a parameter that none holds: one of a user's, bare."""


_UNKNOWN = _Unknown()


class _Facts:
    """What decides about a parameter.

    Args:
        places: all names that it has as an attribute of modules; if no module holds it, all that
            its model calls it.
        p: the parameter.
        model: its ``Layers``.
    """

    def __init__(self, places, p, model):
        self.places, self.p, self.model = places, p, model
        self.owner, _, self.last = names.PARAMETRIZED.sub(r"\1\2", places[0]).rpartition(".")
        self.module = model.modules.get(self.owner, _UNKNOWN)

    def thin(self):
        # a single row is as large as the whole, a single column as long
        return self.p.dim() < 2 or self.p.numel() in (0, self.p.shape[0], self.p.shape[1:].numel())

    def embedding(self):
        if isinstance(self.module, (nn.Embedding, nn.EmbeddingBag)):
            return True
        named = "embedding" in type(self.module).__name__.lower()
        return not self._of_torch() and (named or self._called(names.EMBEDDING_WORD))

    def bias(self):
        return self._called(names.BIAS_WORD)

    def _of_torch(self):
        """Whether a layer of torch's owns it, which lists and dicts are not."""
        modules = (kind.__module__ for kind in type(self.module).__mro__)
        own = next(name for name in modules if not name.startswith(_MADE_BY_TORCH))
        return own.startswith("torch.nn.") and not isinstance(self.module, _CONTAINERS)

    def _called(self, word):
        """Whether its own name has such a word."""
        # a list numbers its parameters: the name is its own
        name = self.owner.rpartition(".")[2] if self.last.isdigit() else self.last
        return any(map(word.fullmatch, re.split(r"[_\d]+", name.lower())))

    def tied(self):
        """Whether different modules, or attributes, hold it; not a shared module alone."""
        return len(self.model.owners(self.places)) > 1

    def output(self):
        """Why its layer is taken for one that gives the output; None: it is not."""
        return self.model.outputs.get(self.module)

    def convolution(self):
        return isinstance(self.module, CONVOLUTIONS) and self.p.dim() > 2

    def input(self):
        return self.convolution() and self.module.in_channels <= COLOURS

    def depthwise(self):
        return self.convolution() and self.module.groups > 1 and self.p.shape[1] == 1

    def experts(self):
        three = self.p.dim() == 3 and not self._of_torch()
        return three and len(self.p) > 1 and min(self.p.shape[1:]) >= _EXPERT_SIDE

    def per_element(self):
        if isinstance(self.module, _NORMS):
            return True
        return not self._of_torch() and bool(names.ELEMENT_WORD.fullmatch(self.last))

    def vector(self):
        """Whether it is not of those that have rows and columns: a vector, a bias, or alike."""
        return self.thin() or self.bias() or self.per_element()

    def split(self):
        """How many matrices it is, below each other, or how many rows each has; 1: it is one."""
        if isinstance(self.module, nn.MultiheadAttention) and self.last == "in_proj_weight":
            return 3
        for kinds, count in _GATES:
            if isinstance(self.module, kinds) and self.last.startswith(("weight_ih", "weight_hh")):
                return count
        if not isinstance(self.module, nn.Linear) or self.last != "weight":
            return 1
        rows, columns = self.p.shape
        if names.GATED_NAME.fullmatch(self._layer()):
            return 1 if rows % 2 else 2
        if not names.QKV_NAME.fullmatch(self._layer()):
            return 1
        return self.model.heads(self.owner, rows, columns)

    def _layer(self):
        """What the layer is called that it belongs to."""
        return self.owner.rpartition(".")[2]

    def maybe_fused(self):
        # an own parameter goes by a name of its own, as qkv_weight
        called = self._layer() if self.last == "weight" else self.last.removesuffix("_weight")
        return bool(names.FUSED_NAME.fullmatch(called))

    def transposed(self):
        """Whether it is (inputs, outputs), as in the Conv1D of Transformers."""
        return type(self.module).__name__ == "Conv1D" and self.p.dim() == 2

    def adapter(self):
        return any(map(names.ADAPTER_NAME.fullmatch, self.places[0].split(".")))

    def router(self):
        called = self._layer() if self.last == "weight" else self.last
        return self.p.shape[0] < self.p.shape[1] and bool(names.ROUTER_NAME.fullmatch(called))


_TO_MUON, _TO_ADAMW = {"base": MUON}, {"base": ADAMW}
_KERNEL, _STACK = {**_TO_MUON, "stack": False}, {**_TO_MUON, "stack": True}
# reason, condition, entries of the group (None: left out); the first that holds decides
TABLE = (
    ("frozen", lambda f: not f.p.requires_grad, None),
    ("tied", _Facts.tied, _TO_ADAMW),
    ("vector", _Facts.thin, _TO_ADAMW),
    ("complex", lambda f: f.p.is_complex(), _TO_ADAMW),
    ("embedding", _Facts.embedding, _TO_ADAMW),
    ("bias", _Facts.bias, _TO_ADAMW),
    ("per element", _Facts.per_element, _TO_ADAMW),
    (NAMED, lambda f: f.output() == NAMED, _TO_ADAMW),
    ("input layer", _Facts.input, _TO_ADAMW),
    ("depthwise", _Facts.depthwise, _TO_ADAMW),
    (WIDE, lambda f: f.output() == WIDE, _TO_ADAMW),
    (LAST, lambda f: f.output() == LAST, _TO_ADAMW),
    ("kernel", _Facts.convolution, _KERNEL),
    ("experts, fused?", lambda f: f.experts() and f.maybe_fused(), _STACK),
    ("experts", _Facts.experts, _STACK),
    ("tensor", lambda f: f.p.dim() > 2, _TO_ADAMW),
    ("low rank", _Facts.adapter, _TO_MUON),
    ("transposed", _Facts.transposed, _TO_MUON),
    ("fused", lambda f: f.split() != 1, _TO_MUON),
    ("matrix, fused?", _Facts.maybe_fused, _TO_MUON),
    ("matrix, router?", _Facts.router, _TO_MUON),
    ("matrix", lambda f: True, _TO_MUON),
)


class Found(NamedTuple):
    """What was found about a parameter.

    Attributes:
        names: all that its model calls it.
        p: the parameter.
        reason: a row of ``TABLE``, or more about it.
        to: entries of its group; None: it is left out.
        vector: whether it is one, or is stepped like one.
    """

    names: list[str]
    p: nn.Parameter
    reason: str
    to: dict[str, Any] | None
    vector: bool


def classified(model):
    """What is ``Found`` about each parameter of a model."""
    every = {}
    for name, p in _named(model):
        every.setdefault(p, []).append(name)
    about = Layers(model)
    for p, known in every.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"{known[0]!r} is not initialised yet: run one forward pass first")
        facts = _Facts(about.places.get(p, known), p, about)
        reason, _, to = next(row for row in TABLE if row[1](facts))
        if reason == "fused":
            split = facts.split()
            reason, to = f"fused: split={split}", {**_TO_MUON, "split": split}
        yield Found(known, p, reason, to, facts.vector())


def _named(model):
    """The parameters of a model by all its names for them; by one, if its method gives no more."""
    every = {"remove_duplicate": False}
    try:
        inspect.signature(model.named_parameters).bind(**every)
    except TypeError:
        # a method of the model's own, without what torch's has
        every = {}
    return model.named_parameters(**every)
