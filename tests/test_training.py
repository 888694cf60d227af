# SPDX-License-Identifier: MIT
"""Property 41: a small transformer, trained with the fused rule and with the authors' wrapper."""

import pathlib

import torch

import emanest
from examples.lab.models import make
from examples.lab.training import loss_of

STEPSIZE, DECAY, LR, STEPS = 0.5, 0.99, 1e-3, 300
TEXT = torch.tensor(
    [*pathlib.Path(torch.__file__).with_name("functional.py").read_bytes()[:60_000]]
)


def batch(t, size=8, context=16):
    starts = torch.randint(len(TEXT) - context, (size,), generator=torch.Generator().manual_seed(t))
    rows = torch.stack([TEXT[s : s + context + 1] for s in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def model():
    return make({"name": "bytes", "layers": 1, "width": 32, "context": 16}, seed=0)


def loss_on(net, t):
    inputs, targets = batch(t)
    return loss_of(net(inputs), targets)


def train(net, before, after):
    for t in range(STEPS):
        before()
        net.zero_grad()
        loss_on(net, t).backward()
        after()


@torch.no_grad()
def loss(net):
    return sum(loss_on(net, t).item() for t in range(1000, 1008)) / 8


def trained():
    net = model()
    optimizer = emanest.AdamW(
        net.parameters(), lr=LR, lookahead=emanest.EMANesterov(STEPSIZE, DECAY)
    )
    train(net, lambda: None, optimizer.step)
    return net, optimizer


def trained_by_the_wrapper():
    """Algorithm 1 in two phases around torch's AdamW, in float32."""
    net = model()
    params = list(net.parameters())
    base = torch.optim.AdamW(params, lr=LR)
    previous = [p.detach().clone() for p in params]
    m = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def look_ahead():
        for p, mean in zip(params, m, strict=True):
            p.add_(mean, alpha=STEPSIZE)

    @torch.no_grad()
    def step():
        base.step()
        for p, old, mean in zip(params, previous, m, strict=True):
            mean.lerp_(p - old, 1 - DECAY)
            old.copy_(p)

    train(net, look_ahead, step)
    return net


def test_training_is_the_wrappers_and_deterministic():
    net, optimizer = trained()
    again, _ = trained()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    with optimizer.at_iterate():
        at_x = loss(net)
    assert at_x < loss(model()) - 1
    assert abs(at_x - loss(trained_by_the_wrapper())) <= 1e-4
    kept = [p.detach().clone() for p in net.parameters()]
    stepsizes = [k / 4 for k in range(-4, 9)]
    losses = emanest.probe_lookahead(optimizer, lambda: loss(net), stepsizes)
    assert losses[stepsizes.index(0)] == at_x
    assert losses[stepsizes.index(STEPSIZE)] == loss(net)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), kept, strict=True))
