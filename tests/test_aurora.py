# SPDX-License-Identifier: MIT
"""Aurora against its textbook, and what an update of it must be."""

import copy
import functools

import pytest
import torch
from torch import nn

import textbook_bases
from emanest import Aurora, EMANesterov, Muon
from emanest.matrix import balanced
from helpers import (
    bits,
    content,
    differing,
    gradients,
    one_thread,  # noqa: F401
    params_of,
)
from helpers import run as train
from muon_runs import LR, close, each_backend, matrices

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = {"weight_decay": 0.0, "adjust_lr_fn": "none"}


def gaussian(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).double()


def scaled_badly(m, n):
    """A matrix whose rows, or columns of a wide one, differ in size by a factor of 1000."""
    if m < n:
        return scaled_badly(n, m).mT.contiguous()
    return gaussian(m, n) * torch.logspace(0, -3, m, dtype=torch.float64)[:, None]


def update(g, cls=Aurora, **options):
    """What one step along a gradient subtracts."""
    p = nn.Parameter(torch.zeros_like(g))
    p.grad = g.clone()
    cls([p], 1.0, **{**ALONE, **options}).step()
    return -p.detach()


# ---- the textbook -------------------------------------------------------------------------------

# tall, wide, square, a kernel; a stack of experts; three matrices below each other
GROUPS = [
    ({}, [(12, 8), (8, 12), (6, 6), (5, 3, 2, 2)]),
    ({"stack": True, "pp_iterations": 3, "pp_beta": 0.25, "nesterov": False}, [(3, 9, 4)]),
    ({"split": 3, "weight_decay": 0.3, "pp_iterations": 1}, [(15, 9)]),
]


@each_backend
def test_sixty_steps_are_the_textbooks(backend):
    """All in one optimizer, over either norm."""
    groups, books, norm = [], [], {"cpp": "frobenius", "eager": "schatten4"}[backend]
    for options, shapes in GROUPS:
        params = matrices(shapes=shapes)
        groups.append({"params": params, **options})
        own = {k: v for k, v in options.items() if k != "split"}
        books.append((textbook_bases.Aurora(ns_norm=norm, **own), [p.detach() for p in params]))
    optimizer = Aurora(groups, LR, backend=backend, ns_norm=norm)
    for t in range(60):
        for group, (base, ps) in zip(groups, books, strict=True):
            count = group.get("split", 1)
            for i, (p, g) in enumerate(zip(ps, gradients(ps, t), strict=True)):
                parts = enumerate(zip(p.chunk(count), g.chunk(count), strict=True))
                ps[i] = torch.cat([base.update((i, k), *pg, LR) for k, pg in parts])
                group["params"][i].grad = g
        optimizer.step()
    for group, (_, ps) in zip(groups, books, strict=True):
        close([p.detach() for p in group["params"]], ps)


# ---- the update ---------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (256, 192)], ids=str)
def test_rows_are_even_and_singular_values_one(backend, shape, dtype):
    """In the dtype that the CPU chooses; Muon's rows are uneven."""
    g, (n, m) = scaled_badly(*shape), sorted(shape)

    def squares(o):
        return (o if shape[0] == m else o.mT).square().sum(1) * (m / n)

    o = update(g.to(dtype), backend=backend).double()
    found, s = squares(o), torch.linalg.svdvals(o)
    assert 0.9 <= found.min() <= found.max() <= 1.12
    assert 0.98 <= s.min() <= s.max() <= 1.02
    assert (o * g).sum() > 0
    plain = squares(update(g, Muon, ns_coefficients="simple", ns_steps=12))
    assert plain.max() / plain.min() > 30


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_square_update_is_muons_bitwise(backend, dtype):
    options = {"ns_coefficients": "simple", "ns_steps": 12, "backend": backend}
    g = scaled_badly(24, 24).to(dtype)
    assert bits(update(g, **options)) == bits(update(g, Muon, **options))
    # and no other is
    g = scaled_badly(24, 20).to(dtype)
    assert bits(update(g, **options)) != bits(update(g, Muon, **options))


@each_backend
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_transposing_commutes(backend, dtype, bound):
    g = scaled_badly(24, 96).to(dtype)
    options = {"backend": backend, "ns_dtype": str(dtype)[6:]}
    wide, tall = (update(each, **options) for each in (g, g.mT.contiguous()))
    assert (tall.mT - wide).norm() <= bound * wide.norm()


@each_backend
def test_matrices_of_a_batch_are_as_if_alone_bitwise(backend):
    """One of them zero, one not finite, one with a row of zeros; wide and tall."""
    for shape in ((13, 7), (7, 13)):
        gs = [scaled_badly(*shape) + k for k in range(5)]
        gs[1].zero_()
        gs[2][3, 4] = torch.nan
        gs[3][2] = 0
        options = {**ALONE, "backend": backend, "pp_iterations": 3, "pp_beta": 0.3}
        params = [nn.Parameter(torch.zeros_like(g)) for g in gs]
        for p, g in zip(params, gs, strict=True):
            p.grad = g.clone()
        Aurora(params, 1.0, **options).step()
        for p, g in zip(params, gs, strict=True):
            assert bits(-p.detach()) == bits(update(g, **options))
        zero, spoiled, *others = (params[k].detach() for k in (1, 2, 0, 3, 4))
        assert not zero.any()
        assert spoiled.isnan().all()
        assert all(each.isfinite().all() for each in others)
        assert not params[3].detach()[2].any()


@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("norm", ["frobenius", "schatten4"])
@pytest.mark.parametrize("size", [0.0, 1e-41, 1e-30, 1e30])
def test_rows_of_any_size_are_finite(norm, eps, size):
    """Also without eps: a row of zeros has no inverse norm, and factors of float32 an end."""
    g = scaled_badly(20, 8).float()
    g[5] *= size
    o = update(g, eps=eps, ns_norm=norm, pp_iterations=8, ns_dtype="float32")
    assert o.isfinite().all()
    assert (o[5] != 0).any() == (size != 0)
    assert not update(torch.zeros(20, 8), eps=eps, ns_norm=norm).any()


# ---- cost, options, state -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_only_what_is_not_square_is_iterated_anew(count, monkeypatch):
    shapes = []

    def iterated(self, u, *args):
        shapes.append(tuple(u.shape))
        return kept(self, u, *args)

    kept = balanced.Polar.iterated
    monkeypatch.setattr(balanced.Polar, "iterated", iterated)
    train(Aurora(matrices(shapes=[(6, 6), (8, 5), (8, 5)]), pp_iterations=count), [0])
    assert shapes == [(1, 6, 6), *[(2, 8, 5)] * count]


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"pp_iterations": 0}, ValueError, "pp_iterations must be at least 1, got 0"),
        ({"pp_iterations": 1.5}, TypeError, "pp_iterations must be an integer"),
        ({"pp_beta": 0.0}, ValueError, r"pp_beta must be in \(0, 1\], got 0.0"),
        ({"pp_beta": 1.5}, ValueError, r"pp_beta must be in \(0, 1\], got 1.5"),
        ({"ns_norm": "spectral"}, ValueError, "ns_norm must be one of .*'schatten4'.*'spectral'"),
    ],
)
def test_bad_options_are_named(option, error, message):
    optimizer = Aurora(matrices(), LR)
    with pytest.raises(error, match=message):
        Aurora(matrices(), **option)
    train(optimizer, [0])
    before = content(optimizer)
    ((name, value),) = option.items()
    good, optimizer.param_groups[0][name] = optimizer.param_groups[0][name], value
    with pytest.raises(error, match=message):
        train(optimizer, [1])
    optimizer.param_groups[0][name] = good
    assert differing(content(optimizer), before) == []


def mixed():
    """Aurora and AdamW in one optimizer."""
    params = matrices(torch.float32, [(6, 4), (3, 5), (4, 4), (7,)])
    groups = [{"params": params[:3]}, {"params": params[3:], "base": "adamw", "lr": 1e-2}]
    return Aurora(groups, LR, lookahead=EMANesterov(0.5, 0.9))


@functools.cache
def states(last=53):
    """Of a mixed run, before each step and after the last: what it saves, and its parameters."""
    optimizer, found = mixed(), []
    for t in range(last + 1):
        saved = copy.deepcopy(optimizer.state_dict())
        found.append(
            (saved, [p.detach().clone() for p in params_of(optimizer)], content(optimizer))
        )
        train(optimizer, [t])
    return found


@pytest.mark.parametrize("steps", [0, 1, 9, 10, 11, 50])
def test_resume_is_exact(steps):
    saved, params, _ = states()[steps]
    optimizer = mixed()
    with torch.no_grad():
        for p, q in zip(params_of(optimizer), params, strict=True):
            p.copy_(q)
    optimizer.load_state_dict(saved)
    train(optimizer, range(steps, steps + 3))
    assert differing(content(optimizer), states()[steps + 3][-1]) == []


def test_groups_of_muon_and_aurora_are_stepped_as_if_alone():
    """Of matrices of one shape, which are not iterated together, and no options but their own."""
    (a, b), (c, d) = (matrices(torch.float32, [(8, 5), (8, 5)]) for _ in range(2))
    together = Muon([{"params": [a]}, {"params": [b], "base": "aurora", "lr": LR}], LR)
    alone = Muon([c], LR), Aurora([d], LR)
    for t in range(3):
        for ps, optimizers in (((a, b), (together,)), ((c, d), alone)):
            for p, g in zip(ps, gradients(ps, t), strict=True):
                p.grad = g
            for optimizer in optimizers:
                optimizer.step()
    assert [bits(a), bits(b)] == [bits(c), bits(d)]


def test_state_is_the_momentum_alone():
    params = matrices(torch.bfloat16, [(6, 4), (4, 4)])
    optimizer = Aurora(params)
    train(optimizer, [0])
    for p in params:
        assert optimizer.state[p].keys() - {"step", "lookahead"} == {"momentum_buffer"}
        assert optimizer.state[p]["momentum_buffer"].dtype == torch.float32
