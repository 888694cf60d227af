# SPDX-License-Identifier: MIT
"""``split_params`` finds a parameter's module by the tensor, whatever the model calls it."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from emanest import Muon, split_params
from test_split import Kinds, Model, reasons
from test_split_kinds import GROUPED, NUMBERS, attention

PARTS = "_orig_mod.", "_checkpoint_wrapped_module.", "module."


class Everything(Kinds):
    """A parameter for every row of the table, heads that the module around them counts, blocks."""

    def __init__(self):
        super().__init__()
        self.counted = attention("qkv_proj", GROUPED, **NUMBERS)
        self.inner = Model()
        self.lm_head = nn.Linear(16, 10, bias=False)


def each(wrap):
    """Put a wrapper around each module that is called as one, blocks and their layers too."""

    def wrapped():
        model = Everything()
        for module in [*model.modules()]:
            attention = isinstance(module, nn.MultiheadAttention)
            for name, child in [] if attention else [*module.named_children()]:
                if type(child).forward is not nn.Module.forward:
                    setattr(module, name, wrap(child))
        return model

    return wrapped


# ways to put torch's wrappers around a model
WRAPPERS = {
    "compiled": lambda: torch.compile(Everything()),
    "checkpointed": lambda: checkpoint_wrapper(Everything()),
    "checkpointed, compiled": lambda: torch.compile(checkpoint_wrapper(Everything())),
    "compiled, checkpointed": lambda: checkpoint_wrapper(torch.compile(Everything())),
    "checkpointed, parallel": lambda: nn.DataParallel(checkpoint_wrapper(Everything())),
    "each compiled": each(torch.compile),
    "each checkpointed": each(checkpoint_wrapper),
}


def without(name):
    for part in PARTS:
        name = name.replace(part, "")
    return name


@pytest.mark.parametrize("way", WRAPPERS)
def test_in_torchs_wrappers_parameters_are_what_they_were(way, capsys):
    model = WRAPPERS[way]()
    found = reasons(model, capsys)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert {without(name): what for name, what in found.items()} == reasons(Everything(), capsys)


def calling(base, rename=lambda name: name, keep=lambda name, p: True):
    """A class whose models call their parameters otherwise than another's, or leave some out."""

    def named_parameters(self, *args, **kwargs):
        named = base.named_parameters(self, *args, **kwargs)
        return ((rename(name), p) for name, p in named if keep(name, p))

    return type(base.__name__, (base,), {"named_parameters": named_parameters})


# what a model calls its parameters -> by their names in modules
NAMES = {
    "with a prefix": "student.{}".format,
    "with parts of its own": lambda name: name.replace(".", "._inner."),
    "by nothing that says anything": lambda name: f"p{sum(map(ord, name))}",
}


@pytest.mark.parametrize("way", NAMES)
def test_names_that_are_no_modules_change_nothing_but_what_is_printed(way, capsys):
    rename = NAMES[way]
    found = reasons(calling(Everything, rename)(), capsys)
    expected = reasons(Everything(), capsys)
    assert len({rename(name) for name in expected}) == len(expected)
    assert found == {rename(name): what for name, what in expected.items()}


def test_rules_are_searched_in_the_names_that_the_model_gives():
    model = calling(Model, "student.{}".format)()
    groups = split_params(model, {r"^student\.blocks\.0\.up\.w": {"lr": 0.5}}, verbose=False)
    (name, p), = next(g["params"] for g in groups if g.get("lr"))  # fmt: skip
    assert name == "student.blocks.0.up.weight"
    assert p is model.blocks[0].up.weight
    assert Muon(groups, 0.1).param_groups[0]["param_names"][0].startswith("student.")
    with pytest.raises(ValueError, match=r"rules \['\^blocks'\] find no parameter"):
        split_params(model, {"^blocks": "adamw"}, verbose=False)


def test_what_the_model_leaves_out_is_nobodys_and_the_rest_is_what_it_was(capsys):
    """As a model that yields what it trains alone, frozen or not."""
    kept = calling(Everything, keep=lambda name, p: "bias" not in name and "stem" not in name)
    expected = reasons(Everything(), capsys)
    assert reasons(kept(), capsys) == {
        name: what for name, what in expected.items() if "bias" not in name and "stem" not in name
    }


@pytest.mark.parametrize("left_out", ["head.weight", "embed.weight"])
def test_tied_is_what_modules_hold_though_the_model_names_it_once(left_out, capsys):
    model = calling(Model, keep=lambda name, p: name != left_out)(tied=True)
    found = reasons(model, capsys)
    (name,) = {"head.weight", "embed.weight"} - {left_out}
    assert found[name] == ("adamw", "tied")
    assert left_out not in found


def test_a_method_without_torchs_option_gives_one_name(capsys):
    class Older(Model):
        def named_parameters(self, prefix="", recurse=True):
            return super().named_parameters(prefix, recurse)

    assert reasons(Older(tied=True), capsys) == reasons(Model(tied=True), capsys)


class Beside(nn.Module):
    """A model whose parameters are in a dict, which no module holds."""

    def __init__(self, held):
        super().__init__()
        self.inner, self.last = (nn.Linear(8, 8, bias=False) for _ in range(2))
        self.held = held

    def named_parameters(self, prefix="", recurse=True, remove_duplicate=True):
        yield from super().named_parameters(prefix, recurse, remove_duplicate)
        yield from self.held.items()


# name -> a tensor, and what it is: the same as of one that a module of a user's own holds
BARE = {
    "mix": (torch.ones(4, 8), ("muon", "matrix")),
    "apart.mix": (torch.ones(4, 8), ("muon", "matrix")),
    "apart.row": (torch.ones(8), ("adamw", "vector")),
    "apart.tok_embeddings": (torch.ones(4, 8), ("adamw", "embedding")),
    "apart.biases.0": (torch.ones(4, 8), ("adamw", "bias")),
    "apart.A_log": (torch.ones(4, 8), ("adamw", "per element")),
    "apart.experts": (torch.ones(4, 16, 16), ("muon", "experts")),
    "apart.cube": (torch.ones(4, 4, 4), ("adamw", "tensor")),
    "apart.lora_A.default": (torch.ones(4, 8), ("muon", "low rank")),
    "apart.qkv_weight": (torch.ones(24, 8), ("muon", "matrix, fused?")),
    "apart.router": (torch.ones(4, 8), ("muon", "matrix, router?")),
    "apart.frozen": (torch.ones(4, 8), ("-", "frozen")),
}


def test_what_no_module_holds_is_told_by_its_name_and_shape(capsys):
    held = {
        name: nn.Parameter(value, requires_grad="frozen" not in name)
        for name, (value, _) in BARE.items()
    }
    found = reasons(Beside(held), capsys)
    assert {name: found[name] for name in BARE} == {name: what for name, (_, what) in BARE.items()}


def test_what_no_module_holds_is_tied_if_it_has_two_names(capsys):
    p = nn.Parameter(torch.ones(4, 8))
    assert reasons(Beside({"a.mix": p, "b.mix": p}), capsys)["a.mix"] == ("adamw", "tied")
    with pytest.raises(ValueError, match=r"rule 'row' sends 'a.row'.* which steps real matrices"):
        split_params(Beside({"a.row": nn.Parameter(torch.ones(3))}), {"row": "muon"})
