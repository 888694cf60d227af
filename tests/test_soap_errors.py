# SPDX-License-Identifier: MIT
"""Bad input of SOAP: options, parameters, checkpoints."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import helpers
from emanest import SOAP
from helpers import content, differing
from helpers import run as train
from ranks import ranks
from soap_runs import soap


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "Invalid learning rate"),
        ({"betas": (1.0, 0.9)}, ValueError, "Invalid beta parameter at index 0"),
        ({"betas": (0.9, -0.1)}, ValueError, "Invalid beta parameter at index 1"),
        ({"shampoo_beta": 1.0}, ValueError, r"shampoo_beta must be in \[0, 1\), got 1.0"),
        ({"shampoo_beta": -1}, ValueError, r"shampoo_beta must be in \[0, 1\), got -1"),
        ({"eps": -1.0}, ValueError, "Invalid epsilon value"),
        ({"weight_decay": -1.0}, ValueError, "Invalid weight_decay value"),
        ({"precondition_frequency": 0}, ValueError, "precondition_frequency must be at least 1"),
        ({"precondition_frequency": 1.5}, TypeError, "precondition_frequency must be "),
        ({"max_precond_dim": -1}, ValueError, "max_precond_dim must be at least 0"),
        ({"correct_bias": "yes"}, TypeError, "correct_bias must be True or False"),
        ({"update_basis": "never"}, ValueError, "update_basis must be one of .*'after', 'before'"),
        ({"decay": "at y"}, ValueError, "decay must be one of .*'after', 'before'"),
        ({"split": 5}, ValueError, r"split=5 does not divide the 6 rows of parameter 0 of group 0"),
        ({"capturable": True}, ValueError, "capturable=True does not work with the base 'soap'"),
        ({"differentiable": True}, ValueError, "differentiable=True is not supported"),
        ({"precond_frequency": 3}, TypeError, "precondition_frequency"),
    ],
)
def test_bad_options_are_named(option, error, message):
    with pytest.raises(error, match=message):
        SOAP(helpers.parameters(shapes=[(6, 4)]), **option)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(3, 4, dtype=torch.complex64), "only real matrices here"),
        (torch.ones(3, dtype=torch.complex64), "only real matrices here"),
        (torch.ones(4, 8, 6), r"set stack=True .* or stack=False"),
    ],
)
def test_what_is_no_real_matrix_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        SOAP([nn.Parameter(given)])


@pytest.mark.parametrize("option", [{"max_precond_dim": 5}, {"split": 2}, {"stack": True}])
def test_what_state_is_shaped_by_does_not_change(option):
    optimizer = soap([(4, 6, 4)])
    train(optimizer, range(2))
    before = content(optimizer)
    ((name, value),) = option.items()
    group = optimizer.param_groups[0]
    old, group[name] = group[name], value
    with pytest.raises(ValueError, match=rf"{name}={value}.* made with another: set it back"):
        train(optimizer, [2])
    group[name] = old
    assert differing(content(optimizer), before) == []
    train(optimizer, [2])


def test_a_vector_has_no_split():
    """Whose length ``split`` need not divide: a group may hold the biases of its matrices."""
    split, plain = (soap([(5,)], split=split) for split in (2, 1))
    for each in (split, plain):
        train(each, range(3))
    a, b = (content(each) for each in (split, plain))
    assert [name for name in differing(a, b) if not name.endswith("/split")] == []


def test_an_option_that_went_bad_is_named_before_anything_moves():
    optimizer = soap()
    train(optimizer, range(2))
    before = content(optimizer)
    optimizer.param_groups[0]["precondition_frequency"] = 0
    with pytest.raises(ValueError, match="precondition_frequency must be at least 1"):
        train(optimizer, [2])
    optimizer.param_groups[0]["precondition_frequency"] = 10
    assert differing(content(optimizer), before) == []


@pytest.mark.parametrize(
    ("module", "function"), [(torch, "geqrf"), (torch.linalg, "householder_product")]
)
@pytest.mark.parametrize("call", [1, 2])
def test_bases_and_averages_stay_together_where_a_qr_fails(monkeypatch, module, function, call):
    """And no parameter moves; L and R have taken the gradient in."""
    optimizer = soap([(6, 4)], precondition_frequency=2)
    train(optimizer, range(2))
    before, calls = content(optimizer), []
    original = getattr(module, function)

    def failing(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise MemoryError("no memory left")
        return original(*args, **options)

    monkeypatch.setattr(module, function, failing)
    with pytest.raises(MemoryError, match="no memory left"):
        train(optimizer, [2])
    changed = {name.rpartition("/")[2].strip("'") for name in differing(content(optimizer), before)}
    assert changed == {"L", "R", "exp_avg", "exp_avg_sq"}
    monkeypatch.undo()
    train(optimizer, [3])


def test_a_checkpoint_of_another_shape_is_refused():
    optimizer = soap()
    train(optimizer, range(2))
    saved = optimizer.state_dict()
    saved["state"][0]["Q_L"] = torch.zeros(3, 4)
    before = content(optimizer)
    with pytest.raises(ValueError, match=r"'Q_L' of parameter 0 .* shape \(3, 4\)"):
        optimizer.load_state_dict(saved)
    assert differing(content(optimizer), before) == []


def refused_if_cut():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for placement in (Shard(0), Shard(1)):
        cut = nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [placement]))
        with pytest.raises(ValueError, match=r"cut over processes.*Muon, NorMuon or Aurora"):
            SOAP([cut])


def test_a_matrix_that_is_cut_is_refused_and_says_what_takes_it():
    ranks()(2, refused_if_cut)
