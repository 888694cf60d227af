# SPDX-License-Identifier: MIT
"""Every block of code in docs/frameworks.md runs, and does what is said beside it."""

import re
from pathlib import Path

import lightning
import pytest
import safetensors.torch
import torch
from torch import nn
from torchtitan.components.optimizer import ParamGroupConfig
from transformers import Trainer, TrainingArguments

import emanest
import lightning_runs
import runs
import test_torchtitan
import timm_optim
import transformers_runs

PAGE = (Path(__file__).parents[2] / "docs/frameworks.md").read_text()
# heading -> its blocks of code
SECTIONS = {
    title: blocks
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    if (blocks := re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
}

pytestmark = lightning_runs.quiet


def common():
    """The names that any of the blocks may use."""
    model = nn.Sequential(nn.BatchNorm1d(4), *runs.make_model())
    optimizer = emanest.AdamW(model.parameters(), lr=0.05, lookahead=runs.METHODS["ema"])
    for x, target in runs.loader(3):
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    validated = []
    return {
        "emanest": emanest,
        "torch": torch,
        "lightning": lightning,
        "Trainer": Trainer,
        "ParamGroupConfig": ParamGroupConfig,
        "model": model,
        "optimizer": optimizer,
        "loader": runs.loader(4),
        "loss_fn": nn.functional.mse_loss,
        "validate": lambda model: validated.append(runs.weights(model.state_dict())),
        "validated": validated,
    }


def through_wrappers(names, run):
    model, optimizer = names["model"], names["optimizer"]
    x = runs.weights(emanest.iterate_state_dict(model, optimizer))
    run()
    first, last = names["validated"]
    assert first == x
    assert runs.weights(torch.load("model.pt")) == last
    assert {k for k in x if x[k] != last[k]} == {
        f"0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def accelerate(names, run):
    run()
    inner = emanest.find(names["optimizer"])
    assert inner.param_groups[0]["lookahead_t"] == 2
    (x,) = names["validated"]
    assert runs.weights(safetensors.torch.load_file("model/model.safetensors")) == x
    assert Path("checkpoint/optimizer.bin").exists()


def hugging_face(names, run):
    names["model"] = transformers_runs.make_model()
    names["arguments"] = TrainingArguments(**transformers_runs.arguments("."))
    names["train_dataset"] = transformers_runs.tokens(32, 2)
    names["eval_dataset"] = transformers_runs.tokens(4, 3)
    run()
    inner = emanest.find(names["trainer"])
    assert [(group["base"], group["initial_lr"]) for group in inner.param_groups] == [
        ("muon", 2e-2),
        ("adamw", 3e-3),
    ]
    assert {group["lookahead_warmup"] for group in inner.param_groups} == {2}
    assert not runs.in_train_mode(inner)


def lightning_(names, run):
    names["module"] = lightning_runs.Module("adamw", "ema")
    names["train_loader"], names["validation_loader"] = runs.loader(3), runs.loader(1)
    names["callbacks"], names["make_net"] = [], runs.make_model
    names["options"] = lightning_runs.arguments(".")
    run()
    assert not runs.in_train_mode(names["trainer"])
    assert {mode for _, mode, _ in names["module"].seen} == {False}
    assert issubclass(names["AdamW"], emanest.AdamW)
    named = lightning_runs.trainer(".", limit_val_batches=0)
    named.fit(names["Named"](), runs.loader(3))
    groups = emanest.find(named).param_groups
    assert [(group["base"], group["lookahead_rest"]) for group in groups] == [
        ("muon", 5),
        ("adamw", 5),
    ]


def torchtitan(names, run):
    names["model"] = test_torchtitan.make_model()
    run()
    found = emanest.find_all(names["optimizers"])
    assert [type(each) for each in found] == [emanest.Muon, emanest.AdamW]
    assert [each.param_groups[0]["lookahead_stepsize"] for each in found] == [0.5, 0.3]


def timm(names, run):
    with timm_optim.imported():
        run()
    found = names["optimizer"]
    assert [(group["base"], group["lr"]) for group in found.param_groups] == [
        ("muon", 1e-3),
        ("adamw", 1e-3),
    ]


def pytorch_optimizer(names, run):
    run()
    model, optimizer = names["model"], names["optimizer"]
    for x, target in runs.loader(2):
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    assert {type(names["lion"]).__name__, type(optimizer).__name__} == {"Lion", "Wrap"}
    x = runs.weights(emanest.iterate_state_dict(model, optimizer))
    assert x != runs.weights(model.state_dict())


CASES = {
    "Through wrappers": through_wrappers,
    "Accelerate": accelerate,
    "Hugging Face Trainer": hugging_face,
    "Lightning": lightning_,
    "torchtitan": torchtitan,
    "timm": timm,
    "pytorch_optimizer": pytorch_optimizer,
}


def test_every_section_with_code_is_run():
    assert list(SECTIONS) == list(CASES)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_code_runs_and_does_what_is_said(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = common()
    CASES[title](names, lambda: [exec(block, names) for block in SECTIONS[title]])
