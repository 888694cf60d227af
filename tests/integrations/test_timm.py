# SPDX-License-Identifier: MIT
"""timm: its factory makes our optimizers by names of its registry, with groups that fit."""

import importlib
import sys
import types

import pytest
import torch
from torch import nn

import emanest
import timm_optim
from helpers import content, differing


@pytest.fixture(scope="module", autouse=True)
def optim():
    """The module ``timm.optim``, with ours registered."""
    with timm_optim.imported() as found:
        importlib.import_module("emanest.integrations.timm").register()
        yield found


class Model(nn.Module):
    """Shapes of an image model: patches, a token, fused matrices, a depthwise kernel, a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.qkv = nn.Linear(8, 24)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 4)

    def group_matcher(self, coarse=False):
        return {"stem": r"^patch|cls_token", "blocks": r"^(?:qkv|depthwise)"}


def names_in(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    return [
        ({names[p] for p in group["params"]}, group.get("base")) for group in optimizer.param_groups
    ]


def by_base(model, optimizer, base):
    found = [names for names, of in names_in(model, optimizer) if of == base]
    return set().union(*found)


def test_all_names_are_listed(optim):
    pairs = len(emanest.OPTIMIZERS) * (1 + len(emanest.METHODS))
    assert len(optim.list_optimizers("emanest-*")) == pairs
    described = dict(optim.list_optimizers("emanest-muon*", with_description=True))
    assert described["emanest-muon+ema-nesterov"] == 'emanest.create(model, "muon+ema_nesterov")'


def test_registering_again_adds_what_is_new(optim, monkeypatch):
    register = sys.modules["emanest.integrations.timm"].register
    monkeypatch.setitem(emanest.OPTIMIZERS, "mine", emanest.AdamW)
    before = optim.get_optimizer_info("emanest-adamw")
    assert "emanest-mine+gpa" in register()
    assert optim.get_optimizer_info("emanest-adamw") is before
    made = optim.create_optimizer_v2(Model(), "emanest-mine+gpa")
    assert made.param_groups[0]["lookahead"] == "gpa"
    # others count the names
    for name in optim.list_optimizers("emanest-mine*"):
        sys.modules["timm.optim._optim_factory"].default_registry._optimizers.pop(name)


def test_the_name_that_timm_would_cut_at_its_underscore_is_not_ours(optim):
    """Why ours have hyphens."""
    assert type(optim.create_optimizer_v2(Model(), "muon+ema_nesterov", lr=0.1)) is torch.optim.SGD


# that have no default
SETTINGS = {
    "long_horizon": {"lookahead_every": 5},
    "nag": {"lookahead_momentum": 0.5},
    "snoo": {"lookahead_every": 5},
    "schedule_free": {"momentum": 0.0},
}


@pytest.mark.parametrize("method", [None, *emanest.METHODS])
@pytest.mark.parametrize("name", emanest.OPTIMIZERS)
def test_every_name_makes_its_optimizer(name, method, optim):
    ours = "+".join(filter(None, (name, method))).replace("_", "-")
    needed = SETTINGS.get(method, {})
    if method == "schedule_free" and name != "sgd":
        # it takes the place of the base's own
        with pytest.raises(ValueError, match=r"momentum|betas"):
            optim.create_optimizer_v2(Model(), f"emanest-{ours}", lr=0.1)
        return
    made = optim.create_optimizer_v2(Model(), f"emanest-{ours}", lr=0.1, **needed)
    assert type(made) is emanest.OPTIMIZERS[name]
    assert {group["lookahead"] for group in made.param_groups} == {method}


def test_adamw_has_timms_groups(optim):
    model = Model()
    made = optim.create_optimizer_v2(
        model, "emanest-adamw+ema-nesterov", lr=0.01, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-5
    )
    none = {n for n, p in model.named_parameters() if p.dim() < 2}
    rest = {n for n, _ in model.named_parameters()} - none
    assert [names for names, _ in names_in(model, made)] == [none, rest]
    assert [group["weight_decay"] for group in made.param_groups] == [0.0, 0.3]
    for group in made.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.8, 0.9), 1e-5)


def test_options_on_the_command_line_are_those_of_create(optim):
    """As timm's scripts have them: ``--opt NAME --momentum 0.8 --opt-kwargs ...``."""
    arguments = types.SimpleNamespace(
        opt="emanest-sgd+ema-nesterov", lr=0.1, weight_decay=0.0, momentum=0.8, opt_eps=1e-8
    )
    arguments.opt_args = {"lookahead_stepsize": 0.3, "total_steps": 10}
    (group,) = optim.create_optimizer(arguments, Model()).param_groups
    assert (group["momentum"], group["lookahead_stepsize"]) == (0.8, 0.3)
    assert (group["lookahead_warmup"], group["lookahead_rest"]) == (3, 8)


def test_muon_takes_matrices_and_kernels_of_timms_groups_by_their_shape(optim):
    model = Model()
    made = optim.create_optimizer_v2(model, "emanest-muon", lr=0.01, weight_decay=0.3)
    assert by_base(model, made, "muon") == {"patch.weight", "qkv.weight", "head.weight"}
    assert {group["lr"] for group in made.param_groups} == {0.01}
    decays = {
        name: group["weight_decay"]
        for group, (names, _) in zip(made.param_groups, names_in(model, made), strict=True)
        for name in names
    }
    assert decays == {n: 0.3 if p.dim() > 1 else 0.0 for n, p in model.named_parameters()}
    (scale,) = {g["adjust_lr_fn"] for g in made.param_groups if g["base"] == "muon"}
    assert scale == "match_rms_adamw"


def test_the_fallback_list_and_entries_for_adamw(optim):
    model = Model()
    made = optim.create_optimizer_v2(
        *(model, "emanest-muon"),
        lr=0.01,
        fallback_list=["head*", "patch*"],
        adamw={"lr": 0.002, "betas": (0.8, 0.9)},
        adjust_lr_fn="original",
    )
    assert by_base(model, made, "muon") == {"qkv.weight"}
    for group in made.param_groups:
        if group["base"] == "adamw":
            assert (group["lr"], group["betas"]) == (0.002, (0.8, 0.9))
        else:
            assert (group["lr"], group["adjust_lr_fn"]) == (0.01, "original")


@pytest.mark.parametrize("name", ["emanest-muon+ema-nesterov", "emanest-soap", "emanest-aurora"])
def test_split_params_says_where_parameters_go(name, optim):
    model = Model()
    made = optim.create_optimizer_v2(
        *(model, name),
        lr=0.01,
        weight_decay=0.3,
        param_group_fn=lambda model: emanest.split_params(model, verbose=False),
    )
    assert by_base(model, made, "adamw") == {
        n for n, _ in model.named_parameters() if n != "qkv.weight"
    }
    assert {(group["lr"], group["weight_decay"]) for group in made.param_groups} == {(0.01, 0.3)}


def test_decay_by_layer_reaches_the_groups(optim):
    model = Model()
    made = optim.create_optimizer_v2(model, "emanest-muon", lr=0.01, layer_decay=0.5)
    scales = {
        name: group["lr_scale"]
        for group, (names, _) in zip(made.param_groups, names_in(model, made), strict=True)
        for name in names
    }
    assert [scales[n] for n in ("patch.weight", "cls_token", "qkv.weight", "qkv.bias")] == [
        *(0.25, 0.25, 0.5, 0.5)
    ]


def test_names_beside_parameters_stay_with_them(optim):
    model = Model()
    names, params = zip(*model.named_parameters(), strict=True)
    made = optim.create_optimizer_v2(
        [{"params": list(params), "param_names": list(names)}], "emanest-muon"
    )
    assert len(made.param_groups) == 2
    of = {p: name for name, p in model.named_parameters()}
    for group in made.param_groups:
        assert group["param_names"] == [of[p] for p in group["params"]]


def test_it_trains_as_the_optimizer_itself(optim):
    def stepped(make):
        model = Model()
        made = make(model)
        for factor in (1.0, 2.0, 3.0):
            for index, p in enumerate(model.parameters()):
                p.grad = torch.sin(factor * torch.arange(p.numel()) + index).view_as(p)
            made.step()
        return content(made)

    def split(model):
        return emanest.split_params(model, verbose=False)

    def by_hand(model):
        groups = split(model)
        for group in groups:
            group.update(lr=0.01, weight_decay=0.3)
        return emanest.Muon(
            groups, momentum=0.9, adjust_lr_fn="match_rms_adamw", lookahead="ema_nesterov"
        )

    def by_name(model):
        name = "emanest-muon+ema-nesterov"
        return optim.create_optimizer_v2(
            model, name, lr=0.01, weight_decay=0.3, param_group_fn=split
        )

    # the defaults of the group that is not there
    found, expected = stepped(by_name), stepped(by_hand)
    assert differing(found, expected) == []


def test_parameters_and_named_parameters_are_taken_too(optim):
    model = Model()
    for params in (model.parameters(), model.named_parameters()):
        made = optim.create_optimizer_v2(params, "emanest-muon", lr=0.01)
        assert by_base(model, made, "muon") == {"patch.weight", "qkv.weight", "head.weight"}
