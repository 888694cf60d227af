# SPDX-License-Identifier: MIT
"""Hugging Face Trainer: training is exact, what it evaluates and leaves is x."""

import pytest
import torch

import emanest
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
    trained,
    trainer,
    training,
)


@each_lookahead
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_evaluations_equals_a_run_without(name, lookahead, tmp_path):
    plain = trained(tmp_path, lookahead, name, callbacks=())
    for callbacks in ((), (EvalAtIterate,)):
        evaluated = trained(tmp_path, lookahead, name, callbacks, **EVALUATED)
        assert differing(training(evaluated), training(plain)) == []


@pytest.mark.parametrize("event", ["on_substep_end", "on_optimizer_step", "on_step_end"])
def test_an_evaluation_at_any_moment_changes_nothing(event, tmp_path):
    accumulate = {"gradient_accumulation_steps": 2}
    plain = trained(tmp_path, "ema", **accumulate)
    evaluated = trainer(tmp_path, "ema", **accumulate)
    losses = []
    evaluate = At(event, 1, 2, 3, do=lambda control: losses.append(evaluated.evaluate()))
    evaluated.add_callback(evaluate)
    evaluated.train()
    assert len(losses) == 3
    assert differing(training(evaluated), training(plain)) == []


def test_predictions_are_made_at_x(tmp_path):
    run = trained(tmp_path, "ema", callbacks=())
    at_y = run.model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits
    run.model.load_state_dict(emanest.iterate_state_dict(run.model, run))
    expected = run.model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits
    run = trained(tmp_path, "ema", callbacks=())
    rows = [{"input_ids": torch.zeros(8, dtype=torch.long)}]
    found = torch.from_numpy(run.predict(rows).predictions)
    assert torch.equal(found, expected)
    assert not torch.equal(found, at_y)


def test_training_goes_on_after_an_evaluation_that_failed(tmp_path):
    def fail(prediction):
        raise OSError("the metric failed")

    whole = trained(tmp_path, "ema")
    run = trainer(tmp_path, "ema", **SAVED, **EVALUATED, eval_delay=4)
    run.compute_metrics = fail
    with pytest.raises(OSError, match="the metric failed"):
        run.train()
    assert not runs.in_train_mode(run)
    run.compute_metrics = None
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert differing(training(run), training(whole)) == []


def test_another_optimizer_is_refused_as_training_begins(tmp_path):
    run = trainer(tmp_path, "ema")
    run.optimizer_cls_and_kwargs = (torch.optim.AdamW, {})
    with pytest.raises(TypeError, match=r"looked at accelerate.*torch\.optim\.adamw\.AdamW"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_found_and_its_rate_scheduled(name, tmp_path):
    run = trained(tmp_path, "ema", name)
    (inner,) = emanest.find_all(run)
    assert emanest.find([run.lr_scheduler, run.accelerator, run.optimizer]) is inner
    assert {group["lr"] for group in inner.param_groups} == {0.0}
    assert {group["lookahead_t"] for group in inner.param_groups} == {STEPS}
