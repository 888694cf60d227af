# SPDX-License-Identifier: MIT
"""``Wrap`` under a GradScaler: fused inner optimizers unscale and skip by themselves."""

import pytest
import torch
from torch import optim

import helpers
from emanest import ScheduleFree, Wrap
from emanest.backends import shards
from helpers import METHODS, content, differing, params_of, run, set_gradients

LR = 0.05

# name -> whether each of the inner optimizers is fused; a fused one unscales by itself
FUSED = {"fused": [True], "plain": [False], "both": [True, True], "mixed": [True, False]}


def mixed_precision(name, method):
    beta1 = 0.0 if isinstance(method, ScheduleFree) else 0.9
    params = helpers.parameters(shapes=[(4, 4), (8,)])
    count = len(FUSED[name])
    shares = [params[i::count] for i in range(count)]
    inner = [
        optim.AdamW(share, lr=LR, betas=(beta1, 0.99), fused=fused)
        for share, fused in zip(shares, FUSED[name], strict=True)
    ]
    return Wrap(inner, method)


@pytest.mark.parametrize("name", FUSED)
def test_amp_support_is_claimed_if_all_have_it(name):
    assert mixed_precision(name, METHODS["ema"])._step_supports_amp_scaling == all(FUSED[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscale first"])
def test_scaled_gradients_change_nothing(name, method, unscale):
    """Scales are powers of two, so bit for bit; steps that overflowed have not been."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    scaler.scale(torch.ones(()))
    scaled, plain = (mixed_precision(name, METHODS[method]) for _ in range(2))
    for t in range(12):
        for overflow in (True, False):
            set_gradients(params_of(scaled), t)
            for p in params_of(scaled):
                p.grad *= scaler.get_scale()
            if overflow:
                params_of(scaled)[-1].grad[2] = -torch.inf
            before = content(scaled)
            if unscale:
                scaler.unscale_(scaled)
            scaler.step(scaled)
            scaler.update()
            if overflow:
                assert differing(content(scaled), before) == []
        run(plain, [t])
        assert differing(content(scaled), content(plain)) == []
    assert not [o for o in (scaled, *scaled.optimizers) if hasattr(o, "found_inf")]


def test_only_the_inner_optimizers_read_the_scale(monkeypatch):
    """A GPU would be waited for."""
    read, whole = [], shards.whole
    monkeypatch.setattr(shards, "whole", lambda name, t: read.append(name) or whole(name, t))
    for optimizer in (
        mixed_precision("fused", METHODS["ema"]),
        helpers.adamw(helpers.parameters(), METHODS["ema"]),
    ):
        read.clear()
        optimizer.grad_scale, optimizer.found_inf = torch.full((), 2.0), torch.zeros(())
        run(optimizer, range(2))
        assert read.count("grad_scale") == (0 if isinstance(optimizer, Wrap) else 2)


def test_a_scaled_step_without_gradients_changes_nothing():
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    optimizer = mixed_precision("fused", METHODS["ema"])
    run(optimizer, range(3))
    before = content(optimizer)
    optimizer.zero_grad()
    scaler.step(optimizer)
    assert differing(content(optimizer), before) == []


@pytest.mark.parametrize("on", ["wrapper", "inner"])
def test_schedulers_are_not_alarmed_by_an_overflow(on):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    scaler.scale(torch.ones(()))
    optimizer = mixed_precision("fused", METHODS["ema"])
    stepped = optimizer if on == "wrapper" else optimizer.optimizers[0]
    scheduler = optim.lr_scheduler.StepLR(stepped, 1)
    set_gradients(params_of(optimizer), 0)
    params_of(optimizer)[0].grad[0] = torch.inf
    scaler.step(optimizer)
    scheduler.step()  # a warning is an error here
    assert optimizer.param_groups[0]["lr"] == pytest.approx(LR / 10)
