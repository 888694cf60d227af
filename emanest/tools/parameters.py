# SPDX-License-Identifier: MIT
"""What a parameter of a model is, by its module, its shape and its name; and where that goes."""

import re
from collections import Counter
from typing import Any, NamedTuple

from torch import nn

from . import names

MUON, ADAMW = "muon", "adamw"

_CONTAINERS = nn.ParameterDict, nn.ParameterList
_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# a convolution that reads so many channels reads the input: colours, and perhaps a mask
_COLOURS = 4
# smaller sides belong to kernels, adapters, a number for each head
_EXPERT_SIDE = 16
_NORMS = nn.LayerNorm, nn.RMSNorm
# torch's recurrent layers -> matrices below each other, one for each gate
_GATES = ((nn.LSTM, nn.LSTMCell), 4), ((nn.GRU, nn.GRUCell), 3)
# what modules, and the configurations of models, call their numbers of heads
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_GROUPS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")
_HEAD_SIZE = ("head_dim", "head_size")
# where classes are from that torch makes of a module's own: with parametrizations, by fully_shard
_MADE_BY_TORCH = "torch.nn.utils.parametrize", "torch.distributed."


class _Facts:
    """What decides about a parameter.

    Args:
        known: all names that it goes by.
        p: the parameter.
        model: what the modules of the model tell.
    """

    def __init__(self, known, p, model):
        self.names, self.p, self.model = known, p, model
        self.owner, _, self.last = names.PARAMETRIZED.sub(r"\1\2", known[0]).rpartition(".")
        self.module = model.modules[self.owner]

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

    def output(self):
        return isinstance(self.module, nn.Linear) and (
            bool(names.HEAD_NAME.search(self.owner)) or self.owner in self.model.outputs
        )

    def convolution(self):
        return isinstance(self.module, _CONVOLUTIONS) and self.p.dim() > 2

    def input(self):
        return self.convolution() and self.module.in_channels <= _COLOURS

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
        return 3 if rows == 3 * columns else self._heads(rows)

    def _heads(self, rows):
        """Rows of queries, keys and values where the module around tells them, else 1."""
        around = self.model.modules[self.owner.rpartition(".")[0]]
        heads, groups, size = (_number(around, each) for each in (_HEADS, _GROUPS, _HEAD_SIZE))
        queries, keys = heads * size, groups * size
        return (queries, keys, keys) if keys and queries + 2 * keys == rows else 1

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
        return any(map(names.ADAPTER_NAME.fullmatch, self.names[0].split(".")))

    def router(self):
        called = self._layer() if self.last == "weight" else self.last
        return self.p.shape[0] < self.p.shape[1] and bool(names.ROUTER_NAME.fullmatch(called))


def _number(module, keys):
    """A positive integer that a module, or its configuration, has under one of some names; or 0."""
    for where in (module, getattr(module, "config", None)):
        for name in keys:
            value = getattr(where, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0


_TO_MUON, _TO_ADAMW = {"base": MUON}, {"base": ADAMW}
_KERNEL, _STACK = {**_TO_MUON, "stack": False}, {**_TO_MUON, "stack": True}
# reason, condition, entries of the group (None: left out); the first that holds decides
TABLE = (
    ("frozen", lambda f: not f.p.requires_grad, None),
    ("tied", lambda f: len(f.names) > 1, _TO_ADAMW),
    ("vector", _Facts.thin, _TO_ADAMW),
    ("complex", lambda f: f.p.is_complex(), _TO_ADAMW),
    ("embedding", _Facts.embedding, _TO_ADAMW),
    ("bias", _Facts.bias, _TO_ADAMW),
    ("per element", _Facts.per_element, _TO_ADAMW),
    ("output layer", _Facts.output, _TO_ADAMW),
    ("input layer", _Facts.input, _TO_ADAMW),
    ("depthwise", _Facts.depthwise, _TO_ADAMW),
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


class _Model:
    """What the modules of a model tell about each other."""

    def __init__(self, model):
        once = dict(model.named_modules())
        # a shared module is found by any of its names, and counts once
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.kinds = Counter(map(type, once.values()))
        tables = [m for m in once.values() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        lengths = {table.num_embeddings for table in tables}
        linear = {name: m for name, m in once.items() if isinstance(m, nn.Linear)}
        self.outputs = {
            name
            for name, m in linear.items()
            if not self._in_block(name) and (m.out_features in lengths or name == [*linear][-1])
        }

    def _in_block(self, name):
        while name:
            name = name.rpartition(".")[0]
            module = self.modules[name]
            if isinstance(module, nn.ModuleList):
                return True
            # containers occur often without being blocks
            if self.kinds[type(module)] > 1 and not isinstance(module, nn.Sequential):
                return True
        return False


class Found(NamedTuple):
    """What was found about a parameter.

    Attributes:
        names: all that it goes by.
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
    for name, p in model.named_parameters(remove_duplicate=False):
        every.setdefault(p, []).append(name)
    about = _Model(model)
    for p, known in every.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"{known[0]!r} is not initialised yet: run one forward pass first")
        facts = _Facts(known, p, about)
        reason, _, to = next(row for row in TABLE if row[1](facts))
        if reason == "fused":
            split = facts.split()
            reason, to = f"fused: split={split}", {**_TO_MUON, "split": split}
        yield Found(known, p, reason, to, facts.vector())
