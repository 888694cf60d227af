# SPDX-License-Identifier: MIT
"""Steps that only the device knows whether they happen: GradScaler and ``nonfinite="skip"``.

On the CPU the host reads such flags at once; ``capturable=True`` makes it leave them on the device.
"""

import contextlib

import pytest
import torch

import emanest
import helpers
import test_capturable
from emanest import ScheduleFree, Wrap
from helpers import METHODS, content, differing, params_of, run, set_gradients
from test_capturable import CAPTURABLE, ON_HOST

FLAGS = ("__bool__", "item", "tolist", "__float__", "__int__")


def adamw(method, **options):
    beta1 = 0.0 if isinstance(method, ScheduleFree) else 0.9
    params = helpers.parameters(shapes=[(4, 4), (8,)])
    return emanest.AdamW(params, lr=0.05, betas=(beta1, 0.99), lookahead=method, **options)


def muon(method, **options):
    params = helpers.parameters(shapes=[(4, 4), (8,)])
    return test_capturable.muon(params, method, lr=0.05, **options)


def normuon(method, **options):
    params = helpers.parameters(shapes=[(4, 4), (8,)])
    return test_capturable.normuon(params, method, lr=0.05, **options)


def wrapped(method, **options):
    beta1 = 0.0 if isinstance(method, ScheduleFree) else 0.9
    params = helpers.parameters(shapes=[(4, 4), (8,)])
    fused = {"fused": True, "capturable": options.get("capturable", False)}
    return Wrap(torch.optim.AdamW(params, lr=0.05, betas=(beta1, 0.99), **fused), method)


def scaler_step(optimizer, t, scale, overflow):
    """What a GradScaler does with an optimizer that unscales and skips by itself."""
    set_gradients(params_of(optimizer), t)
    for p in params_of(optimizer):
        p.grad *= scale
    if overflow:
        params_of(optimizer)[-1].grad[2] = torch.inf
    optimizer.grad_scale = torch.tensor(scale)
    optimizer.found_inf = torch.tensor(float(overflow))
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


def plain(values):
    """Content without telling where numbers are kept."""
    return {k: v for k, v in values.items() if k.startswith(("/values", "/state"))}


# optimizer, its options; torch's fused CPU optimizer is not capturable
MAKERS = [
    pytest.param(adamw, {}, id="host"),
    pytest.param(adamw, {"capturable": True}, id="device"),
    *(pytest.param(m, {"capturable": True}, id=m.__name__) for m in (muon, normuon)),
    pytest.param(wrapped, {}, id="wrapped"),
]


@pytest.mark.parametrize("method", CAPTURABLE)
@pytest.mark.parametrize(("make", "options"), MAKERS)
@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_a_step_that_overflows_never_was(method, make, options, scale):
    """The scale is a power of two, so bit for bit."""
    scaled, reference = make(CAPTURABLE[method], **options), make(CAPTURABLE[method])
    for t in range(12):
        before = plain(content(scaled))
        scaler_step(scaled, t, scale, overflow=True)
        # the very first has made the state
        assert t == 0 or differing(plain(content(scaled)), before) == []
        scaler_step(scaled, t, scale, overflow=False)
        run(reference, [t])
        assert differing(plain(content(scaled)), plain(content(reference))) == []
    for mine, theirs in zip(scaled.param_groups, reference.param_groups, strict=True):
        assert float(mine["lookahead_t"]) == float(theirs["lookahead_t"]) == 12


@pytest.mark.parametrize("method", CAPTURABLE)
@pytest.mark.parametrize("make", [adamw, muon, normuon])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_skipping_what_is_not_finite_reads_nothing(method, make, bad, monkeypatch):
    """Nor do steps that happen; and what is skipped never was."""
    options = {"capturable": True, "nonfinite": "skip", "backend": "eager"}
    optimizer = make(CAPTURABLE[method], **options)
    reference = make(CAPTURABLE[method], backend="eager")
    run(optimizer, range(2))
    for t in range(2, 6):
        for value in (bad, 1.0):
            set_gradients(params_of(optimizer), t)
            if value != 1.0:
                params_of(optimizer)[0].grad[1, 1] = value
            with monkeypatch.context() as patch:
                for name in FLAGS:
                    patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a tensor was read"))
                optimizer.step()
    run(reference, range(6))
    assert differing(plain(content(optimizer)), plain(content(reference))) == []


@pytest.mark.parametrize("method", ON_HOST)
def test_methods_that_are_planned_on_the_host_read_the_flag(method):
    optimizer, reference = adamw(ON_HOST[method]), adamw(ON_HOST[method])
    for t in range(12):
        scaler_step(optimizer, t, 2.0**12, overflow=True)
        scaler_step(optimizer, t, 2.0**12, overflow=False)
        run(reference, [t])
    assert differing(content(optimizer), content(reference)) == []


def test_a_run_may_change_where_its_numbers_are():
    """From the host to the device and back, as when a GradScaler comes and goes."""
    moving, reference = adamw(METHODS["ema"]), adamw(METHODS["ema"])
    for t in range(12):
        (group,) = moving.param_groups
        group["capturable"] = t % 4 in (1, 2)
        for optimizer in (moving, reference):
            run(optimizer, [t])
            with optimizer.at_iterate():
                pass
    assert differing(plain(content(moving)), plain(content(reference))) == []
    assert moving.param_groups[0]["lookahead_t"] == 12
    assert type(moving.param_groups[0]["lookahead_t"]) is int


def test_a_pass_that_fails_moves_no_clock(monkeypatch):
    optimizer = adamw(METHODS["ema"], capturable=True, backend="eager")
    run(optimizer, range(3))
    before = content(optimizer)

    def fail(*_, **options):
        raise RuntimeError("no launch")

    with monkeypatch.context() as patch:
        patch.setattr(emanest.backends.eager, "apply_", fail)
        with pytest.raises(RuntimeError, match="no launch"):
            run(optimizer, [3])
    assert differing(content(optimizer), before) == []


def test_a_clock_that_fails_lets_no_parameter_move(monkeypatch):
    """That of a group with two launches has one of its own."""
    params = [*helpers.parameters(torch.float32), *helpers.parameters(torch.float64)]
    optimizer = helpers.adamw(params, METHODS["ema"], capturable=True, backend="eager")
    run(optimizer, range(3))
    before, calls = content(optimizer), []
    plan_ = emanest.backends.eager.plan_

    def fails_last(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("no launch")
        return plan_(*args)

    with monkeypatch.context() as patch:
        patch.setattr(emanest.backends.eager, "plan_", fails_last)
        with pytest.raises(RuntimeError, match="no launch"):
            run(optimizer, [3])
    assert differing(content(optimizer), before) == []
    assert len(calls) == 3


@pytest.mark.parametrize("method", [*METHODS, None])
def test_scaling_is_claimed_where_the_host_need_not_wait(method):
    """On the CPU there is nothing to wait for, and GradScaler does it."""
    assert not adamw(METHODS.get(method))._step_supports_amp_scaling


@pytest.mark.gpu
@pytest.mark.parametrize("method", CAPTURABLE)
def test_under_a_gpu_scaler_the_host_never_waits(method):
    params = [torch.nn.Parameter(p.detach().cuda()) for p in helpers.parameters()]
    optimizer = emanest.AdamW(params, betas=(0.0, 0.99), lookahead=CAPTURABLE[method])
    assert optimizer._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    for t in range(6):
        scaler.scale(sum((p * p).sum() for p in params)).backward()
        if t == 3:
            params[0].grad[0, 0] = torch.inf
        # the first two make what the others find
        with helpers.host_never_waits() if t > 1 else contextlib.nullcontext():
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert float(optimizer.param_groups[0]["lookahead_t"]) == 5


@pytest.mark.gpu
@pytest.mark.parametrize("method", CAPTURABLE)
@pytest.mark.parametrize("make", [test_capturable.adamw, *test_capturable.REAL_ONLY])
def test_a_captured_graph_replays_steps(method, make):
    """With a learning rate that moves between replays."""
    starts = [p.detach().cuda() for p in helpers.parameters()]
    captured, plain_ = ([torch.nn.Parameter(s.clone()) for s in starts] for _ in range(2))
    lr = torch.tensor(0.05, device="cuda")
    optimizer = make(captured, CAPTURABLE[method], lr=lr, capturable=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    reference = make(plain_, CAPTURABLE[method], lr=0.05)
    for p, q in zip(captured, plain_, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        optimizer.step()
    for t in range(20):
        for lr in rates:
            lr.fill_(0.05 / (1 + t))
        graph.replay()
    for t in range(-3, 20):
        for group in reference.param_groups:
            group["lr"] = 0.05 / (1 + max(t, 0))
        reference.step()
    for p, q in zip(captured, plain_, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
