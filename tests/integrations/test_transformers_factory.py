# SPDX-License-Identifier: MIT
"""Hugging Face Trainer: an optimizer by its name, its rates and its windows."""

import pickle
import warnings

import pytest
from transformers import Trainer, TrainingArguments

import emanest
from emanest.integrations.transformers import EvalAtIterate, factory
from helpers import differing
from transformers_runs import (
    EVALUATED,
    SAVED,
    STEPS,
    arguments,
    make_model,
    model_weights,
    saved_weights,
    tokens,
    training,
    x_of,
)

MUON = {"lr": 0.02, "adamw": {"lr": 0.05}, "verbose": False}
ADAMW = {"lr": 0.05}
NAMES = {"muon+ema_nesterov": MUON, "soap+gpa": MUON, "adamw+lookahead": ADAMW, "adamw": ADAMW}
each_name = pytest.mark.parametrize("name", NAMES)


def trainer(folder, name, callbacks=(EvalAtIterate,), given=(), **options):
    return Trainer(
        make_model(),
        TrainingArguments(**arguments(folder, **options)),
        train_dataset=tokens(32, 2),
        eval_dataset=tokens(4, 3),
        optimizer_cls_and_kwargs=factory(name, **{**NAMES[name], **dict(given)}),
        callbacks=list(callbacks),
    )


def trained(*args, resume=None, **kwargs):
    run = trainer(*args, **kwargs)
    run.train(resume_from_checkpoint=resume and str(resume))
    return run


@each_name
def test_a_name_is_the_optimizer_that_create_makes(name, tmp_path):
    """Step by step: the Trainer's scheduler and clipping are the only things beside it."""
    run = trained(tmp_path, name, callbacks=(), lr_scheduler_type="constant", max_grad_norm=0.0)
    model = make_model()
    by_hand = Trainer(
        model,
        TrainingArguments(**arguments(tmp_path, lr_scheduler_type="constant", max_grad_norm=0.0)),
        train_dataset=tokens(32, 2),
        optimizers=(emanest.create(model, name, **NAMES[name]), None),
    )
    by_hand.train()
    assert differing(training(run), training(by_hand)) == []


def test_muon_has_the_groups_of_the_model(tmp_path):
    run = trained(tmp_path, "muon+ema_nesterov")
    inner = emanest.find(run)
    expected = emanest.split_params(run.model, verbose=False)
    named = [[name for name, _ in group["params"]] for group in expected]
    assert [group["param_names"] for group in inner.param_groups] == named
    assert [group["base"] for group in inner.param_groups] == ["muon", "adamw"]
    assert {group["lookahead"] for group in inner.param_groups} == {"ema_nesterov"}


def test_the_rates_are_those_of_the_factory_not_of_the_arguments(tmp_path):
    ignored = {"learning_rate": 7.0, "weight_decay": 7.0, "optim": "sgd"}
    run = trained(tmp_path, "muon+ema_nesterov", lr_scheduler_type="linear", **ignored)
    groups = emanest.find(run).param_groups
    assert [group["initial_lr"] for group in groups] == [0.02, 0.05]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.01]


def test_a_class_has_the_weight_decay_of_the_arguments_and_its_own_rate(tmp_path):
    run = Trainer(
        make_model(),
        TrainingArguments(**arguments(tmp_path, learning_rate=7.0, weight_decay=0.25)),
        optimizer_cls_and_kwargs=(emanest.AdamW, {"lookahead": "ema_nesterov"}),
    )
    groups = run.create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.25), (1e-3, 0.0)]


@each_name
def test_a_run_resumes_exactly(name, tmp_path):
    whole = trained(tmp_path, name, **EVALUATED, **SAVED)
    resumed = trained(tmp_path, name, resume=tmp_path / "checkpoint-3", **EVALUATED, **SAVED)
    assert differing(training(resumed), training(whole)) == []


@each_name
def test_the_best_model_is_x_of_the_best_step(name, tmp_path):
    best = {"load_best_model_at_end": True, "save_steps": 2}
    run = trained(tmp_path, name, **EVALUATED, **SAVED | best)
    checkpoint = tmp_path / f"checkpoint-{run.state.best_global_step}"
    assert model_weights(run) == saved_weights(checkpoint) == x_of(run)
    assert run.evaluate()["eval_loss"] == run.state.best_metric


def test_what_the_factory_returns_can_be_pickled():
    make, given = pickle.loads(pickle.dumps(factory("adamw+ema_nesterov", lr=0.1)))
    assert type(make()(make_model(), **given)) is emanest.AdamW


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("muun", r"the optimizer in name must be one of .*; did you mean 'muon'\?"),
        ("muon+emanesterov", r"the lookahead in name must be .*; did you mean 'ema_nesterov'\?"),
    ],
)
def test_a_wrong_name_is_refused_before_the_first_step(name, message, tmp_path):
    run = Trainer(
        make_model(),
        TrainingArguments(**arguments(tmp_path)),
        train_dataset=tokens(32, 2),
        optimizer_cls_and_kwargs=factory(name),
    )
    with pytest.raises(ValueError, match=message):
        run.train()
    assert run.state.global_step == 0


# ---- windows ------------------------------------------------------------------------------------


def windows(run):
    return {
        (group["lookahead_warmup"], group["lookahead_rest"])
        for group in emanest.find(run).param_groups
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, (3, 8)), ({"lookahead_warmup": 1}, (1, 8)), ({"lookahead_rest": 6}, (3, 6))],
)
def test_windows_are_fitted_to_the_run_as_it_begins(given, expected, tmp_path):
    run = trained(
        *(tmp_path, "muon+ema_nesterov", [EvalAtIterate(fit_windows=True)], given), max_steps=10
    )
    assert windows(run) == {expected}
    plain = trained(
        *(tmp_path, "muon+ema_nesterov", [EvalAtIterate]),
        given=zip(("lookahead_warmup", "lookahead_rest"), expected, strict=True),
        max_steps=10,
    )
    assert differing(training(run), training(plain)) == []


def test_a_run_that_is_resumed_keeps_its_windows(tmp_path):
    """And equals the whole run; of a longer one they would be others."""
    fitted = {"callbacks": [EvalAtIterate(fit_windows=True)], **SAVED}
    whole = trained(tmp_path, "muon+ema_nesterov", **fitted)
    assert windows(whole) == {(2, 5)}
    again = {**fitted, "resume": tmp_path / "checkpoint-3"}
    assert (
        differing(training(trained(tmp_path, "muon+ema_nesterov", **again)), training(whole)) == []
    )
    longer = trained(tmp_path, "muon+ema_nesterov", **again, max_steps=2 * STEPS)
    assert windows(longer) == {(2, 5)}


def test_windows_that_miss_the_run_are_warned_of_once_as_it_begins(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(tmp_path, "muon+ema_nesterov", given={"lookahead_warmup": 300}, **EVALUATED)
    (said,) = [str(each.message) for each in caught if "emanest" in str(each.message)]
    assert said.startswith("emanest: EMANesterov(warmup=300) never looks ahead in a run of 6 steps")


@pytest.mark.parametrize("fit_windows", [True, False])
def test_a_second_run_whose_lookahead_rests_throughout_is_warned_of_once(fit_windows, tmp_path):
    """The Trainer keeps its optimizer, and counts its steps from 0 again."""
    given = {} if fit_windows else {"lookahead_warmup": 2, "lookahead_rest": 5}
    # a warning is an error here
    run = trained(tmp_path, "muon+ema_nesterov", [EvalAtIterate(fit_windows)], given)
    first = emanest.find(run)
    for begun in (STEPS, 2 * STEPS):
        rests = (
            rf"EMANesterov\(warmup=2, rest=5\) rests .* its steps {begun} to {begun + STEPS - 1}:"
        )
        with pytest.warns(UserWarning, match=rests) as told:
            run.train()
        assert len([each for each in told if "emanest" in str(each.message)]) == 1
        assert windows(run) == {(2, 5)}
    assert emanest.find(run) is first
    # as the message has it, a new optimizer begins anew
    run.optimizer = None
    run.train()
    assert emanest.find(run).param_groups[0]["lookahead_t"] == STEPS


def test_without_the_option_windows_stay(tmp_path):
    assert windows(trained(tmp_path, "muon+ema_nesterov")) == {(0, None)}


def test_the_option_is_a_flag():
    with pytest.raises(TypeError, match="fit_windows must be True or False, got 'yes'"):
        EvalAtIterate(fit_windows="yes")
