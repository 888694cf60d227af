# SPDX-License-Identifier: MIT
"""Lightning: training is exact, what it validates and leaves is x."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

import emanest
import runs
from emanest.integrations.lightning import EvalAtIterate
from helpers import content, differing
from lightning_runs import (
    ACCUMULATING,
    BATCHES,
    EPOCHS,
    SECONDS,
    Manual,
    Module,
    each_lookahead,
    each_optimizer,
    fit,
    net_weights,
    never,
    quiet,
    same_training,
    saved,
    trainer,
    x_of,
)

pytestmark = quiet


@each_lookahead
@each_optimizer
@pytest.mark.parametrize("how", [{}, ACCUMULATING], ids=["each epoch", "between micro-batches"])
def test_a_fit_with_validations_equals_one_without(name, lookahead, how, tmp_path):
    module, plain = Module(name, lookahead), Module(name, lookahead)
    accumulate = {k: v for k, v in how.items() if k == "accumulate_grad_batches"}
    expected = never(plain, tmp_path, **accumulate)
    run = fit(module, tmp_path, **how)
    assert same_training(run, expected)
    assert len(module.seen) == 1 + EPOCHS * (BATCHES if how else 1)
    assert {mode for _, mode, _ in module.seen} == {False}


@each_lookahead
@each_optimizer
def test_what_is_evaluated_and_left_is_x(name, lookahead, tmp_path):
    module = Module(name, lookahead)
    run = fit(module, tmp_path)
    plain = Module(name, lookahead)
    halves = [runs.weights(plain.net.state_dict())]
    for epochs in (1, 2):
        plain = Module(name, lookahead)
        halves.append(x_of(plain, never(plain, tmp_path, max_epochs=epochs)))
    stages = ["sanity_check", "validate", "validate"]
    assert [stage for stage, _, _ in module.seen] == stages
    assert [found for _, _, found in module.seen] == halves
    assert runs.weights(module.net.state_dict()) == halves[-1]
    module.seen.clear()
    run.validate(module, runs.loader(1), verbose=False)
    run.test(module, runs.loader(1), verbose=False)
    run.predict(module, runs.loader(1))
    assert module.seen == [(stage, False, halves[-1]) for stage in ("validate", "test", "predict")]


@each_lookahead
def test_a_fit_that_nobody_validates_is_left_at_x(lookahead, tmp_path):
    module, plain = Module("adamw", lookahead), Module("adamw", lookahead)
    run = fit(module, tmp_path, limit_val_batches=0)
    expected = never(plain, tmp_path)
    assert runs.weights(module.net.state_dict()) == x_of(plain, expected)
    assert same_training(run, expected)


def test_without_the_callback_validation_and_the_model_that_is_left_are_y(tmp_path):
    module = Module("adamw", "ema")
    run = fit(module, tmp_path, callbacks=())
    assert {mode for _, mode, _ in module.seen} == {True}
    left = runs.weights(module.net.state_dict())
    assert module.seen[-1][2] == left != x_of(module, run)


class Fail(Callback):
    def __init__(self, event):
        def called(*args):
            raise OSError("failed")

        setattr(self, event, called)


@pytest.mark.parametrize(
    "event",
    ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_end"],
)
def test_after_an_exception_the_model_is_at_x_and_another_fit_is_exact(event, tmp_path):
    module, files = Module("adamw", "ema"), ModelCheckpoint(tmp_path, "{epoch}")
    run = trainer(tmp_path, [EvalAtIterate, files, Fail(event)], num_sanity_val_steps=0)
    loaders = runs.loader(BATCHES), runs.loader(1)
    with pytest.raises(OSError, match="failed"):
        run.fit(module, *loaders)
    assert not runs.in_train_mode(run)
    assert runs.weights(module.net.state_dict()) == x_of(module, run)
    run.callbacks = [each for each in run.callbacks if not isinstance(each, Fail)]
    again = Module("adamw", "ema")
    run.fit(again, *loaders)
    assert run.save_checkpoint.__func__ is pl.Trainer.save_checkpoint
    plain = Module("adamw", "ema")
    assert runs.weights(again.net.state_dict()) == x_of(plain, never(plain, tmp_path))


def test_an_exception_is_not_hidden_by_a_second_one(tmp_path, monkeypatch):
    def no_memory(self):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(emanest.AdamW, "eval", no_memory)
    with (
        pytest.warns(UserWarning, match="the model is left at y, not at x, because out of memory"),
        pytest.raises(OSError, match="failed"),
    ):
        fit(
            *(Module("adamw", "ema"), tmp_path, [EvalAtIterate, Fail("on_before_optimizer_step")]),
            limit_val_batches=0,
        )


@pytest.mark.parametrize("second", SECONDS)
def test_several_optimizers_go_together(second, tmp_path):
    module, plain = Manual(SECONDS[second]), Manual(SECONDS[second])
    expected = never(plain, tmp_path)
    x = x_of(plain, expected)
    run = fit(module, tmp_path, val_check_interval=1)
    assert runs.weights(module.net.state_dict()) == x == module.seen[-1][2]
    assert same_training(run, expected)
    assert runs.weights(module.net.state_dict()) == runs.weights(plain.net.state_dict())


@each_optimizer
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_can_be_clipped(name, precision, tmp_path):
    clipped, plain = Module(name, "ema"), Module(name, "ema")
    fit(clipped, tmp_path, gradient_clip_val=1e-3, precision=precision)
    fit(plain, tmp_path, precision=precision)
    assert runs.weights(clipped.net.state_dict()) != runs.weights(plain.net.state_dict())


def test_where_we_would_unscale_ourselves_a_subclass_leaves_clipping_to_lightning(
    tmp_path, monkeypatch
):
    """The flag is that of a GPU, where Lightning looks at it even without a GradScaler."""
    monkeypatch.setattr(emanest.step.plan, "scales_on_device", lambda optimizer: True)
    mixed = {"gradient_clip_val": 1e-3, "precision": "bf16-mixed"}
    with pytest.raises(RuntimeError, match="AdamW, does not allow for gradient clipping"):
        fit(Module("adamw", "ema"), tmp_path, **mixed)

    class AdamW(emanest.AdamW):
        _step_supports_amp_scaling = False

    monkeypatch.setattr(emanest, "AdamW", AdamW)
    assert isinstance(emanest.find(fit(Module("adamw", "ema"), tmp_path, **mixed)), AdamW)


def test_rates_are_scheduled(tmp_path):
    run = fit(Module("adamw", "ema"), tmp_path)
    assert emanest.find(run).param_groups[0]["lr"] == pytest.approx(0.05 * 0.7**EPOCHS)


@pytest.mark.parametrize("sanity", [0, 1])
def test_another_optimizer_is_refused_before_the_first_batch(sanity, tmp_path):
    module = Module("adamw", "ema")
    module.training_step = lambda batch, batch_idx: pytest.fail("a batch was trained on")
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters())
    with pytest.raises(TypeError, match=r"looked at list, torch\.optim\.adamw\.AdamW \(\[0\]\)"):
        fit(module, tmp_path, num_sanity_val_steps=sanity)


def test_without_a_fit_there_is_no_optimizer_to_act_on(tmp_path):
    class Save(Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "file.ckpt")

    module = Module("adamw", "ema")
    trainer(tmp_path, [EvalAtIterate, Save]).validate(module, runs.loader(1), verbose=False)
    assert net_weights(saved(tmp_path / "file.ckpt")) == runs.weights(module.net.state_dict())
    assert module.seen == [("validate", None, runs.weights(module.net.state_dict()))]


@each_optimizer
def test_it_is_found_in_lightnings_wrapper_which_imitates_it(name, tmp_path):
    module = Module(name, "ema")
    run = fit(module, tmp_path)
    outer = module.optimizers()
    assert isinstance(outer, emanest.Optimizer)
    assert emanest.find(outer) is run.optimizers[0] is not outer
    assert emanest.find([outer, run]) is run.optimizers[0]


@each_optimizer
def test_fabrics_wrapper_evaluates_at_x(name):
    fabric = Fabric(accelerator="cpu", devices=1)
    net = runs.make_model()
    inner = runs.OPTIMIZERS[name](net, runs.METHODS["ema"])
    model, optimizer = fabric.setup(net, inner)
    for x, target in runs.loader(BATCHES):
        fabric.backward(nn.functional.mse_loss(model(x), target))
        optimizer.step()
        optimizer.zero_grad()
    assert emanest.find(optimizer) is inner
    before = content(inner)
    x = emanest.iterate_state_dict(net, optimizer)
    with emanest.at_iterate(optimizer):
        assert runs.weights(net.state_dict()) == runs.weights(x)
    assert differing(content(inner), before) == []


# ---- callbacks that average ---------------------------------------------------------------------


class Averaging(WeightAveraging):
    """A user's."""


AVERAGING = {
    "WeightAveraging": WeightAveraging,
    "EMAWeightAveraging": lambda: EMAWeightAveraging(decay=0.5),
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(1e-2, 1),
    "Averaging": Averaging,
}


@pytest.mark.parametrize("limit", [0, 1], ids=["not validated", "validated"])
@pytest.mark.parametrize("averaging", AVERAGING)
def test_what_averages_after_the_callback_leaves_its_average(averaging, limit, tmp_path):
    module, average = Module("adamw", "ema"), AVERAGING[averaging]()
    # a warning is an error here
    fit(module, tmp_path, [EvalAtIterate, average], limit_val_batches=limit)
    averaged = getattr(average._average_model, "module", average._average_model)
    assert runs.weights(module.net.state_dict()) == runs.weights(averaged.net.state_dict())


@pytest.mark.parametrize("averaging", AVERAGING)
def test_what_averages_before_the_callback_is_warned_of(averaging, tmp_path):
    """Once per fit; x would be written over its average."""
    module, average = Module("adamw", "ema"), AVERAGING[averaging]()
    run = trainer(tmp_path, [average, EvalAtIterate], limit_val_batches=0)
    match = f"{averaging} may write the average .* make EvalAtIterate the first callback"
    with pytest.warns(UserWarning, match=match) as caught:
        run.fit(module, runs.loader(BATCHES), runs.loader(1))
    assert len([each for each in caught if "emanest" in str(each.message)]) == 1
    averaged = getattr(average._average_model, "module", average._average_model)
    assert runs.weights(module.net.state_dict()) != runs.weights(averaged.net.state_dict())
    run.test(module, runs.loader(1), verbose=False)
