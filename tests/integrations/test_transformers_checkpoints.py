# SPDX-License-Identifier: MIT
"""Hugging Face Trainer: what it saves is x, and a run resumes from it exactly."""

import pytest
import torch

import runs
from emanest.integrations.transformers import EvalAtIterate
from helpers import differing
from transformers_runs import (
    EVALUATED,
    OPTIMIZERS,
    SAVED,
    STEPS,
    At,
    each_lookahead,
    model_weights,
    saved_weights,
    trained,
    training,
    x_of,
)


@each_lookahead
@pytest.mark.parametrize("callbacks", [(), (EvalAtIterate,)], ids=["bare", "callback"])
@pytest.mark.parametrize(
    "evaluated", [{}, {**EVALUATED, "eval_steps": 3}], ids=["never", "at save"]
)
def test_a_run_resumes_exactly_from_either_mode(lookahead, callbacks, evaluated, tmp_path):
    arguments = {"callbacks": callbacks, **evaluated, **SAVED}
    whole = trained(tmp_path, lookahead, **arguments)
    checkpoint = tmp_path / "checkpoint-3"
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    # it is evaluations and the callback that go to x
    assert saved["param_groups"][0]["train_mode"] == (not callbacks and not evaluated)
    resumed = trained(tmp_path, lookahead, resume=checkpoint, **arguments)
    assert differing(training(resumed), training(whole)) == []


@each_lookahead
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_what_is_saved_and_what_is_left_is_x(name, lookahead, strategy, tmp_path):
    half, steps = tmp_path / "half", 16
    stopped = trained(half, lookahead, name, callbacks=(), max_steps=steps)
    run = trained(
        *(tmp_path, lookahead, name),
        max_steps=steps,
        save_strategy=strategy,
        save_steps=steps,
    )
    assert saved_weights(tmp_path / f"checkpoint-{steps}") == x_of(stopped) == model_weights(run)
    assert not runs.in_train_mode(run)
    run.save_model(str(half))
    assert saved_weights(half) == model_weights(run)


def test_resuming_a_run_that_is_over_leaves_x(tmp_path):
    # an epoch: of a shorter run the Trainer would take one step more
    steps = {"max_steps": 16, "save_strategy": "epoch"}
    over = trained(tmp_path, "ema", callbacks=(), **steps)
    resumed = trained(tmp_path, "ema", resume=tmp_path / "checkpoint-16", **steps)
    assert resumed.state.global_step == 16
    assert model_weights(resumed) == x_of(over) != model_weights(over)


def test_a_model_saved_half_way_is_x(tmp_path):
    stopped = trained(
        *(tmp_path / "stopped", "ema"),
        callbacks=[
            At("on_step_end", 3, do=lambda control: setattr(control, "should_training_stop", True))
        ],
    )
    trained(tmp_path, "ema", **SAVED)
    assert saved_weights(tmp_path / "checkpoint-3") == x_of(stopped)


def test_without_the_callback_the_model_that_is_saved_and_left_is_y(tmp_path):
    run = trained(tmp_path, "ema", callbacks=(), **SAVED)
    assert runs.in_train_mode(run)
    saved = saved_weights(tmp_path / f"checkpoint-{STEPS}")
    assert saved == model_weights(run)
    assert saved != x_of(run)


@each_lookahead
@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_without_the_callback_what_is_saved_after_an_evaluation_is_x(lookahead, strategy, tmp_path):
    def stop(control):
        control.should_training_stop = True

    stopped = trained(tmp_path / "half", lookahead, callbacks=[At("on_step_end", 2, do=stop)])
    saves = {"save_strategy": strategy, "save_steps": 2, "metric_for_best_model": "loss"}
    run = trained(tmp_path, lookahead, callbacks=(), **EVALUATED, **saves)
    assert saved_weights(tmp_path / "checkpoint-2") == x_of(stopped)
    assert strategy == "steps" or run.state.best_global_step == 2


@each_lookahead
def test_the_best_model_is_x_of_the_best_step(lookahead, tmp_path):
    # tokens are random: the first evaluation is the best, and others come after it
    best = {"load_best_model_at_end": True, "save_steps": 2}
    run = trained(tmp_path, lookahead, **EVALUATED, **SAVED | best)
    assert run.state.best_global_step < STEPS
    checkpoint = tmp_path / f"checkpoint-{run.state.best_global_step}"
    assert model_weights(run) == saved_weights(checkpoint) == x_of(run)
    assert run.evaluate()["eval_loss"] == run.state.best_metric


@each_lookahead
def test_a_run_that_is_stopped_has_the_best_model(lookahead, tmp_path):
    """The last step is in train mode when the best model is loaded over it."""

    def stop(control):
        control.should_training_stop = True

    best = {"load_best_model_at_end": True, "save_steps": 2}
    stopping = [EvalAtIterate, At("on_step_end", 5, do=stop)]
    run = trained(tmp_path, lookahead, callbacks=stopping, **EVALUATED, **SAVED | best)
    assert run.state.global_step == 5
    checkpoint = tmp_path / f"checkpoint-{run.state.best_global_step}"
    assert model_weights(run) == saved_weights(checkpoint)
    assert run.evaluate()["eval_loss"] == run.state.best_metric


def test_without_the_callback_a_best_model_may_be_moved_by_the_next_evaluation(tmp_path):
    def stop(control):
        control.should_training_stop = True

    best = {"load_best_model_at_end": True, "save_steps": 2}
    stopping = [At("on_step_end", 5, do=stop)]
    run = trained(tmp_path, "ema", callbacks=stopping, **EVALUATED, **SAVED | best)
    checkpoint = tmp_path / f"checkpoint-{run.state.best_global_step}"
    assert model_weights(run) == saved_weights(checkpoint)
    assert run.evaluate()["eval_loss"] != run.state.best_metric


def test_a_save_that_is_decided_later_is_warned_of(tmp_path):
    def save(control):
        control.should_save = True

    late, early = ([EvalAtIterate, At("on_step_end", 3, do=save)][::order] for order in (1, -1))
    with pytest.warns(UserWarning, match="checkpoint 3 was saved at y, not at x: make EvalAtIter"):
        trained(tmp_path / "late", "ema", callbacks=late)
    run = trained(tmp_path / "early", "ema", callbacks=early)
    assert saved_weights(tmp_path / "late/checkpoint-3") != saved_weights(
        tmp_path / "early/checkpoint-3"
    )
    assert not runs.in_train_mode(run)
