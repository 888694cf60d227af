# SPDX-License-Identifier: MIT
"""Mixed precision: GradScaler, autocast, narrow parameters, gradients of another dtype."""

import pytest
import torch
from torch import nn

from helpers import bits, content, differing, params_of, set_gradients, values
from optimizer_database import DATABASE, Problem, each_entry, each_lookahead, train

NARROW = [torch.bfloat16, torch.float16]

ours = pytest.mark.parametrize("entry", [e for e in DATABASE.values() if not e.wraps], ids=repr)


def scaler_of(scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    scaler.scale(torch.ones(()))  # initialised at first use
    return scaler


# ---- GradScaler ---------------------------------------------------------------------------------


def clip(problem):
    nn.utils.clip_grad_norm_(problem.params, 1.0)


@each_entry
@each_lookahead
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unscale_then_clip_then_step_is_the_run_without_a_scaler(entry, lookahead, dtype):
    """Bit for bit, at scales that grow and shrink by 2; a step that overflows never happened."""
    scaled, plain = Problem(dtype), Problem(dtype)
    optimizer, expected = entry.make(scaled.params, lookahead), entry.make(plain.params, lookahead)
    scaler = scaler_of(2.0**10)
    scales = set()
    for t in range(6):
        overflows = t in (0, 3)
        set_gradients(scaled.params, t)
        for p in scaled.params:
            p.grad *= scaler.get_scale()
        if overflows:
            scaled.bias.grad[2] = torch.inf
        before = content(optimizer)
        scaler.unscale_(optimizer)
        clip(scaled)
        scaler.step(optimizer)
        scaler.update()
        scales.add(scaler.get_scale())
        if overflows:
            assert differing(content(optimizer), before) == []
            continue
        set_gradients(plain.params, t)
        clip(plain)
        expected.step()
        assert differing(content(optimizer), content(expected)) == []
    assert len(scales) > 1
    assert not hasattr(optimizer, "found_inf")
    assert not hasattr(optimizer, "grad_scale")


@each_entry
@pytest.mark.parametrize("unscale", [False, True])
def test_a_scaler_that_has_seen_no_gradient_says_so_as_with_torchs(entry, unscale):
    """And nothing changes; fused optimizers of torch take such a step, see test_wrap_amp."""
    problem, other = Problem(), Problem()
    optimizer, torchs = entry.make(problem.params, None), entry.reference(other.params)
    train(problem, optimizer, 2)
    for each in (problem, other):
        for p in each.params:
            p.grad = None
    before = content(optimizer)
    for stepped in (optimizer, torchs):
        scaler = scaler_of(2.0)
        if unscale:
            scaler.unscale_(stepped)
        with pytest.raises(AssertionError, match="No inf checks were recorded"):
            scaler.step(stepped)
    assert differing(content(optimizer), before) == []


# ---- narrow parameters --------------------------------------------------------------------------


def rounded(optimizer, dtype):
    """Round float32 parameters to a narrow dtype, behind the optimizer's back."""
    for p in params_of(optimizer):
        p.data.copy_(p.data.to(dtype))


@ours
@each_lookahead
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["grad", "float32 grad"])
def test_a_narrow_run_is_a_float32_run_whose_parameters_are_rounded(entry, lookahead, dtype, wide):
    """Bit for bit, state and all: nothing else is rounded, gradients of float32 least of all."""
    narrow = Problem(dtype)
    if wide:
        for p in narrow.params:
            p.grad_dtype = torch.float32
    broad = [nn.Parameter(p.detach().float()) for p in narrow.params]
    optimizer, expected = entry.make(narrow.params, lookahead), entry.make(broad, lookahead)
    for _ in range(5):
        narrow.backward()
        assert {p.grad.dtype for p in narrow.params} == {torch.float32 if wide else dtype}
        for p, q in zip(narrow.params, broad, strict=True):
            # autograd's have no more digits than what they were computed from
            p.grad += 1e-3 * torch.randn_like(p.grad)
            q.grad = p.grad.float()
        optimizer.step()
        expected.step()
        rounded(expected, dtype)
        found, wanted = optimizer.state_dict()["state"], expected.state_dict()["state"]
        assert [bits(p.detach().float()) for p in narrow.params] == [bits(p) for p in broad]
        for i in wanted:
            assert {k: bits(v) for k, v in found[i].items()} == {
                k: bits(v) for k, v in wanted[i].items()
            }


# ---- autocast -----------------------------------------------------------------------------------


@each_entry
@each_lookahead
def test_an_autocast_loop_is_the_loop_with_casts_by_hand(entry, lookahead):
    """Bit for bit, wherever the step is taken."""
    runs = []
    for by_hand, inside in ((True, False), (False, False), (False, True)):
        problem = Problem()
        optimizer = entry.make(problem.params, lookahead)
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=not by_hand):
                weight, x = problem.weight, problem.input
                if by_hand:
                    weight, x = weight.bfloat16(), x.bfloat16()
                output = weight @ x
                assert output.dtype == torch.bfloat16
                loss = (output.float() + problem.bias).square().sum()
            loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                optimizer.step()
        runs.append((content(optimizer), values(optimizer)))
    assert differing(runs[0][0], runs[1][0]) == []
    assert differing(runs[0][0], runs[2][0]) == []
    assert {v.dtype for v in runs[0][1]} == {torch.float32}
