# SPDX-License-Identifier: MIT
"""Learning rates: floats, tensors and torch's schedulers, against the textbook at each rate."""

import pytest
import torch
from torch.optim import lr_scheduler

import emanest
import helpers
import textbook_bases
from emanest import GPA, EMANesterov, Lookahead, Wrap
from helpers import content, differing, params_of, run, values

SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1, t / 4)),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)],
        [4],
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}
METHODS = {
    "ema": EMANesterov(0.5, 0.9),
    "lookahead": Lookahead(3, 0.5),
    "gpa": GPA(0.9, 0.7),
}
ADAMW = {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": 0.0}
SGD = {"lr": 0.05, "momentum": 0.9}
TENSOR = torch.tensor(0.05, dtype=torch.float64)

# optimizer of (parameters, method); torch's with the same rates; its textbook form
BASES = {
    "adamw": (
        lambda ps, method: emanest.AdamW(ps, **ADAMW, lookahead=method),
        lambda ps: torch.optim.AdamW(ps, **ADAMW),
        lambda: textbook_bases.AdamW((0.9, 0.99), weight_decay=0.0),
    ),
    "adamw, tensor": (
        lambda ps, method: emanest.AdamW(ps, **{**ADAMW, "lr": TENSOR}, lookahead=method),
        lambda ps: torch.optim.AdamW(ps, **ADAMW),
        lambda: textbook_bases.AdamW((0.9, 0.99), weight_decay=0.0),
    ),
    "sgd": (
        lambda ps, method: emanest.SGD(ps, **SGD, lookahead=method),
        lambda ps: torch.optim.SGD(ps, **SGD),
        lambda: textbook_bases.SGD(0.9),
    ),
    "wrap": (
        lambda ps, method: Wrap(torch.optim.SGD(ps, **SGD), method),
        lambda ps: torch.optim.SGD(ps, **SGD),
        lambda: textbook_bases.SGD(0.9),
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_every_step_has_the_rate_and_momentum_of_the_scheduler(scheduler, base, method):
    ours, torchs, textbook_base = BASES[base]
    optimizer = ours(helpers.parameters(torch.float64), METHODS[method])
    # its rates are those that a user of torch gets
    clock = torchs([torch.nn.Parameter(torch.zeros(1))])
    expected = helpers.published(METHODS[method], params_of(optimizer), textbook_base())
    schedulers = [SCHEDULERS[scheduler](o) for o in (optimizer, clock)]
    (rates,) = clock.param_groups
    if method == "ema":
        expected.peak = rates.get("initial_lr", 0.0)
    for t in range(12):
        expected.base.momentum = rates.get("momentum")
        expected.base.betas = rates.get("betas")
        expected.step(helpers.gradients(expected.y, t), rates["lr"])
        run(optimizer, [t])
        clock.step()
        torch.testing.assert_close(values(optimizer), expected.y, rtol=0, atol=1e-12)
        for each in schedulers:
            each.step(*[1.0] * (scheduler == "plateau"))


@pytest.mark.parametrize("cls", [emanest.AdamW, emanest.SGD])
def test_a_tensor_lr_is_its_value(cls):
    tensor, plain = (
        cls(helpers.parameters(), lr=lr, lookahead=METHODS["ema"])
        for lr in (torch.tensor(0.5, dtype=torch.float64), 0.5)
    )
    for t in range(6):
        for optimizer in (tensor, plain):
            run(optimizer, [t])
            optimizer.param_groups[0]["lr"] *= 0.75
    assert set(differing(content(tensor), content(plain))) == {"/param_groups/0/lr"}


@pytest.mark.parametrize("cls", [emanest.AdamW, emanest.SGD])
def test_every_group_has_a_tensor_lr_of_its_own(cls):
    lr = torch.tensor(0.5)
    a, b, c = helpers.parameters()
    optimizer = cls([{"params": [a]}, {"params": [b]}], lr=lr)
    optimizer.add_param_group({"params": [c]})
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    run(optimizer, [0])
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert [group["lr"].item() for group in optimizer.param_groups] == [0.25] * 3
    assert lr.item() == 0.5


def test_without_a_lookahead_initial_lr_is_the_users_own():
    optimizer = emanest.AdamW([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["initial_lr"] = "mine"
    params_of(optimizer)[0].grad = torch.ones(2)
    optimizer.step()
    assert optimizer.param_groups[0]["lookahead_t"] == 1
