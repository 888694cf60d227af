# SPDX-License-Identifier: MIT
"""Muon and NorMuon against torch's and against the textbook."""

import functools
import inspect
import itertools
import re

import pytest
import torch
from torch.optim import _muon

import textbook_bases
from emanest import Muon, orthogonalize, rules
from emanest.matrix.shapes import SCALES
from helpers import (
    METHODS,
    gradients,
    one_thread,  # noqa: F401
    published,
)
from helpers import run as train
from muon_runs import CLASSES, LR, SHAPES, close, each_backend, each_class, matrices, of_muon

pytestmark = pytest.mark.usefixtures("one_thread")


def run(make, steps=20, dtype=torch.float64, shapes=SHAPES, lr=None):
    """The parameters after some steps; gradients are the same for everyone."""
    params = matrices(dtype, shapes)
    optimizer = make(params)
    for t in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr(t) if lr else group["lr"]
        for p, g in zip(params, gradients(params, t), strict=True):
            p.grad = g
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
    return [p.detach() for p in params]


# ---- torch.optim.Muon ---------------------------------------------------------------------------

OPTIONS = {
    "defaults": {},
    "plain momentum": {"nesterov": False},
    "match_rms_adamw": {"adjust_lr_fn": "match_rms_adamw"},
    "original": {"adjust_lr_fn": "original", "weight_decay": 0.0},
    "all": {"lr": 0.3, "momentum": 0.5, "weight_decay": 0.4, "ns_steps": 3, "eps": 1e-3},
    "eps beyond the norm": {"eps": 100.0},
    "coefficients": {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 7},
    # torch has it from 2.14 on
    **{
        name: {"adjust_lr_fn": name}
        for name in ["spectral_unclamped"]
        if name in torch.optim.Muon.__doc__
    },
}
FLAT = [s for s in SHAPES if len(s) == 2]


def test_the_constructor_takes_torchs_arguments():
    def of_kind(cls, keyword_only):
        found = inspect.signature(cls).parameters.values()
        return [(p.name, p.default) for p in found if (p.kind == p.KEYWORD_ONLY) == keyword_only]

    assert of_kind(Muon, False) == of_kind(torch.optim.Muon, False)
    assert set(of_kind(Muon, True)) >= set(of_kind(torch.optim.Muon, True))


@each_backend
@pytest.mark.parametrize("option", OPTIONS)
def test_float64_is_torchs_with_its_iteration_in_float64(option, backend, monkeypatch):
    def exact(g, coefficients, steps, eps):
        a, b, c = coefficients
        x = g.mT if g.shape[0] > g.shape[1] else g
        x = x / x.norm().clamp(min=eps)
        for _ in range(steps):
            r = x @ x.mT
            x = a * x + (b * r + c * r @ r) @ x
        return x.mT if g.shape[0] > g.shape[1] else x

    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", exact)
    options, lr = OPTIONS[option], lambda t: 0.1 / (t + 1)
    expected = run(lambda p: torch.optim.Muon(p, **options), shapes=FLAT, lr=lr)
    close(run(lambda p: Muon(p, **options, backend=backend), shapes=FLAT, lr=lr), expected)


@pytest.mark.parametrize("option", OPTIONS)
def test_float32_is_torchs_as_far_as_bfloat16_goes(option):
    def change(make):
        after = run(make, 3, torch.float32, [(32, 48), (48, 32)])
        return [
            a - b for a, b in zip(after, matrices(torch.float32, [(32, 48), (48, 32)]), strict=True)
        ]

    expected = change(lambda p: torch.optim.Muon(p, **OPTIONS[option]))
    for dtype in (None, "bfloat16"):
        found = change(lambda p, dtype=dtype: Muon(p, **OPTIONS[option], ns_dtype=dtype))
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 2e-2 * b.norm()


def test_torchs_checkpoint_continues_here():
    torchs, params = (
        torch.optim.Muon(matrices(torch.float32, FLAT), lr=LR),
        matrices(torch.float32, FLAT),
    )
    train(torchs, range(3))
    ours = Muon(params, lr=0.7)
    ours.load_state_dict(torchs.state_dict())
    assert ours.param_groups[0]["lr"] == LR
    for p, q in zip(params, torchs.param_groups[0]["params"], strict=True):
        assert torch.equal(ours.state[p]["momentum_buffer"], torchs.state[q]["momentum_buffer"])
    train(ours, range(3, 5))


# ---- the textbook -------------------------------------------------------------------------------


@functools.cache
def by_the_book(name, **options):
    """The parameters after 20 steps of a textbook form; the same for every back end."""
    base, params = getattr(textbook_bases, name)(**options), [p.detach() for p in matrices()]
    for t in range(20):
        pairs = zip(params, gradients(params, t), strict=True)
        params = [base.update(i, p, g, LR) for i, (p, g) in enumerate(pairs)]
    return params


@each_backend
@of_muon
@pytest.mark.parametrize("scale", [None, *SCALES])
@pytest.mark.parametrize("nesterov", [True, False])
def test_float64_is_the_textbooks(name, backend, scale, nesterov):
    options = {"adjust_lr_fn": scale, "nesterov": nesterov, "weight_decay": 0.2}
    found = run(lambda p: CLASSES[name](p, LR, **options, backend=backend))
    close(found, by_the_book(name, **options))


@each_class
@pytest.mark.parametrize("method", [m for m in METHODS if m != "nala"])
def test_every_lookahead_is_the_published_one(name, method):
    options = {"momentum": 0.0 if method == "schedule free" else 0.9, "weight_decay": 0.0}
    base = getattr(textbook_bases, name)(**options)
    reference = published(METHODS[method], [p.detach() for p in matrices()], base)
    params = matrices()
    optimizer = CLASSES[name](params, LR, **options, lookahead=METHODS[method])
    for t in range(20):
        close([p.detach() for p in params], reference.y)
        grads = gradients(params, t)
        reference.step(grads, LR)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
    with optimizer.at_iterate():
        close([p.detach() for p in params], reference.x)


def test_the_sum_of_gradients_has_the_same_direction():
    """Older Muons add up gradients: B = mu B + g, u = g + mu B."""
    total, average = torch.zeros(8, 12).double(), torch.zeros(8, 12).double()
    for t in range(5):
        g = gradients(matrices()[:1], t)[0]
        total = 0.95 * total + g
        average = 0.95 * average + 0.05 * g
    u, v = g + 0.95 * total, 0.05 * g + 0.95 * average
    torch.testing.assert_close(v / v.norm(), u / u.norm(), rtol=0, atol=1e-12)
    torch.testing.assert_close(orthogonalize(v), orthogonalize(u), rtol=0, atol=1e-12)


def test_the_newest_gradient_has_the_weight_of_nesterov():
    """Of what is orthogonalised: mu^2 of the old average, 1 - mu^2 of the gradient."""
    old, g, mu = torch.tensor([3.0], dtype=torch.float64), torch.tensor([5.0]).double(), 0.75
    d, (buffer,) = rules.ema(g, (old,), (1 - mu, 1 - mu))
    assert (d.item(), buffer.item()) == (mu**2 * 3 + (1 - mu**2) * 5, mu * 3 + (1 - mu) * 5)
    d, _ = rules.ema(g, (old,), (1 - mu, 0.0))
    assert d.item() == mu * 3 + (1 - mu) * 5


def test_scales_are_those_of_the_table():
    found = {name: [scale(*s) for s in ((12, 3), (3, 12))] for name, scale in SCALES.items()}
    assert found == {
        "original": [2.0, 1.0],
        "match_rms_adamw": [0.2 * 12**0.5] * 2,
        "spectral_norm": [2.0, 0.5],
        "unit_rms": [12**0.5] * 2,
        "none": [1.0, 1.0],
        "spectral_unclamped": [2.0, 0.5],
    }


def test_every_scale_of_torch_is_known_by_its_name():
    """As many as the torch at hand has: 2.14 has one more."""
    torchs = _muon._adjust_lr
    names = re.findall(r'adjust_lr_fn == "(\w+)"', inspect.getsource(torchs))
    assert {"original", "match_rms_adamw"} <= set(names)
    for name, shape in itertools.product(names, [(12, 3), (3, 12), (5, 5)]):
        (p,) = params = [torch.nn.Parameter(torch.ones(shape))]
        (group,) = Muon(params, adjust_lr_fn=name).param_groups
        assert SCALES[group["adjust_lr_fn"]](*shape) == torchs(1.0, name, p.shape)
