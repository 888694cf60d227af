# SPDX-License-Identifier: MIT
"""LightningCLI: optimizers by class path and by name; the run's length reaches the windows."""

import math
import sys
import warnings
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import LightningCLI

import emanest
import lightning_runs
import runs
from emanest.integrations.lightning import EvalAtIterate
from lightning_runs import BATCHES, EPOCHS, quiet, same_training

pytestmark = [*quiet, pytest.mark.filterwarnings("ignore:No seed found")]
LENGTH = BATCHES * EPOCHS


class Plain(pl.LightningModule):
    """Without an optimizer of its own: the command line has one."""

    def __init__(self):
        super().__init__()
        self.net = runs.make_model()

    def training_step(self, batch, batch_idx):
        x, target = batch
        return torch.nn.functional.mse_loss(self.net(x), target)

    def train_dataloader(self):
        return runs.loader(BATCHES)


class Named(Plain):
    """Makes the optimizer of a name, which needs the model."""

    def __init__(self, optimizer: str = "adamw", lr: float = 1e-3, adamw: dict | None = None):
        super().__init__()
        self.make = {"name": optimizer, "lr": lr, "adamw": adamw}

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        return emanest.create(self, **self.make, total_steps=steps, verbose=False)


def run(folder, module, *line, **options):
    """The trainer of a command line, after its fit."""
    defaults = lightning_runs.arguments(folder, limit_val_batches=0, **options)
    with mock.patch.object(sys, "argv", ["script.py", "fit", *line]):
        return LightningCLI(module, trainer_defaults=defaults, save_config_callback=None).trainer


def entries(trainer, *names):
    return [tuple(group[name] for name in names) for group in emanest.find(trainer).param_groups]


BY_CLASS_PATH = {
    "a name": (["--optimizer.lookahead", "ema_nesterov"], emanest.EMANesterov()),
    "a mapping": (
        ["--optimizer.lookahead", '{"name": "ema_nesterov", "stepsize": 0.3}'],
        emanest.EMANesterov(0.3),
    ),
    "nothing": ([], None),
}


@pytest.mark.parametrize("how", BY_CLASS_PATH)
def test_a_class_path_is_the_optimizer(how, tmp_path):
    line, method = BY_CLASS_PATH[how]
    options = ["--optimizer.lr", "0.05", "--optimizer.betas", "[0.8,0.9]"]
    cli = run(tmp_path, Plain, "--optimizer", "emanest.AdamW", *options, *line)
    plain = Plain()
    plain.configure_optimizers = lambda: emanest.AdamW(
        plain.parameters(), lr=0.05, betas=(0.8, 0.9), lookahead=method
    )
    expected = lightning_runs.trainer(tmp_path, (), limit_val_batches=0)
    expected.fit(plain)
    assert same_training(cli, expected)


@pytest.mark.parametrize("optimizer", emanest.OPTIMIZERS.values())
def test_every_optimizer_can_be_described_on_the_command_line(optimizer, tmp_path, capsys):
    """What the command line reads of a constructor: each option, with its default."""
    with pytest.raises(SystemExit, match=r"^0$"):
        run(tmp_path, Plain, "--optimizer.help", f"emanest.{optimizer.__name__}")
    said = capsys.readouterr().out
    for option in ("lr", "weight_decay", "lookahead", "nonfinite"):
        assert f"--optimizer.{option} " in said


def test_a_configuration_file_is_as_good_as_the_command_line(tmp_path):
    (tmp_path / "fit.yaml").write_text(
        "optimizer:\n"
        "  class_path: emanest.SGD\n"
        "  init_args: {lr: 0.1, momentum: 0.9, lookahead: {name: gpa, mu_x: 0.9}}\n"
        "trainer:\n"
        "  callbacks:\n"
        "  - class_path: emanest.integrations.lightning.EvalAtIterate\n"
        "    init_args: {fit_windows: true}\n"
    )
    trainer = run(tmp_path, Plain, "--config", str(tmp_path / "fit.yaml"))
    assert entries(trainer, "lr", "lookahead", "lookahead_mu_x") == [(0.1, "gpa", 0.9)]
    assert [each.fit_windows for each in trainer.callbacks if isinstance(each, EvalAtIterate)]
    assert not runs.in_train_mode(trainer)


def test_a_name_makes_muon_with_the_groups_of_the_module(tmp_path):
    line = ["--model.optimizer", "muon+ema_nesterov", "--model.lr", "0.02"]
    trainer = run(tmp_path, Named, *line, "--model.adamw", '{"lr": 0.05}')
    assert entries(trainer, "base", "lr") == [("muon", 0.02), ("adamw", 0.05)]
    assert entries(trainer, "lookahead_warmup", "lookahead_rest") == [(3, 8), (3, 8)]


def test_a_wrong_option_is_refused_before_anything_runs(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        run(tmp_path, Plain, "--optimizer", "emanest.AdamW", "--optimizer.lookahed", "gpa")
    assert "lookahed" in capsys.readouterr().err
    with pytest.raises(ValueError, match="did you mean 'ema_nesterov'"):
        run(tmp_path, Plain, "--optimizer", "emanest.AdamW", "--optimizer.lookahead", "emanesterov")


# ---- the callback knows the run's length --------------------------------------------------------


def fit(folder, method, callback, resume=None, **options):
    module = lightning_runs.Module("adamw", "ema")
    module.configure_optimizers = lambda: emanest.AdamW(module.parameters(), lookahead=method)
    return lightning_runs.fit(module, folder, [callback], resume=resume, **options)


def test_windows_are_fitted_to_the_run_as_it_begins(tmp_path):
    found = fit(tmp_path, "ema_nesterov", EvalAtIterate(fit_windows=True))
    assert entries(found, "lookahead_warmup", "lookahead_rest") == [(3, 8)]
    made = fit(tmp_path, emanest.EMANesterov.for_run(LENGTH), EvalAtIterate())
    assert same_training(found, made)


def test_accumulated_batches_are_steps_once(tmp_path):
    found = fit(
        *(tmp_path, "ema_nesterov", EvalAtIterate(fit_windows=True)), accumulate_grad_batches=5
    )
    assert entries(found, "lookahead_warmup", "lookahead_rest", "lookahead_t") == [
        (1, None, EPOCHS)
    ]


def test_a_fit_that_is_resumed_keeps_its_windows(tmp_path):
    first = fit(tmp_path, "ema_nesterov", EvalAtIterate(fit_windows=True))
    first.save_checkpoint(tmp_path / "first.ckpt")
    again = fit(
        *(tmp_path, "ema_nesterov", EvalAtIterate(fit_windows=True), tmp_path / "first.ckpt"),
        max_epochs=2 * EPOCHS,
    )
    assert entries(again, "lookahead_warmup", "lookahead_rest", "lookahead_t") == [
        (3, 8, 2 * LENGTH)
    ]


def said(**options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(**options, callback=EvalAtIterate())
    return [str(each.message) for each in caught if "emanest" in str(each.message)]


def test_windows_that_miss_the_run_are_warned_of_once_as_it_begins(tmp_path):
    (message,) = said(folder=tmp_path, method=emanest.EMANesterov(warmup=300))
    assert "EMANesterov(warmup=300) never looks ahead in a run of 10 steps" in message


@pytest.mark.parametrize("fit_windows", [True, False])
def test_a_second_fit_whose_lookahead_rests_throughout_is_warned_of_once(fit_windows, tmp_path):
    """Of a module that gives the same optimizer to both."""
    module = lightning_runs.Module("adamw", "ema")
    method = emanest.EMANesterov(warmup=2, rest=6)
    optimizer = emanest.AdamW(module.parameters(), lookahead=method)
    module.configure_optimizers = lambda: optimizer
    # a warning is an error here
    lightning_runs.fit(module, tmp_path, [EvalAtIterate(fit_windows)])
    with pytest.warns(UserWarning, match=r"rests in the whole of .* its steps 10 to 19:") as told:
        lightning_runs.fit(module, tmp_path, [EvalAtIterate(fit_windows)])
    assert len([each for each in told if "emanest" in str(each.message)]) == 1


def test_of_a_run_without_an_end_nothing_is_said(tmp_path, monkeypatch):
    """Its length is infinite until something else ends it."""
    seen = []
    monkeypatch.setattr(
        lightning_runs.Module,
        "on_train_start",
        lambda self: seen.append(self.trainer.estimated_stepping_batches),
    )
    method = emanest.EMANesterov(warmup=300)
    endless = {"max_epochs": -1, "max_time": {"milliseconds": 1}}
    assert said(folder=tmp_path, method=method, **endless) == []
    assert seen == [math.inf]


def test_in_manual_optimization_nobody_counts_the_steps(tmp_path):
    module = lightning_runs.Manual(lightning_runs.SECONDS["torch"])
    module.configure_optimizers = lambda: emanest.AdamW(
        module.parameters(), lookahead=emanest.EMANesterov(warmup=300)
    )
    module.training_step = lambda batch, batch_idx: None
    # a warning is an error here
    lightning_runs.fit(module, tmp_path, [EvalAtIterate(fit_windows=True)])
