# SPDX-License-Identifier: MIT
"""A first result, in seconds on a CPU: the loss at x without and with lookahead."""

import statistics

import torch
from torch import nn

import emanest

STEPS, SEEDS, LR = 500, 3, 0.05


def loss_on(model, points):
    """Of the height of a spiral, which is to be learnt from (x, y)."""
    x, y = points.unbind(1)
    target = torch.sin(6 * (x * x + y * y) + 2 * torch.atan2(y, x))
    return nn.functional.mse_loss(model(points)[:, 0], target)


def train(lr, lookahead, seed):
    """Train a small network on points that are drawn anew at every step; its loss at x."""
    torch.manual_seed(seed)
    layers = nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    model = nn.Sequential(*layers)
    opt = emanest.AdamW(model.parameters(), lr=lr, lookahead=lookahead)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.01, STEPS)
    for _ in range(STEPS):
        loss_on(model, 2 * torch.rand(256, 2) - 1).backward()
        opt.step()
        opt.zero_grad()
        schedule.step()
    with opt.at_iterate(), torch.no_grad():  # the parameters hold y while training
        return loss_on(model, 2 * torch.rand(4096, 2) - 1).item()


def main():
    ahead = emanest.EMANesterov.for_run(STEPS)
    # lookahead goes up to twice as far along slow directions: twice the learning rate beside it
    runs = ("AdamW", LR, None), ("AdamW", 2 * LR, None), ("AdamW + EMA-Nesterov", LR, ahead)
    for name, lr, lookahead in runs:
        losses = [train(lr, lookahead, seed) for seed in range(SEEDS)]
        each = ", ".join(f"{loss:.3f}" for loss in losses)
        print(f"{name:20}  lr {lr:<4}  loss {statistics.fmean(losses):.3f}  ({each})", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors are small: a second thread would only be waited for
    main()
