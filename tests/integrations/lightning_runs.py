# SPDX-License-Identifier: MIT
"""Fits of small modules under Lightning."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import lr_scheduler

import emanest
import runs
from emanest.integrations.lightning import EvalAtIterate
from helpers import content, differing

BATCHES, EPOCHS = 5, 2
each_lookahead = pytest.mark.parametrize("lookahead", runs.LOOKAHEADS)
each_optimizer = pytest.mark.parametrize("name", runs.OPTIMIZERS)

# on tests: what Lightning warns of
quiet = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "The '[a-z]+_dataloader' does not have many workers",
        "Checkpoint directory .* exists and is not empty",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    )
]


class Module(pl.LightningModule):
    """One optimizer; notes the weights and the mode wherever Lightning evaluates."""

    def __init__(self, name, lookahead):
        super().__init__()
        self.name, self.lookahead = name, lookahead
        self.net = runs.make_model()
        self.seen = []

    def configure_optimizers(self):
        optimizer = runs.OPTIMIZERS[self.name](self.net, runs.METHODS[self.lookahead])
        return [optimizer], [lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]

    def loss(self, batch):
        x, target = batch
        return nn.functional.mse_loss(self.net(x), target)

    def training_step(self, batch, batch_idx):
        assert runs.in_train_mode(self.optimizers())
        return self.loss(batch)

    def note(self):
        mode = runs.in_train_mode(self.trainer.optimizers) if self.trainer.optimizers else None
        self.seen.append((self.trainer.state.stage, mode, runs.weights(self.net.state_dict())))

    def validation_step(self, batch, batch_idx):
        self.note()
        self.log("loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.note()

    def predict_step(self, batch, batch_idx):
        self.note()
        return self.loss(batch)


class Manual(Module):
    """Two optimizers, stepped by hand; the second is torch's where there is no lookahead."""

    def __init__(self, second):
        super().__init__("adamw", "ema")
        self.automatic_optimization = False
        self.second = second

    def configure_optimizers(self):
        body, head = self.net[:-1], self.net[-1]
        first = runs.OPTIMIZERS["adamw"](body, runs.METHODS["ema"])
        return first, self.second(head.parameters())

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


SECONDS = {
    "emanest": lambda params: emanest.SGD(params, lr=0.1, lookahead=runs.METHODS["gpa"]),
    "torch": lambda params: torch.optim.SGD(params, lr=0.1),
}


def arguments(folder, **options):
    given = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return given | options


def trainer(folder, callbacks=(EvalAtIterate,), **options):
    callbacks = [each() if isinstance(each, type) else each for each in callbacks]
    files = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    return pl.Trainer(
        **arguments(folder, enable_checkpointing=files, **options), callbacks=callbacks
    )


def fit(module, folder, callbacks=(EvalAtIterate,), resume=None, **arguments):
    run = trainer(folder, callbacks, **arguments)
    run.fit(module, runs.loader(BATCHES), runs.loader(1), ckpt_path=resume)
    return run


def training(run):
    """All that a run depends on, at y."""
    found = emanest.find_all(run)
    for optimizer in found:
        optimizer.train()
    return [content(optimizer) for optimizer in found]


def same_training(a, b):
    pairs = zip(training(a), training(b), strict=True)
    return [differing(*pair) for pair in pairs] == [[] for _ in emanest.find_all(a)]


def saved(path):
    return torch.load(path, weights_only=True)


def net_weights(checkpoint):
    return runs.weights({k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items()})


def x_of(module, run):
    return runs.weights(emanest.iterate_state_dict(module.net, run))


def never(module, folder, **arguments):
    """A fit that nobody validates and nothing changes."""
    return fit(module, folder, callbacks=(), limit_val_batches=0, **arguments)


ACCUMULATING = {"accumulate_grad_batches": 2, "val_check_interval": 1}
