# SPDX-License-Identifier: MIT
"""Lightning: checkpoints hold x, and a fit resumes from them exactly."""

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

import runs
from emanest.integrations.lightning import EvalAtIterate
from lightning_runs import (
    BATCHES,
    Module,
    each_lookahead,
    fit,
    net_weights,
    never,
    quiet,
    same_training,
    saved,
    x_of,
)

pytestmark = quiet

# when a ModelCheckpoint writes the only file of an epoch
WRITES = {
    "after validation": {"monitor": "loss", "save_on_train_epoch_end": False},
    "at the end of an epoch": {"save_on_train_epoch_end": True},
    "every step": {"every_n_train_steps": 1},
}


@each_lookahead
@pytest.mark.parametrize("writes", WRITES)
@pytest.mark.parametrize("bare", [False, True], ids=["callback", "bare"])
def test_a_fit_resumes_exactly_from_a_checkpoint(lookahead, writes, bare, tmp_path):
    def run(**options):
        files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **WRITES[writes])
        callbacks = [files] if bare else [files, EvalAtIterate]
        return fit(Module("adamw", lookahead), tmp_path, callbacks, **options)

    whole = run()
    path = tmp_path / f"step={BATCHES}.ckpt"
    (state,) = saved(path)["optimizer_states"]
    assert state["param_groups"][0]["train_mode"] == bare
    resumed = run(resume=path)
    assert same_training(resumed, whole)


@each_lookahead
@pytest.mark.parametrize("writes", WRITES)
@pytest.mark.parametrize("weights_only", [False, True])
def test_the_weights_in_a_checkpoint_are_x(lookahead, writes, weights_only, tmp_path):
    options = {**WRITES[writes], "save_weights_only": weights_only}
    files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **options)
    fit(Module("adamw", lookahead), tmp_path, [files, EvalAtIterate])
    plain = Module("adamw", lookahead)
    expected = x_of(plain, never(plain, tmp_path, max_epochs=1))
    assert net_weights(saved(tmp_path / f"step={BATCHES}.ckpt")) == expected
    assert expected != runs.weights(plain.net.state_dict())


def test_without_the_callback_the_weights_in_a_checkpoint_are_y(tmp_path):
    files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    fit(Module("adamw", "ema"), tmp_path, [files])
    plain = Module("adamw", "ema")
    never(plain, tmp_path, max_epochs=1)
    path = tmp_path / f"step={BATCHES}.ckpt"
    assert net_weights(saved(path)) == runs.weights(plain.net.state_dict())


def test_writing_checkpoints_at_each_step_changes_nothing(tmp_path):
    files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    run = fit(Module("wrap", "gpa"), tmp_path, [files, EvalAtIterate], limit_val_batches=0)
    assert same_training(run, never(Module("wrap", "gpa"), tmp_path))


def test_a_checkpoint_of_a_fit_that_is_over_is_x(tmp_path):
    module = Module("adamw", "ema")
    run = fit(module, tmp_path)
    assert run.save_checkpoint.__func__ is pl.Trainer.save_checkpoint
    run.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert net_weights(saved(tmp_path / "last.ckpt")) == x_of(module, run)
