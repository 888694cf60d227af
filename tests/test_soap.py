# SPDX-License-Identifier: MIT
"""SOAP against the textbook, against pytorch_optimizer's, and what must be true of its bases.

A first gradient has the rank of its smaller side: on the larger side a basis of the null space of
L is rounding, and two right programs differ there. Where it matters the textbook is handed ours.
"""

import inspect

import pytest
import torch
from torch import nn

import helpers
import textbook
import textbook_bases
from emanest import SOAP, AdamW
from emanest.matrix import eigenbasis
from helpers import (
    METHODS,
    bits,
    one_thread,  # noqa: F401
)
from soap_runs import BACKENDS, GROUPS, LR, SHAPES, compare, made, soap

pytestmark = pytest.mark.usefixtures("one_thread")

each_backend = pytest.mark.parametrize("backend", BACKENDS)


# ---- the textbook -------------------------------------------------------------------------------


@each_backend
def test_float64_is_the_textbooks(backend):
    """All groups in one optimizer, matrices of all orientations, several QRs."""
    optimizer, twins = made(backend=backend)
    compare(optimizer, twins, range(60 if backend == BACKENDS[0] else 24))


@pytest.mark.parametrize("method", METHODS)
def test_every_lookahead_is_the_published_one(method):
    """With steps on which bases change; Schedule-Free brings the momentum."""
    betas = (0.0 if method == "schedule free" else 0.9, 0.95)
    options = {"betas": betas, "eps": 1e-5, "weight_decay": 0.1, "precondition_frequency": 3}
    groups = {
        "after": (options, [(5, 5), (6, 4), (3,)]),
        "before": ({**options, "update_basis": "before", "decay": "before"}, [(4, 6)]),
    }
    optimizer, twins = made(groups, METHODS[method])
    for steps in (range(7), range(7, 20)):
        compare(optimizer, twins, steps)
        with optimizer.at_iterate():
            for group, twin in zip(optimizer.param_groups, twins, strict=True):
                found = [p.detach() for p in group["params"]]
                torch.testing.assert_close(found, twin.x, rtol=0, atol=1e-10)


def test_parameters_out_of_step_have_a_cadence_of_their_own():
    """Their first bases come with their first gradient, their QRs after so many of their steps."""
    groups = {name: GROUPS[name] for name in ("published", "basis before", "stack")}
    optimizer, twins = made(groups)
    generator = torch.Generator().manual_seed(1)
    compare(optimizer, twins, range(24), missing=lambda: torch.rand((), generator=generator) < 0.4)
    steps = {optimizer.state[p]["step"].item() for p in helpers.params_of(optimizer)}
    assert len(steps) > 3


# ---- a small model, without help -----------------------------------------------------------------


class Model(nn.Module):
    """Tall and wide matrices, one after the other, and data that they fit but for noise."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        for name, shape in (("w1", (12, 4)), ("b1", (12,)), ("w2", (2, 12)), ("b2", (2,))):
            self.register_parameter(name, nn.Parameter(draw(*shape) / shape[-1] ** 0.5))
        self.x = draw(128, 4)
        self.target = self.x @ draw(4, 2) + 0.5 * draw(128, 2)

    def loss(self):
        output = (self.x @ self.w1.T + self.b1) @ self.w2.T + self.b2
        return (output - self.target).square().mean()

    def trained(self, optimizer, steps=200):
        """The first loss, the mean and the last one."""
        losses = []
        for _ in range(steps):
            self.zero_grad()
            losses.append(self.loss())
            losses[-1].backward()
            optimizer.step()
        return losses[0].item(), torch.stack(losses).mean().item(), self.loss().item()


class Book:
    """The textbook as an optimizer of a model."""

    def __init__(self, params):
        self.params = list(params)
        self.plain = textbook.Plain(self.params, textbook_bases.SOAP())

    def step(self):
        self.plain.step([p.grad for p in self.params], LR)
        for p, y in zip(self.params, self.plain.y, strict=True):
            p.data.copy_(y)


def test_a_model_trains_as_with_the_textbook_and_with_pytorch_optimizer():
    """Where bases are not defined runs differ, but their losses do not: the last by less than 1 %.

    The way there is another without bases.
    """
    peers = pytest.importorskip("pytorch_optimizer")

    def losses(make):
        model = Model()
        return model.trained(make(model.parameters()))

    first, mean, last = losses(lambda params: SOAP(params, lr=LR))
    alike = first, pytest.approx(mean, rel=3e-2), pytest.approx(last, rel=1e-2)
    for make in (Book, lambda params: peers.SOAP(params, lr=LR)):
        assert losses(make) == alike
    assert losses(lambda params: SOAP(params, lr=LR, max_precond_dim=0)) != alike


# ---- pytorch_optimizer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precondition_frequency": 3, "shampoo_beta": 0.8, "betas": (0.9, 0.99)},
        {"precondition_frequency": 2, "correct_bias": False, "weight_decay": 0.3, "eps": 1e-4},
        {"precondition_frequency": 3, "max_precond_dim": 8},
    ],
)
def test_float64_is_pytorch_optimizers(options):
    """To the digits of its QR, which is in float32; its first bases are ours.

    It counts steps by group: a parameter whose first gradient comes later differs, and none is.
    """
    peers = pytest.importorskip("pytorch_optimizer")
    shapes = [(6, 6), (9, 5), (5, 9), (7,), (12, 4)]
    ours, theirs = (
        helpers.parameters(torch.float64, shapes),
        helpers.parameters(torch.float64, shapes),
    )
    optimizer = SOAP(ours, LR, **options)
    renamed = {k.replace("precond_dim", "precondition_dim"): v for k, v in options.items()}
    peer = peers.SOAP(theirs, LR, **renamed)
    for t in range(60):
        for p, q, g in zip(ours, theirs, helpers.gradients(ours, t), strict=True):
            p.grad, q.grad = g, g.clone()
        optimizer.step()
        peer.step()
        for p, q in zip(ours, theirs, strict=True):
            if t == 0 and p.dim() > 1:
                bases = (optimizer.state[p][name].clone() for name in ("Q_L", "Q_R"))
                peer.state[q]["Q"] = [basis if len(basis) else [] for basis in bases]
            torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-6)


# ---- bases --------------------------------------------------------------------------------------


def test_a_first_step_finds_bases_and_moves_nothing():
    params = helpers.parameters(torch.float64, SHAPES)
    before = [bits(p) for p in params]
    optimizer = SOAP(params, LR, shampoo_beta=0.8, stack=False)
    helpers.set_gradients(params, 0)
    optimizer.step()
    assert [bits(p) for p in params] == before
    for p in params:
        state = optimizer.state[p]
        assert state["step"] == 1
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()
        if p.dim() < 2:
            assert all(state[name].shape == (0, 0) for name in ("L", "R", "Q_L", "Q_R"))
            continue
        g = p.grad.flatten(1)
        for gram, average, basis in ((g @ g.T, "L", "Q_L"), (g.T @ g, "R", "Q_R")):
            average, basis = state[average], state[basis]
            torch.testing.assert_close(average, 0.2 * gram, rtol=1e-12, atol=1e-12)
            turned = basis.T @ average @ basis
            values = turned.diagonal()
            torch.testing.assert_close(turned, values.diag(), rtol=0, atol=1e-12)
            assert (values[:-1] >= values[1:] - 1e-12).all()


@each_backend
def test_bases_stay_orthogonal_and_turn_there_and_back(backend):
    """In float32, over 60 steps with a QR in each third; ALGORITHMS 6.40."""
    params = helpers.parameters(torch.float32, [(24, 24), (24, 9), (9, 24)])
    optimizer = SOAP(params, LR, precondition_frequency=3, backend=backend)
    helpers.run(optimizer, range(60))
    for p in params:
        left, right = (optimizer.state[p][name] for name in ("Q_L", "Q_R"))
        for q in (left, right):
            torch.testing.assert_close(q.T @ q, torch.eye(len(q)), rtol=0, atol=1e-5)
        x = p.detach()
        back = left @ (left.T @ x @ right) @ right.T
        torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_without_bases_it_is_adam_whose_first_step_is_skipped():
    """Vectors, and matrices whose sides are both too long."""
    shapes = [(4, 6), (7,), ()]
    params, others = (
        helpers.parameters(torch.float64, shapes),
        helpers.parameters(torch.float64, shapes),
    )
    options = {"betas": (0.9, 0.99), "weight_decay": 0.0}
    # epsilon stands elsewhere
    optimizer = SOAP(params, LR, **options, eps=1e-16, max_precond_dim=3)
    adam = AdamW(others, LR, **options, eps=1e-16)
    for t in range(12):
        helpers.set_gradients(params, t)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        if t:
            adam.step()
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-12)
    for p in params:
        assert all(optimizer.state[p][name].shape == (0, 0) for name in ("L", "R", "Q_L", "Q_R"))


def test_state_has_the_shapes_of_its_matrices():
    def shapes(shape, **options):
        (p,) = helpers.parameters(torch.float64, [shape])
        optimizer = SOAP([p], LR, **options)
        helpers.run(optimizer, range(1))
        names = "exp_avg", "exp_avg_sq", "L", "Q_L", "R", "Q_R"
        return [tuple(optimizer.state[p][name].shape) for name in names]

    assert shapes((6, 4)) == [(6, 4)] * 2 + [(6, 6)] * 2 + [(4, 4)] * 2
    assert shapes((4, 3, 2, 2)) == [(4, 3, 2, 2)] * 2 + [(4, 4)] * 2 + [(12, 12)] * 2
    assert shapes((6, 4), max_precond_dim=5) == [(6, 4)] * 2 + [(0, 0)] * 2 + [(4, 4)] * 2
    assert shapes((6, 4), split=2) == [(6, 4)] * 2 + [(2, 3, 3)] * 2 + [(2, 4, 4)] * 2
    assert shapes((5, 6, 4), stack=True) == [(5, 6, 4)] * 2 + [(5, 6, 6)] * 2 + [(5, 4, 4)] * 2
    assert (
        shapes((5, 6, 4), stack=True, split=2)
        == [(5, 6, 4)] * 2 + [(5, 2, 3, 3)] * 2 + [(5, 2, 4, 4)] * 2
    )


def test_the_constructor_takes_the_published_arguments():
    """In the order of nikhilvyas/SOAP, whose -1 for shampoo_beta is None here."""
    found = [p for p in inspect.signature(SOAP).parameters.values() if p.kind != p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in found[1:]] == [
        ("lr", 3e-3),
        ("betas", (0.95, 0.95)),
        ("shampoo_beta", None),
        ("eps", 1e-8),
        ("weight_decay", 0.01),
        ("precondition_frequency", 10),
        ("max_precond_dim", 10000),
        ("correct_bias", True),
    ]


def test_matrices_of_one_shape_are_multiplied_in_one_batch(monkeypatch):
    """Whatever lies between them: four rotations and two Gram matrices a shape, not a matrix."""
    optimizer = soap([(6, 4), (3, 4), (6, 4), (5,), (6, 4), (3, 4)], precondition_frequency=10)
    helpers.run(optimizer, range(2))
    calls, original = [], eigenbasis.with_products
    monkeypatch.setattr(
        eigenbasis, "with_products", lambda name, *args: calls.append(name) or original(name, *args)
    )
    helpers.run(optimizer, [2])
    assert (calls.count("mm"), calls.count("sym_mm")) == (2 * 4, 2 * 2)
