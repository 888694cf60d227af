# SPDX-License-Identifier: MIT
"""The examples for frameworks run, shrunk, and learn something; what they save is x."""

import math
import sys

import pytest
import safetensors.torch
import torch
from transformers import LlamaForCausalLM, Trainer

import emanest
import lightning_runs
import runs
from examples import hugging_face, lightning_cli

pytestmark = lightning_runs.quiet


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize("name", ["muon+ema_nesterov", "adamw"])
def test_the_trainer_with_an_optimizer_by_name(name, tmp_path, monkeypatch):
    made = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: (made.append(self), train(self)))
    size = ["--steps", "20", "--width", "16", "--layers", "1"]
    loss = hugging_face.main(["--optimizer", name, *size, "--folder", str(tmp_path)])
    # better than chance among 256 bytes
    assert loss < math.log(256) - 0.25
    inner = emanest.find(made[0])
    bases = {"muon+ema_nesterov": ["muon", "adamw"], "adamw": ["adamw"]}
    assert [group["base"] for group in inner.param_groups] == bases[name]
    if inner.param_groups[0]["lookahead"]:
        assert {group["lookahead_warmup"] for group in inner.param_groups} == {6}
    saved = runs.weights(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert saved == runs.weights(emanest.iterate_state_dict(made[0].model, inner))
    assert isinstance(LlamaForCausalLM.from_pretrained(tmp_path), LlamaForCausalLM)


QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
LINES = {
    "as it is": [],
    "another name": ["--model.optimizer", "adamw+gpa", "--model.lr", "0.01"],
    "a class path": ["--optimizer", "emanest.AdamW", "--optimizer.lookahead", "ema_nesterov"],
}


@pytest.mark.filterwarnings("ignore:`Network.configure_optimizers` will be overridden")
@pytest.mark.parametrize("line", LINES)
def test_the_command_line_with_an_optimizer_by_name(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.max_epochs", "4", "--trainer.accelerator", "cpu", *QUIET]
    arguments = ["lightning_cli.py", "fit", *options, *LINES[line]]
    monkeypatch.setattr(sys, "argv", arguments)
    # half of them would be chance
    assert lightning_cli.main() > 0.55
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    (state,) = lightning_runs.saved(checkpoint)["optimizer_states"]
    # it was written at x
    assert not state["param_groups"][0]["train_mode"]
