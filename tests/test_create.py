# SPDX-License-Identifier: MIT
"""create: from a name to an optimizer of a model."""

import copy
import warnings

import pytest
import torch
from torch import nn

import emanest
from emanest import NAG, SNOO, EMANesterov
from helpers import content, differing

OF_MATRICES = ("muon", "normuon", "soap", "aurora")


class Model(nn.Module):
    """An embedding, two hidden matrices, an output layer; a bias that is frozen."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])
        self.head = nn.Linear(4, 7, bias=False)
        self.layers[1].bias.requires_grad_(False)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=generator)

    def forward(self, tokens):
        """The mean of what comes out, squared."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x).square().mean()


def train(model, optimizer, steps=4):
    for step in range(steps):
        model(torch.arange(step, step + 5) % 7).backward()
        optimizer.step()
        optimizer.zero_grad()
    return content(optimizer)


def by_hand(model, name):
    """What ``create`` is short for."""
    cls = emanest.OPTIMIZERS[name]
    if name in OF_MATRICES:
        return lambda **options: cls(emanest.split_params(model, verbose=False), **options)
    named = [(at, p) for at, p in model.named_parameters() if p.requires_grad]
    return lambda **options: cls(named, **options)


@pytest.mark.parametrize("lookahead", [None, EMANesterov(), emanest.GPA()])
@pytest.mark.parametrize("name", emanest.OPTIMIZERS)
def test_a_name_gives_the_optimizer_that_is_written_by_hand(name, lookahead):
    models = Model(), Model()
    whole = name if lookahead is None else f"{name}+{lookahead.name}"
    made = emanest.create(models[0], whole, verbose=False)
    expected = by_hand(models[1], name)(lookahead=lookahead)
    assert type(made) is type(expected)
    assert made.state_dict() == expected.state_dict()
    assert differing(train(models[0], made), train(models[1], expected)) == []


# options of create -> those of the class
OPTIONS = {
    "lr": ("sgd", {"lr": 0.3}, {"lr": 0.3}),
    "an lr that is a tensor": ("sgd", {"lr": torch.tensor(0.3)}, {"lr": torch.tensor(0.3)}),
    "its own": ("adamw", {"betas": (0.8, 0.9)}, {"betas": (0.8, 0.9)}),
    "of all": ("adamw", {"nonfinite": "skip"}, {"nonfinite": "skip"}),
    "a setting": (
        "muon+ema_nesterov",
        {"lookahead_stepsize": 0.3, "lookahead_warmup": 2},
        {"lookahead": EMANesterov(0.3, warmup=2)},
    ),
    "a setting that is needed": ("sgd+nag", {"lookahead_momentum": 0.9}, {"lookahead": NAG(0.9)}),
    "a setting called as an option": (
        "sgd+snoo",
        {"lookahead_every": 3, "lookahead_lr": 0.6, "lr": 0.1},
        {"lookahead": SNOO(3, 0.6), "lr": 0.1},
    ),
    "a method": ("muon", {"lookahead": NAG(0.9)}, {"lookahead": NAG(0.9)}),
    "a method's name": ("adamw", {"lookahead": "gpa"}, {"lookahead": emanest.GPA()}),
    "a name, and a setting": (
        "adamw",
        {"lookahead": "snoo", "lookahead_every": 3},
        {"lookahead": SNOO(3)},
    ),
    "a mapping, and a setting": (
        "adamw",
        {"lookahead": {"name": "snoo", "every": 9}, "lookahead_every": 3},
        {"lookahead": SNOO(3)},
    ),
    "no method": ("adamw", {"lookahead": None}, {}),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_go_where_they_belong(options):
    name, given, expected = OPTIONS[options]
    before = copy.deepcopy(given)
    model = Model()
    made = emanest.create(model, name, verbose=False, **given)
    written = by_hand(model, name.partition("+")[0])(**expected)
    assert made.state_dict() == written.state_dict()
    assert given == before


def test_lr_is_that_of_the_matrices_and_adamw_has_its_own():
    made = emanest.create(Model(), "muon", lr=0.02, adamw={"lr": 3e-4}, verbose=False)
    assert {g["base"]: g["lr"] for g in made.param_groups} == {"muon": 0.02, "adamw": 3e-4}
    made = emanest.create(Model(), "soap", lr=0.02, verbose=False)
    assert {g["base"]: g["lr"] for g in made.param_groups} == {"soap": 0.02, "adamw": 1e-3}


def test_rules_are_those_of_split_params():
    lookahead = {"name": "snoo", "every": 3}
    rules = {"head": "muon", r"layers\.0": {"base": "adamw", "lookahead": lookahead}}
    made = emanest.create(Model(), "muon+ema_nesterov", rules=rules, verbose=False)
    found = {n: g for g in made.param_groups for n in g["param_names"]}
    assert found["head.weight"]["base"] == "muon"
    assert found["layers.0.weight"]["base"] == "adamw"
    assert [found[n]["lookahead"] for n in ("layers.0.bias", "head.weight")] == [
        "snoo",
        "ema_nesterov",
    ]


def test_what_split_params_does_not_need_it_is_not_given(monkeypatch):
    calls = []

    def split(model, **options):
        calls.append(options)
        return [{"params": [*model.parameters()], "base": "adamw"}]

    monkeypatch.setattr("emanest.tools.create.split_params", split)
    emanest.create(Model(), "muon")
    vectors = {"weight_decay": 0.0}
    emanest.create(Model(), "muon", vectors=vectors, adamw={}, rules={}, verbose=False)
    assert calls == [
        {"verbose": True},
        {"vectors": vectors, "adamw": {}, "rules": {}, "verbose": False},
    ]


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("verbose", [2, "yes", None])
def test_other_ways_to_print_are_refused_by_all_optimizers(name, verbose):
    with pytest.raises(ValueError, match=r"verbose must be one of \[True, False, 'all'\], got"):
        emanest.create(Model(), name, verbose=verbose)


def test_the_table_is_printed_unless_it_is_not_wanted(capsys):
    emanest.create(Model(), "muon", verbose=False)
    emanest.create(Model(), "adamw")
    assert capsys.readouterr().out == ""
    emanest.create(Model(), "muon")
    assert "embedding" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_names_of_parameters_are_kept_and_frozen_ones_left_out(name):
    made = emanest.create(Model(), name, verbose=False)
    found = {at for g in made.param_groups for at in g["param_names"]}
    assert found == {at for at, p in Model().named_parameters() if p.requires_grad}


# what may stand for a model -> the optimizers that take it
TAKEN_AS_IT_IS = {
    "parameters": (lambda model: model.parameters(), ("adamw", "sgd", "soap")),
    "a list": (lambda model: [*model.parameters()], ("adamw", "sgd", "soap")),
    "pairs": (lambda model: model.named_parameters(), ("adamw", "sgd", "soap")),
    "groups": (lambda model: [{"params": model.parameters(), "lr": 0.5}], ("adamw", "soap")),
    "split": (lambda model: emanest.split_params(model, verbose=False), ("muon", "soap")),
}


@pytest.mark.parametrize("kind", TAKEN_AS_IT_IS)
def test_parameters_and_groups_are_taken_as_they_are(kind):
    given, names = TAKEN_AS_IT_IS[kind]
    model = Model()
    for name in names:
        made = emanest.create(given(model), f"{name}+ema_nesterov")
        written = emanest.OPTIMIZERS[name](given(model), lookahead=EMANesterov())
        assert made.state_dict() == written.state_dict()


# name, options -> windows of a run of 1000 steps
WINDOWS = {
    "published": ("muon+ema_nesterov", {}, (300, 800)),
    "given": ("adamw+ema_nesterov", {"lookahead_warmup": 20}, (20, 800)),
    "no rest": ("adamw+ema_nesterov", {"lookahead_rest": None}, (300, None)),
    "by lookahead": ("adamw", {"lookahead": "ema_nesterov"}, (300, 800)),
    "in a mapping": ("adamw", {"lookahead": {"name": "ema_nesterov", "rest": 900}}, (300, 900)),
    "of a method": ("adamw", {"lookahead": EMANesterov(warmup=5)}, (5, None)),
}


@pytest.mark.parametrize("windows", WINDOWS)
def test_windows_fit_a_run_of_known_length_unless_given(windows):
    name, options, expected = WINDOWS[windows]
    made = emanest.create(Model(), name, total_steps=1000, verbose=False, **options)
    for group in made.param_groups:
        assert (group["lookahead_warmup"], group["lookahead_rest"]) == expected


def test_without_a_length_windows_are_the_methods_own():
    (group,) = emanest.create(Model(), "adamw+ema_nesterov").param_groups
    assert (group["lookahead_warmup"], group["lookahead_rest"]) == (0, None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw+ema_nesterov", {"lookahead_warmup": 300}, "EMANesterov.warmup=300.* never looks"),
        ("muon+ema_nesterov", {"lookahead_rest": 300}, "EMANesterov.warmup=60, rest=300. never re"),
        ("muon", {"lookahead": EMANesterov(warmup=300)}, "EMANesterov.warmup=300. never looks"),
        ("adamw+snoo", {"lookahead_every": 500}, "SNOO.every=500. never syncs in a run of 200"),
        ("muon", {"rules": {"head": {"lookahead": SNOO(500)}}}, r"SNOO.every=500. .* \(groups \[2"),
    ],
)
def test_what_never_happens_in_a_run_is_said_once(name, options, message):
    with pytest.warns(UserWarning, match=message) as told:
        emanest.create(Model(), name, total_steps=200, verbose=False, **options)
    assert (len(told), told[0].filename) == (1, __file__)


def test_a_run_that_fits_is_no_matter_for_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("adamw", "muon", "muon+ema_nesterov", "sgd+gpa", "sgd+lookahead"):
            emanest.create(Model(), name, total_steps=200, verbose=False)


def test_an_optimizer_of_the_users_own_goes_by_its_name(monkeypatch):
    mine = type("Mine", (emanest.Muon,), {"bases": {"mine": emanest.Muon.bases["muon"]}})
    both = type("Both", (mine,), {"bases": {**mine.bases, **emanest.AdamW.bases}})
    monkeypatch.setitem(emanest.OPTIMIZERS, "mine", mine)
    monkeypatch.setitem(emanest.OPTIMIZERS, "both", both)
    made = emanest.create(Model(), "both+nag", lookahead_momentum=0.5, verbose=False)
    assert {g["base"] for g in made.param_groups} == {"mine", "adamw"}
    # without AdamW for what is no matrix there are no groups to split a model into
    made = emanest.create(nn.Linear(3, 3, bias=False), "mine")
    assert made.param_groups[0]["param_names"] == ["weight"]


NAME = "name must be an optimizer, or an optimizer, a plus and a lookahead, as in 'muon.ema_nester"
# arguments -> the error, and what it says
BAD = {
    "an unknown optimizer": (("adam_w2",), {}, ValueError, r"one of \['adamw',.*mean 'adamw'\?$"),
    "the name of a class": (
        ("Muon",),
        {},
        ValueError,
        "the optimizer in name .*did you mean 'muon",
    ),
    "an optimizer of others": (("lion",), {}, ValueError, "the optimizer in name must be.*'lion'$"),
    "an unknown lookahead": (
        ("muon+ema",),
        {},
        ValueError,
        "the lookahead in name must be one of .*did you mean 'ema_nesterov'",
    ),
    "the wrong way round": (("nag+sgd",), {}, ValueError, "the optimizer in name must be one of"),
    "spaces": (("muon + nag",), {}, ValueError, "got 'muon '; did you mean 'muon'"),
    "no lookahead": (("muon+",), {}, ValueError, f"{NAME}.*got 'muon.'"),
    "no optimizer": (("+nag",), {}, ValueError, f"{NAME}.*got '.nag'"),
    "two lookaheads": (("muon+nag+gpa",), {}, ValueError, f"{NAME}.*got 'muon.nag.gpa'"),
    "nothing": (("",), {}, ValueError, f"{NAME}.*got ''"),
    "a class": ((emanest.Muon,), {}, TypeError, "name must be a string, as in 'muon.ema_nesterov'"),
    "None": ((None,), {}, TypeError, "name must be a string.*got None"),
    "no name": ((), {}, TypeError, "missing 1 required positional argument: 'name'"),
    "a setting is missing": (("sgd+nag",), {}, TypeError, "'nag' needs momentum: .*lookahead_mom"),
    "an unknown setting": (
        ("adamw+ema_nesterov",),
        {"lookahead_step_size": 0.3},
        TypeError,
        "'ema_nesterov' has no setting 'step_size' .*did you mean 'stepsize'",
    ),
    "a bad setting": (
        ("adamw+ema_nesterov",),
        {"lookahead_decay": 1.0},
        ValueError,
        r"decay must be in \[0, 1\), got 1.0",
    ),
    "a setting of none": (
        ("adamw",),
        {"lookahead_decay": 0.9},
        TypeError,
        "lookahead_decay is a setting of a lookahead that is named, and there is none: name one, "
        "as in 'adamw.ema_nesterov'",
    ),
    "a setting of a method": (
        ("adamw",),
        {"lookahead": NAG(0.9), "lookahead_momentum": 0.9},
        TypeError,
        r"lookahead_momentum is a setting .* not of NAG\(momentum=0.9\), which has its own",
    ),
    "two methods": (
        ("adamw+nag",),
        {"lookahead": "gpa", "lookahead_momentum": 0.5},
        ValueError,
        "name 'adamw.nag' has a lookahead already: leave lookahead='gpa' out",
    ),
    "a method and none": (("adamw+gpa",), {"lookahead": None}, ValueError, "leave lookahead=None"),
    "a bad method": (("adamw",), {"lookahead": 3}, TypeError, "lookahead must be a method .*got 3"),
    "an unknown option": (("muon",), {"momentm": 0}, TypeError, "'momentm'; did you mean 'momentu"),
    "an option like lookahead": (
        ("adamw",),
        {"lookaheads": "nag"},
        TypeError,
        "'lookaheads'; did you mean 'lookahead'",
    ),
    "a bad option": (("adamw",), {"betas": 3}, ValueError, "betas must be two numbers"),
    "a bad lr": (("adamw",), {"lr": -1}, ValueError, "Invalid learning rate: -1"),
    "no steps": (("adamw",), {"total_steps": 0}, ValueError, "total_steps must be at least 1"),
    "negative steps": (("adamw",), {"total_steps": -3}, ValueError, "total_steps must be at least"),
    "half a step": (("adamw",), {"total_steps": 0.5}, TypeError, "total_steps must be an integer"),
    "steps in words": (("adamw",), {"total_steps": "9"}, TypeError, "total_steps must be an integ"),
    "rules": (("adamw",), {"rules": {"x": "muon"}}, ValueError, "rules is for the groups of split"),
    "adamw": (("sgd",), {"adamw": {}}, ValueError, "adamw is for .*, and 'sgd' steps no matrices"),
    "vectors": (("sgd",), {"vectors": {}}, ValueError, "vectors is for the groups of split_params"),
    "a rule that finds nothing": (
        ("muon",),
        {"rules": {"x{9}": "muon"}},
        ValueError,
        "x.9.*find n",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_named_and_the_model_stays_as_it_was(bad):
    arguments, options, error, message = BAD[bad]
    model, before = Model(), Model().state_dict()
    with pytest.raises(error, match=message):
        emanest.create(model, *arguments, **{"verbose": False, **options})
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    emanest.create(model, "muon+ema_nesterov", verbose=False)


TAKEN = "model must be an nn.Module, or an iterable of parameters or of groups, got"
# what is no model -> the error, and what it says
NO_MODEL = {
    "None": (None, TypeError, f"{TAKEN} NoneType"),
    "a class": (Model, TypeError, f"{TAKEN} type"),
    "a name": ("muon", TypeError, r"the model comes first: create\(model, 'muon'\)"),
    "a number": (3, TypeError, f"{TAKEN} int"),
    "a tensor": (torch.ones(3), TypeError, "should be an iterable of Tensors or dicts"),
    "a group": ({"params": []}, TypeError, "wrap the group .a dict. in a list"),
    "no parameters": ([], ValueError, "empty parameter list"),
    "a module without any": (
        nn.ReLU(),
        ValueError,
        "no parameter of the model requires a gradient",
    ),
    "a frozen module": (
        nn.Linear(2, 2).requires_grad_(False),
        ValueError,
        "no parameter of the model requires a gradient",
    ),
}


@pytest.mark.parametrize("name", ["adamw", "soap"])
@pytest.mark.parametrize("bad", NO_MODEL)
def test_what_is_no_model_is_named(bad, name):
    model, error, message = NO_MODEL[bad]
    with pytest.raises(error, match=message):
        emanest.create(model, name)


@pytest.mark.parametrize("key", ["rules", "adamw", "vectors"])
def test_groups_of_ones_own_are_not_split(key):
    with pytest.raises(ValueError, match=f"{key} is for .* these are no module: leave it out"):
        emanest.create(Model().parameters(), "soap", **{key: {}})


@pytest.mark.parametrize("cls", [torch.optim.Adagrad, emanest.Wrap, "adamw", None])
def test_what_is_no_optimizer_of_ours_in_the_table_is_an_error(cls, monkeypatch):
    monkeypatch.setitem(emanest.OPTIMIZERS, "adagrad", cls)
    with pytest.raises(TypeError, match=r"OPTIMIZERS\['adagrad'\] must be .*emanest\.Wrap"):
        emanest.create(Model(), "adagrad+nag", lookahead_momentum=0.9)
