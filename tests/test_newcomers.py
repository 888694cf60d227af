# SPDX-License-Identifier: MIT
"""What is said to mistakes of the first hour: one line that has the way out."""

import re

import pytest
import torch
from torch import nn

import emanest
from emanest import EMANesterov, backends


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))


def adamw(**options):
    return emanest.AdamW(model().parameters(), **options)


def group(**entries):
    return emanest.AdamW([{"params": model().parameters(), **entries}])


def create(name="adamw+ema_nesterov", **options):
    return emanest.create(model(), name, verbose=False, **options)


def running(lookahead):
    """A step after a group got a lookahead that is no name."""
    optimizer = adamw()
    optimizer.param_groups[0]["lookahead"] = lookahead
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()


# what is typed -> what is said
ERRORS = {
    "the class of a method": (
        lambda: adamw(lookahead=EMANesterov),
        "got the class: write emanest.EMANesterov()",
    ),
    "another spelling": (lambda: adamw(lookahead="EMANesterov"), "did you mean 'ema_nesterov'?"),
    "a setting that is missing": (
        lambda: adamw(lookahead="snoo"),
        'needs every: pass {"name": "snoo", "every": ...}',
    ),
    "a setting as an argument": (
        lambda: adamw(lookahead="ema_nesterov", lookahead_stepsize=0.3),
        'pass lookahead={"name": ..., "stepsize": ...}',
    ),
    "a setting as an option": (
        lambda: create(stepsize=0.3),
        "stepsize is a setting of the lookahead 'ema_nesterov', not an option of AdamW: write "
        "lookahead_stepsize=0.3",
    ),
    "a name as a setting": (
        lambda: create(lookahead_name="gpa"),
        "lookahead_name is no setting: name the lookahead behind a plus",
    ),
    "the model behind the name": (
        lambda: emanest.create("adamw", model()),
        "the model comes first: create(model, 'adamw')",
    ),
    "a state dict": (
        lambda: emanest.AdamW(model().state_dict()),
        "pass model.parameters(), or model.named_parameters()",
    ),
    "a group without a list": (
        lambda: emanest.AdamW({"params": model().parameters()}),
        "wrap the group (a dict) in a list",
    ),
    "vectors for Muon": (
        lambda: emanest.Muon(model().parameters()),
        "emanest.split_params(model) sends what is no matrix to AdamW",
    ),
    "an option of a group": (lambda: group(lr=-1), "group 0: Invalid learning rate: -1"),
    "a rate of integers": (
        lambda: adamw(lr=torch.tensor(1)),
        "Tensor lr must hold a floating-point number, got torch.int64",
    ),
    "a mapping in a running group": (
        lambda: running({"name": "snoo", "every": 5}),
        'group.update({"lookahead": "snoo", "lookahead_every": 5})',
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_the_error_has_the_way_out(mistake):
    do, said = ERRORS[mistake]
    with pytest.raises((TypeError, ValueError), match=re.escape(said)) as raised:
        do()
    assert "\n" not in str(raised.value)


WARNINGS = {
    "a window beyond the run": (
        lambda: create(total_steps=200, lookahead_warmup=300, lookahead_rest=1950),
        "never looks ahead in a run of 200 steps: for_run(200) gives warmup=60, rest=160",
    ),
    "settings without a lookahead": (
        lambda: group(lookahead_stepsize=0.3),
        "group 0 has 'lookahead_stepsize', and no lookahead: name one",
    ),
    "capitals": (lambda: group(LR=0.1), "did you mean 'lr'?"),
    "nearly a setting": (
        lambda: group(lookahead="ema_nesterov", lookahead_step=0.3),
        "did you mean 'lookahead_stepsize'?",
    ),
}


@pytest.mark.parametrize("mistake", WARNINGS)
def test_the_warning_has_the_way_out(mistake):
    do, said = WARNINGS[mistake]
    with pytest.warns(UserWarning, match=re.escape(said)):
        do()


def test_a_back_end_of_the_environment_that_is_none_is_named_as_such(monkeypatch):
    monkeypatch.setattr(backends, "_picked", {})
    monkeypatch.setenv("EMANEST_BACKEND", "Cpp")
    with pytest.raises(ValueError, match=r"EMANEST_BACKEND must be one of .*, got 'Cpp'"):
        adamw()


def test_a_run_of_unknown_length_has_no_windows():
    """As Lightning says infinity, and other whole numbers as floats."""
    (entries,) = create(total_steps=float("inf")).param_groups
    assert (entries["lookahead_warmup"], entries["lookahead_rest"]) == (0, None)
    (entries,) = create(total_steps=200.0).param_groups
    assert (entries["lookahead_warmup"], entries["lookahead_rest"]) == (60, 160)


def test_a_lookahead_that_joins_a_run_has_the_windows_of_what_is_left():
    from emanest.tools.windows import fit_windows

    optimizer = adamw(lookahead="ema_nesterov")
    fit_windows(optimizer, 100, 50)
    (entries,) = optimizer.param_groups
    assert (entries["lookahead_warmup"], entries["lookahead_rest"]) == (15, 40)
    with pytest.warns(UserWarning, match="never rests in a run of 30 steps"):
        emanest.warn_of_windows(optimizer, 100, 70)
