# SPDX-License-Identifier: MIT
"""Entries and rules of ``split_params`` that have no effect, or cannot have it: what is said."""

import warnings

import pytest
import torch
from torch import nn

import emanest
from emanest import Muon, split_params
from test_split import Kinds, Model, settings
from test_split_kinds import linear, module


def said(model, rules=None, **arguments):
    """What it warns of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        split_params(model, rules, verbose=False, **arguments)
    assert all(each.filename == __file__ for each in found)
    return [str(each.message).removeprefix("emanest: ") for each in found]


# ---- vectors ------------------------------------------------------------------------------------

# a rule that finds what is no real matrix -> the parameter, where it was sent, what to do
ASTRAY = {
    "a name": ({"up": "normuon"}, "'blocks.0.up.bias', of shape (16,), to 'normuon'", "up.*weight"),
    "a dict": (
        {"down|up": {"base": "muon", "lr": 1}},
        "'blocks.0.up.bias', of shape (16,), to 'muon'",
        "(?:down|up).*weight",
    ),
    "vectors alone": ({"norm": "muon"}, "'blocks.0.norm.weight', of shape (8,), to 'muon'", None),
    "weights of both kinds": ({"0": "soap"}, "'blocks.0.norm.weight', of shape (8,)", None),
    "what ends": ({"(bias|up.weight)$": "muon"}, "'blocks.0.norm.bias', of shape (8,)", None),
}


@pytest.mark.parametrize("case", ASTRAY)
def test_a_rule_that_sends_a_vector_to_matrices_is_named_with_a_way_out(case):
    rules, what, example = ASTRAY[case]
    (text,) = rules
    with pytest.raises(ValueError, match="which steps real matrices: let it find") as caught:
        split_params(Model(), rules, verbose=False)
    message = str(caught.value)
    assert message.startswith(f"rule {text!r} sends {what}")
    assert "a rule before it that leads this to 'adamw'" in message
    assert ("such as" in message) == (example is not None)
    if example is not None:
        assert f"such as {example!r}" in message
        split_params(Model(), {example: rules[text]}, verbose=False)


def test_a_complex_matrix_is_no_real_one():
    with pytest.raises(ValueError, match=r"'phase', of shape \(4, 4\) and dtype torch.complex64"):
        split_params(Kinds(), {"phase": "muon"}, verbose=False)


def test_an_earlier_rule_keeps_vectors_and_one_without_a_base_leaves_them():
    found = settings(split_params(Model(), {"bias": "adamw", "up": "muon"}, verbose=False))
    assert found["blocks.0.up.bias"] == {"base": "adamw"}
    found = settings(split_params(Model(), {"up": {"lr": 0.5}}, verbose=False))
    assert found["blocks.0.up.bias"] == {"base": "adamw", "lr": 0.5}
    assert found["blocks.0.up.weight"] == {"stack": False, "lr": 0.5}


# ---- entries that nobody reads ------------------------------------------------------------------

OPTIONS = "; there are lr, betas, eps, weight_decay, amsgrad"
# arguments -> what is said: who has it, the entry, the bases, a hint
UNREAD = {
    "short": ({"vectors": {"wd": 0}}, "vectors", "wd", "'adamw'", "; did you mean 'weight_decay'?"),
    "long": (
        {"adamw": {"learning_rate": 1e-3}}, "adamw", "learning_rate", "'adamw'",
        "; did you mean 'lr'?",
    ),
    "short, in capitals": (
        {"vectors": {"WD": 0}}, "vectors", "WD", "'adamw'", "; did you mean 'weight_decay'?"
    ),
    "capitals": ({"adamw": {"LR": 1e-3}}, "adamw", "LR", "'adamw'", "; did you mean 'lr'?"),
    "of matrices, to AdamW": (
        {"adamw": {"momentum": 0.9}}, "adamw", "momentum", "'adamw'", OPTIONS
    ),
    "split, to AdamW": ({"adamw": {"split": 3}}, "adamw", "split", "'adamw'", OPTIONS),
    "no name": ({"adamw": {3: 4}}, "adamw", 3, "'adamw'", OPTIONS),
    "of matrices": (
        {"muon": {"ns_step": 3}}, "muon", "ns_step", "'muon'", "; did you mean 'ns_steps'?"
    ),
    "of another base": (
        {"muon": {"base": "soap", "beta2": 0.9}}, "muon", "beta2", "'soap'",
        "; did you mean 'betas'?",
    ),
    "a rule's": (
        {"rules": {"temp|head": {"split": 2}}}, "rule 'temp|head'", "split", "'adamw'", OPTIONS
    ),
    "a rule's that has a base": (
        {"rules": {"up": {"base": "adamw", "momentum": 0}}}, "rule 'up'", "momentum", "'adamw'",
        OPTIONS,
    ),
    "a rule's that finds both": (
        {"rules": {"up": {"momentums": 0}}}, "rule 'up'", "momentums", "'adamw' or 'muon'",
        "; did you mean 'momentum'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREAD)
def test_an_entry_that_no_base_reads_is_said_once(case):
    arguments, who, key, bases, hint = UNREAD[case]
    expected = f"{who} has {key!r}, which is no option of {bases}, and is not read there{hint}"
    assert said(Model(), **arguments) == [expected]


def test_an_entry_of_ones_own_stays():
    with pytest.warns(UserWarning, match="muon has 'lr_scale', which is no option of 'muon'"):
        groups = split_params(Model(), muon={"lr_scale": 0.5}, verbose=False)
    assert [g["lr_scale"] for g in Muon(groups).param_groups if g["base"] == "muon"] == [0.5]


@pytest.mark.parametrize(
    "arguments",
    [
        # of Muon, NorMuon, SOAP and Aurora: which it will be is not known here
        {"muon": {"ns_steps": 3, "beta2": 0.9, "precondition_frequency": 5, "pp_beta": 0.3}},
        {"muon": {"base": "soap", "betas": (0.9, 0.9)}},
        {"adamw": {"maximize": True, "nonfinite": "skip", "backend": "eager", "amsgrad": True}},
        {"adamw": {"lookahead": None}, "vectors": {"lookahead_stepsize": 0.1}},
        {"adamw": {"initial_lr": 1, "max_lr": 1, "min_lr": 0, "max_momentum": 0.9}},
        # of the matrix, if not of the bias
        {"rules": {"up": {"split": 2}}},
        {"rules": {"up.weight": {"base": "soap", "shampoo_beta": 0.9}}},
    ],
)
def test_nothing_is_said_of_entries_that_are_read(arguments):
    assert said(Model(), **arguments) == []


def test_bases_that_users_add_are_known(monkeypatch):
    class Own(Muon):
        pass

    option = {**Muon.bases["muon"].options, "sharpness": 1}
    Own.bases = {"own": Muon.bases["muon"]._replace(options=option), **Muon.bases}
    monkeypatch.setitem(emanest.OPTIMIZERS, "own", Own)
    assert said(Model(), {"up.weight": {"base": "own", "sharpness": 2}}) == []
    assert said(Model(), muon={"sharpness": 2}) == []


# ---- nothing for an optimizer of matrices -------------------------------------------------------


def test_a_model_without_matrices_is_said_to_have_none():
    (message,) = said(nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8), linear(8, 9)))
    assert message == (
        "no parameter of the model goes to an optimizer of matrices: AdamW steps them all, and lr "
        "and other options for matrices have no effect"
    )
    # an entry decides nothing
    assert said(module(own=torch.ones(3)), {"own": {"lr": 1}}) == [message]


def test_where_a_rule_decided_it_nothing_is_said():
    assert said(Model(), {"": "adamw"}) == []
    assert said(Model()) == []
