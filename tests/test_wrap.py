# SPDX-License-Identifier: MIT
"""``Wrap`` around torch's and third-party optimizers, against a hand-written two-phase wrapper."""

import copy

import pytest
import torch
from torch import nn, optim

import helpers
from emanest import NAG, EMANesterov, LongHorizon, Lookahead, ScheduleFree, Wrap
from helpers import METHODS, bits, content, differing, gradients, params_of, run

# not on every machine with a GPU, where the tests marked so run alone
other = pytest.importorskip("pytorch_optimizer")

STEPS = 12
TOLERANCE = 1e-12
SHAPES = [(4, 3), (3, 5)]
LR = 0.02


def on(cls, **options):
    return lambda params: cls(params, **options)


def muon(cls, **options):
    """A third-party Muon, which wants its groups labelled."""
    return lambda params: cls([{"params": params, "use_muon": True}], **options)


# name -> inner optimizer of some parameters; two Newton-Schulz steps, as more are only slower
TORCH = {
    "AdamW": on(optim.AdamW, lr=LR, weight_decay=0.1),
    "AdamW foreach": on(optim.AdamW, lr=LR, weight_decay=0.1, foreach=True),
    "AdamW fused": on(optim.AdamW, lr=LR, weight_decay=0.1, fused=True),
    "Adam amsgrad": on(optim.Adam, lr=LR, amsgrad=True, weight_decay=0.1, maximize=True),
    "NAdam": on(optim.NAdam, lr=LR, weight_decay=0.1, decoupled_weight_decay=True),
    "SGD": on(optim.SGD, lr=LR, weight_decay=0.1, maximize=True),
    "SGD nesterov": on(optim.SGD, lr=LR, momentum=0.8, nesterov=True, weight_decay=0.1),
    "SGD fused": on(optim.SGD, lr=LR, momentum=0.8, dampening=0.3, fused=True),
    "RMSprop": on(optim.RMSprop, lr=LR, momentum=0.5, centered=True, weight_decay=0.1),
    "Adagrad": on(optim.Adagrad, lr=LR, lr_decay=0.1),
    "Adagrad fused": on(optim.Adagrad, lr=LR, fused=True),
    "Adafactor": on(optim.Adafactor, lr=LR, weight_decay=0.1),
    "Muon": on(optim.Muon, lr=LR, weight_decay=0.1, ns_steps=2),
}
INNERS = {
    **TORCH,
    "ADOPT": on(other.ADOPT, lr=LR, weight_decay=0.1),
    "AdEMAMix": on(other.AdEMAMix, lr=LR),
    "Lion": on(other.Lion, lr=LR, weight_decay=0.1),
    "NorMuon": muon(other.NorMuon, lr=LR, ns_steps=2),
    "Prodigy": on(other.Prodigy, lr=1.0, weight_decay=0.1),
    "SOAP": on(other.SOAP, lr=LR, precondition_frequency=3),
    "Shampoo": on(other.Shampoo, lr=LR, preconditioning_compute_steps=3),
}
# without a momentum of their own, for Schedule-Free
STILL = {
    "AdamW": on(optim.AdamW, lr=LR, betas=(0.0, 0.99)),
    "AdamW fused": on(optim.AdamW, lr=LR, betas=(0.0, 0.99), fused=True),
    "SGD": INNERS["SGD"],
    "RMSprop": on(optim.RMSprop, lr=LR),
    "Adagrad": INNERS["Adagrad"],
    "Adafactor": INNERS["Adafactor"],
    "Muon": on(optim.Muon, lr=LR, momentum=0.0, nesterov=False, ns_steps=2),
    "ADOPT": on(other.ADOPT, lr=LR, betas=(0.0, 0.99)),
    "SOAP": on(other.SOAP, lr=LR, betas=(0.0, 0.99), precondition_frequency=3),
}
PAIRS = [
    (inner, method)
    for method in METHODS
    for inner in (STILL if method == "schedule free" else INNERS)
]
# with these every gradient is taken at x
WITHOUT_LOOKAHEAD = {
    "none": None,
    "stepsize 0": EMANesterov(0.0, 0.9),
    "warm-up": EMANesterov(0.5, 0.9, warmup=100),
    "nag 0": NAG(0.0),
    "alpha 1": Lookahead(2, 1.0),
    "horizon 0": LongHorizon(2, 0.0),
}
# bfloat16 only where the inner optimizer takes it
WITHOUT_PAIRS = [
    (inner, dtype)
    for inner in INNERS
    for dtype in (torch.float32, torch.bfloat16)
    if dtype != torch.bfloat16 or inner in TORCH
]


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are tiny: threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inner_of(name, method):
    return (STILL if isinstance(method, ScheduleFree) else INNERS)[name]


def parameters(dtype=torch.float64):
    return helpers.parameters(dtype, SHAPES)


def without(gone, grads):
    return [None if each else g for each, g in zip(gone, grads, strict=True)]


class Stepped:
    """Where another optimizer goes from given points: a base for the textbook methods."""

    weight_decay = 0.0  # its own acts at y, whatever a method asks

    def __init__(self, make, params):
        self.params = [nn.Parameter(p.detach().clone()) for p in params]
        self.optimizer = make(self.params)
        self.maximize = self.optimizer.defaults.get("maximize", False)

    @torch.no_grad()
    def step_from(self, points, grads, lr):
        for p, point, g in zip(self.params, points, grads, strict=True):
            p.copy_(point)
            p.grad = g
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if any(g is not None for g in grads):
            self.optimizer.step()

    def update(self, i, p, g, lr, weight_decay=None):
        return self.params[i].detach().clone()


def follow(method, make, missing):
    """Run a wrapper beside the textbook form of its method; ``missing``: gradients, per step."""
    params = parameters()
    base = Stepped(make, params)
    expected = helpers.published(method, params, base)
    optimizer = Wrap(make(params), method)
    lr = optimizer.param_groups[0]["lr"]
    for t, gone in enumerate(missing):
        now = lr * (1 - t / (2 * len(missing)))
        for group in optimizer.param_groups:
            group["lr"] = now
        grads = without(gone, gradients(expected.y, t))
        if not all(gone):  # else nothing happens, for the clock either
            base.step_from(expected.y, without(getattr(expected, "awaits_raw", gone), grads), now)
            expected.step(grads, now)
        for p, g in zip(params, without(gone, gradients(params, t)), strict=True):
            p.grad = g
        optimizer.step()
        torch.testing.assert_close(helpers.values(optimizer), expected.y, rtol=0, atol=TOLERANCE)
        with optimizer.at_iterate():
            at_x = helpers.values(optimizer)
        torch.testing.assert_close(at_x, expected.x, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("inner", "method"), PAIRS)
def test_wrap_is_the_hand_written_wrapper(inner, method):
    method = METHODS[method]
    # some of these are syncs, whatever the method
    missing = [(False, t in (2, 4, 5, 8, 9)) for t in range(STEPS)]
    follow(method, inner_of(inner, method), missing)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inner", ["AdamW", "SGD", "SOAP"])
def test_gradients_may_be_missing_at_random(inner, method):
    method = METHODS[method]
    generator = torch.Generator().manual_seed(3)
    missing = torch.rand(2 * STEPS, 2, generator=generator) < 0.4
    follow(method, inner_of(inner, method), missing.tolist())


def test_state_that_belongs_to_no_parameter_is_left_to_the_inner_optimizer():
    # SPAM counts its steps in state["total_step"]
    follow(METHODS["ema"], on(other.SPAM, lr=LR), [(False, False)] * STEPS)


# ---- no lookahead: bit for bit the inner optimizer ----------------------------------------------


def agree(a, b):
    """Whether two optimizers hold the same parameters and state, apart from ours."""
    found = [content(each) for each in (a, b)]
    return [k for k in differing(*found) if "lookahead" not in k and "param_groups" not in k] == []


@pytest.mark.parametrize("method", WITHOUT_LOOKAHEAD)
@pytest.mark.parametrize(("inner", "dtype"), WITHOUT_PAIRS)
def test_without_lookahead_it_is_the_inner_optimizer(inner, dtype, method):
    bare, wrapped = INNERS[inner](parameters(dtype)), INNERS[inner](parameters(dtype))
    run(bare, range(8))
    run(Wrap(wrapped, WITHOUT_LOOKAHEAD[method]), range(8))
    assert agree(bare, wrapped)


@pytest.mark.parametrize("inner", INNERS)
def test_at_rest_it_is_the_inner_optimizer(inner):
    params, copies = parameters(torch.float32), parameters(torch.float32)
    wrapped, bare = INNERS[inner](params), INNERS[inner](copies)
    optimizer = Wrap(wrapped, EMANesterov(0.5, 0.9, rest=4))
    run(optimizer, range(3))
    assert all((state["lookahead"] > 0) for state in wrapped.state.values())
    run(optimizer, [3])
    with torch.no_grad():
        torch._foreach_copy_(copies, params)
    bare.load_state_dict(copy.deepcopy(wrapped.state_dict()))
    run(bare, range(4, 10))
    run(optimizer, range(4, 10))
    assert agree(bare, wrapped)


@pytest.mark.parametrize("inner", ["SGD", "Muon", "SOAP"])
def test_groups_of_the_inner_optimizer_get_entries_of_the_lookahead_only(inner):
    bare, wrapped = INNERS[inner](parameters()), INNERS[inner](parameters())
    with_another = Wrap([on(optim.Adam, maximize=True)(parameters()), wrapped], NAG(0.5))
    for each in (bare, with_another):
        run(each, range(2))
    for group, expected in zip(wrapped.param_groups, bare.param_groups, strict=True):
        added = group.keys() - expected.keys()
        assert {k for k in added if not k.startswith("lookahead")} <= {"train_mode"}


# ---- several optimizers -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_two_optimizers_are_two_wrappers(method):
    method = METHODS[method]
    matrices, rest = [(4, 3), (3, 5)], [(7,), ()]

    def both():
        params = helpers.parameters(torch.float32, [*matrices, *rest])
        return inner_of("Muon", method)(params[:2]), inner_of("AdamW", method)(params[2:])

    together, first, second = Wrap(list(both()), method), both()[0], both()[1]
    alone = [Wrap(first, method), Wrap(second, method)]
    for t in range(10):
        run(together, [t])
        # the same noise as above, for all four
        params = [p for each in alone for p in params_of(each)]
        helpers.set_gradients(params, t)
        for each in alone:
            each.step()
    assert [bits(p) for p in params_of(together)] == [bits(p) for p in params]
    merged = [p for each in alone for p in each.state_dict()["state"].values()]
    found = [*together.state_dict()["state"].values()]
    assert [sorted(s) for s in found] == [sorted(s) for s in merged]
    for a, b in zip(found, merged, strict=True):
        assert {k: bits(v) for k, v in a.items()} == {k: bits(v) for k, v in b.items()}
