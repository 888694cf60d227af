# SPDX-License-Identifier: MIT
"""Accelerate: a prepared optimizer is the optimizer."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import lr_scheduler

import emanest
import runs
from helpers import content, differing

each_lookahead = pytest.mark.parametrize("lookahead", runs.LOOKAHEADS)
each_optimizer = pytest.mark.parametrize("name", runs.OPTIMIZERS)

BATCHES = 12


class Run:
    """A training run under Accelerate that can go on, be evaluated and be saved."""

    def __init__(self, name, lookahead, accumulate=1):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        model = runs.make_model()
        inner = runs.OPTIMIZERS[name](model, runs.METHODS[lookahead])
        self.inner = inner
        prepared = self.accelerator.prepare(
            model, inner, lr_scheduler.CosineAnnealingLR(inner, 8), runs.loader(BATCHES)
        )
        self.model, self.optimizer, self.scheduler, self.loader = prepared

    def train(self, batches, each=lambda: None):
        for t, (x, target) in enumerate(self.loader):
            if t in batches:
                with self.accelerator.accumulate(self.model):
                    loss = nn.functional.mse_loss(self.model(x), target)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
                each()
        return self


def plain(name, lookahead, accumulate=1):
    model = runs.make_model()
    optimizer = runs.OPTIMIZERS[name](model, runs.METHODS[lookahead])
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for t, (x, target) in enumerate(runs.loader(BATCHES)):
        (nn.functional.mse_loss(model(x), target) / accumulate).backward()
        if (t + 1) % accumulate == 0:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return optimizer


@each_lookahead
@each_optimizer
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_prepared_run_is_the_plain_loop(name, lookahead, accumulate):
    run = Run(name, lookahead, accumulate).train(range(BATCHES))
    expected = plain(name, lookahead, accumulate)
    assert differing(content(run.inner), content(expected)) == []
    assert run.inner.param_groups[0]["lookahead_t"] == BATCHES // accumulate
    assert run.optimizer.param_groups[0]["lr"] != run.scheduler.scheduler.base_lrs[0]


@each_lookahead
@each_optimizer
def test_evaluations_between_micro_batches_change_nothing(name, lookahead):
    def evaluate():
        run.optimizer.eval()
        modes.add(runs.in_train_mode(run.optimizer))
        xs.append(runs.weights(run.model.state_dict()))
        run.optimizer.train()
        ys.append(runs.weights(run.model.state_dict()))

    xs, ys, modes = [], [], set()
    run = Run(name, lookahead, accumulate=2)
    run.train(range(BATCHES), each=evaluate)
    assert differing(content(run.inner), content(plain(name, lookahead, accumulate=2))) == []
    assert modes == {False}
    assert xs != ys


@each_lookahead
@each_optimizer
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_saved_state_resumes_exactly(name, lookahead, mode, tmp_path):
    saved = Run(name, lookahead).train(range(7))
    getattr(saved.optimizer, mode)()
    saved.accelerator.save_state(str(tmp_path))
    resumed = Run(name, lookahead)
    resumed.accelerator.load_state(str(tmp_path))
    assert runs.in_train_mode(resumed.optimizer) == (mode == "train")
    for run in (saved, resumed):
        run.optimizer.train()
        run.train(range(7, BATCHES))
    assert differing(content(resumed.inner), content(saved.inner)) == []


@each_optimizer
def test_an_optimizer_may_be_prepared_after_it_has_stepped(name):
    run = Run(name, "ema").train(range(5))
    before = content(run.inner)
    again = run.accelerator.prepare_optimizer(run.inner)
    assert differing(content(run.inner), before) == []
    assert emanest.find(again) is run.inner


def test_a_callable_step_size_survives_prepare():
    method = emanest.EMANesterov(stepsize=lambda t: 0.5, decay=0.9)
    inner = emanest.AdamW(runs.make_model().parameters(), lookahead=method)
    Accelerator(cpu=True).prepare(inner)
    assert inner.param_groups[0]["lookahead_stepsize"] is method.stepsize


def test_it_is_found_in_everything_that_was_prepared():
    run = Run("adamw", "ema")
    for holder in (run.optimizer, run.scheduler, run.accelerator, [run.optimizer, run.scheduler]):
        assert emanest.find(holder) is run.inner
    assert isinstance(run.optimizer, torch.optim.Optimizer)
    assert not isinstance(run.optimizer, emanest.Optimizer)


@pytest.mark.parametrize("name", ["muon+ema_nesterov", "adamw+gpa"])
def test_an_optimizer_by_its_name_is_prepared_as_any(name):
    def make(model):
        return emanest.create(model, name, lr=0.05, verbose=False)

    accelerator = Accelerator(cpu=True)
    model, plain = runs.make_model(), runs.make_model()
    model, optimizer, loader = accelerator.prepare(model, make(model), runs.loader(BATCHES))
    for x, target in loader:
        accelerator.backward(nn.functional.mse_loss(model(x), target))
        optimizer.step()
        optimizer.zero_grad()
    expected = make(plain)
    for x, target in runs.loader(BATCHES):
        nn.functional.mse_loss(plain(x), target).backward()
        expected.step()
        expected.zero_grad()
    assert differing(content(emanest.find(optimizer)), content(expected)) == []
