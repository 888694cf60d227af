"""Which parameters of a model Muon should step, and which AdamW."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..optimizers import Muon

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
# words in the name of a parameter that no layer of torch's owns
_EMBEDDING_WORD = re.compile(r"emb.*|.*emb(ed(ding)?s?)?|pos|position.*|tokens?|wte|wpe|cls")
_BIAS_WORD = re.compile(r".*bias(es)?")
_HEAD_NAME = re.compile(r"(^|\.)(lm_head|head|heads\.\d+|classifier|unembed|output_projection)$")
# where classes are from that torch makes of a module's own: with parametrizations, by fully_shard
_MADE_BY_TORCH = "torch.nn.utils.parametrize", "torch.distributed."
# under which ``nn.utils.parametrize`` keeps what a parameter is made of
_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.(\w+)\.original\d*$")


def split_params(
    model: nn.Module,
    rules: Mapping[str, str | dict[str, Any]] | None = None,
    *,
    muon: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    verbose: bool = True,
) -> list[dict[str, Any]]:
    """Split a model's parameters into groups for one optimizer: ``Muon(split_params(model))``.

    Hidden matrices, convolution kernels and experts go to Muon (or NorMuon, Aurora, SOAP: whatever
    the optimizer's own base is, or ``muon`` or a rule says), in groups with ``"stack": False``,
    experts with ``"stack": True``; embeddings, output layers, tied weights, vectors and scalars to
    AdamW, in a group with ``"base": "adamw"``. A table says what goes where, and why:

        frozen          requires no gradient: left out
        tied            one parameter under several names
        vector          fewer than two dimensions, or a single row or column
        complex         Muon takes real matrices
        embedding       of ``nn.Embedding`` or ``nn.EmbeddingBag``; of another class that is called
                        an embedding; or a parameter of no layer of torch's with a word like emb,
                        pos, token, wte, wpe or cls in its own name
        bias            a parameter with a word like bias in its own name
        output layer    an ``nn.Linear`` called lm_head, head, heads.N, classifier, unembed or
                        output_projection; or, if it is in no block, one that is as wide as an
                        embedding is long, or the model's last. A block is a member of an
                        ``nn.ModuleList``, or a module of a class that occurs more than once
        input layer     a convolution over at most 4 channels
        depthwise       a convolution whose filters have one channel
        kernel          any other convolution: Muon
        experts         three dimensions, of no layer of torch's: two or more matrices whose smaller
                        side is at least 16: Muon, each by itself
        tensor          any other with three or more dimensions
        fused matrices  ``in_proj_weight`` of ``nn.MultiheadAttention``: Muon, with ``split=3``
        matrix          any other: Muon

    What a parametrization of torch's (weight normalisation, say) makes a parameter of goes where
    that would go.

    Args:
        model: an ``nn.Module``, wrapped or not.
        rules: regular expression -> ``"muon"`` (the optimizer's own base), ``"adamw"``, another
            base by its name, or a dict of group entries, such as ``{"split": 3}`` or ``{"base":
            "adamw", "lr": 3e-3}``. Expressions are searched in the names of
            ``model.named_parameters()``, all of them for a tied parameter; the first that is found
            counts. Where a parameter goes changes only if its rule is, or has, a base. One of three
            dimensions that the table leaves to AdamW is sent to Muon by ``{"base": "muon", "stack":
            True}``, or ``False`` for one kernel. Frozen ones stay out.
        muon, adamw: entries for all groups of a kind, such as ``{"lr": 3e-4}``, for matrices also
            ``{"base": "soap"}``; those of a rule come first. AdamW has its own defaults, not Muon's
            arguments.
        verbose: print the table.

    Returns:
        A list of groups of (name, parameter) pairs, those of Muon first; none is empty.

    Raises:
        TypeError: not a module; a rule that is neither a name nor a dict.
        ValueError: no parameter requires a gradient, one is not initialised yet, ``adamw`` names
            another base, or a rule finds none that an earlier one has left, or is no regular
            expression.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    common = {MUON: dict(muon or {}), ADAMW: {"base": ADAMW, **(adamw or {})}}
    base = common[ADAMW]["base"]
    if base != ADAMW:
        raise ValueError(
            f"adamw has entries of AdamW's groups, got base {base!r}: name it in muon, or in a rule"
        )
    compiled = [(_compiled(text), text, _entries(text, to)) for text, to in (rules or {}).items()]
    rows, groups, found = [], {}, set()
    for names, p, reason, to in _classified(model):
        name = names[0]
        if to is None:
            rows.append((name, p, "-", reason))
            continue
        for expression, text, entries in compiled:
            if any(map(expression.search, names)):
                reason, to = f"rule {text!r}", _changed(to, entries)
                found.add(text)
                break
        kind = _kind(to["base"])
        # of three dimensions only the table, or a rule, knows what they are
        flat = {"stack": False} if kind == MUON and p.dim() != 3 else {}
        own = {k: v for k, v in to.items() if (k, v) != ("base", MUON)}
        entries = {**flat, **common[kind], **own}
        key = kind != MUON, tuple(sorted((k, _comparable(v)) for k, v in entries.items()))
        groups.setdefault(key, {**entries, "params": []})["params"].append((name, p))
        rows.append((name, p, entries.get("base", MUON), reason))
    unused = [text for _, text, _ in compiled if text not in found]
    if unused:
        raise ValueError(
            f"rules {unused} find no parameter that requires a gradient and that no earlier rule "
            "has taken"
        )
    if not groups:
        raise ValueError("no parameter of the model requires a gradient")
    if verbose:
        print(_table(rows))
    # a stable sort: Muon's first, each in the order of the model
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def _compiled(text):
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise ValueError(f"rule {text!r} is no regular expression: {error}") from None


def _entries(text, to):
    entries = to if isinstance(to, dict) else {"base": to}
    # a list: what cannot be hashed is none of them
    if entries.get("base", MUON) not in [*Muon.bases]:
        raise TypeError(
            f"rule {text!r} must lead to {', '.join(map(repr, Muon.bases))} or a dict, got {to!r}"
        )
    return entries


def _kind(base):
    """Whose parameters a base steps: matrices, or what AdamW does."""
    return ADAMW if base == ADAMW else MUON


def _changed(automatic, entries):
    """The entries of the table with those of a rule; none is left that belongs to another base."""
    same = _kind(entries.get("base", automatic["base"])) == _kind(automatic["base"])
    return {**(automatic if same else {}), **entries}


def _comparable(value):
    # tensors that print alike may differ
    return str(id(value)) if isinstance(value, torch.Tensor) else repr(value)


# ---- why a parameter goes where -----------------------------------------------------------------


class _Facts:
    """What decides about a parameter.

    Args:
        names: all that it goes by.
        p: the parameter.
        model: what the modules of the model tell.
    """

    def __init__(self, names, p, model):
        self.names, self.p, self.model = names, p, model
        self.owner, _, self.last = _PARAMETRIZED.sub(r"\1\2", names[0]).rpartition(".")
        self.module = model.modules[self.owner]

    def thin(self):
        # a single row is as large as the whole, a single column as long
        return self.p.dim() < 2 or self.p.numel() in (0, self.p.shape[0], self.p.shape[1:].numel())

    def embedding(self):
        if isinstance(self.module, (nn.Embedding, nn.EmbeddingBag)):
            return True
        named = "embedding" in type(self.module).__name__.lower()
        return not self._of_torch() and (named or self._called(_EMBEDDING_WORD))

    def bias(self):
        return self._called(_BIAS_WORD)

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
            bool(_HEAD_NAME.search(self.owner)) or self.owner in self.model.outputs
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

    def fused(self):
        return isinstance(self.module, nn.MultiheadAttention) and self.last == "in_proj_weight"


_TO_MUON, _TO_ADAMW = {"base": MUON}, {"base": ADAMW}
# reason, condition, entries of the group (None: left out); the first that holds decides
_TABLE = (
    ("frozen", lambda f: not f.p.requires_grad, None),
    ("tied", lambda f: len(f.names) > 1, _TO_ADAMW),
    ("vector", _Facts.thin, _TO_ADAMW),
    ("complex", lambda f: f.p.is_complex(), _TO_ADAMW),
    ("embedding", _Facts.embedding, _TO_ADAMW),
    ("bias", _Facts.bias, _TO_ADAMW),
    ("output layer", _Facts.output, _TO_ADAMW),
    ("input layer", _Facts.input, _TO_ADAMW),
    ("depthwise", _Facts.depthwise, _TO_ADAMW),
    ("kernel", _Facts.convolution, {**_TO_MUON, "stack": False}),
    ("experts", _Facts.experts, {**_TO_MUON, "stack": True}),
    ("tensor", lambda f: f.p.dim() > 2, _TO_ADAMW),
    ("fused matrices", _Facts.fused, {**_TO_MUON, "split": 3}),
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


def _classified(model):
    """(names, parameter, reason, entries) of all parameters."""
    names = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(p, []).append(name)
    about = _Model(model)
    for p, known in names.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"{known[0]!r} is not initialised yet: run one forward pass first")
        facts = _Facts(known, p, about)
        reason, _, to = next(row for row in _TABLE if row[1](facts))
        yield known, p, reason, to


def _table(rows):
    cells = [(n, "x".join(map(str, p.shape)) or "scalar", to, why) for n, p, to, why in rows]
    titles = ("parameter", "shape", "to", "because")
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
             for row in (titles, *cells)]  # fmt: skip
    counts, sizes = Counter(row[2] for row in rows), Counter()
    for _, p, to, _ in rows:
        sizes[to] += p.numel()
    said = {"-": "left out"}
    totals = [f"{said.get(to, to)}: {counts[to]} tensors, {sizes[to]:,} values" for to in counts]
    return "\n".join([*lines, "; ".join(totals)])
