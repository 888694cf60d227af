# SPDX-License-Identifier: MIT
"""LightningCLI with an optimizer by name: two spirals, told apart by a small network.

    pip install 'emanest[lightning]'
    python examples/lightning_cli.py fit --model.optimizer muon+ema_nesterov --model.lr 0.02
    python examples/lightning_cli.py fit --model.optimizer adamw+gpa --trainer.max_epochs 20

It validates, saves and ends at x. An optimizer that does not need the model, such as AdamW, can do
without ``configure_optimizers``: ``--optimizer emanest.AdamW --optimizer.lookahead ema_nesterov``
takes its place.
"""

from itertools import pairwise

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import emanest
from emanest.integrations.lightning import EvalAtIterate


class Spirals(pl.LightningDataModule):
    """Points of two spirals, one inside the other."""

    def __init__(self, points: int = 2048, batch: int = 64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        label = torch.arange(points) % 2
        turn = torch.rand(points, generator=generator) * 3 * torch.pi
        angle, noise = turn + torch.pi * label, torch.randn(points, 2, generator=generator)
        x = torch.stack((angle.cos(), angle.sin()), 1) * turn[:, None] / 5 + noise / 20
        data = TensorDataset(x, label)
        self.parts = torch.utils.data.random_split(data, [0.8, 0.2], generator)
        self.batch = batch

    def train_dataloader(self):
        return DataLoader(self.parts[0], self.batch, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], self.batch)


class Network(pl.LightningModule):
    """A few layers, and the optimizer of a name."""

    def __init__(self, optimizer: str = "muon+ema_nesterov", lr: float = 0.02, width: int = 64):
        super().__init__()
        self.save_hyperparameters()
        sizes = [2, width, width, width, 2]
        layers = [nn.Sequential(nn.Linear(*pair), nn.SiLU()) for pair in pairwise(sizes)]
        self.net = nn.Sequential(*layers[:-1], layers[-1][0])

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        made = emanest.create(self, self.hparams.optimizer, lr=self.hparams.lr, total_steps=steps)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(made, steps)
        return {"optimizer": made, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def training_step(self, batch, batch_idx):
        x, label = batch
        return nn.functional.cross_entropy(self.net(x), label)

    def validation_step(self, batch, batch_idx):
        x, label = batch
        self.log("right", (self.net(x).argmax(1) == label).float().mean(), prog_bar=True)


def main():
    defaults = {"max_epochs": 10, "callbacks": [EvalAtIterate()]}
    cli = LightningCLI(Network, Spirals, seed_everything_default=1, trainer_defaults=defaults)
    return float(cli.trainer.callback_metrics["right"])


if __name__ == "__main__":
    print(f"told apart: {main():.1%}")
