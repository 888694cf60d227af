# SPDX-License-Identifier: MIT
"""What an update of Muon and NorMuon must be."""

import pytest
import torch
from torch import nn

from emanest import EMANesterov, NorMuon, backends, orthogonalize
from helpers import (
    bits,
    gradients,
    one_thread,  # noqa: F401
)
from helpers import run as train
from muon_runs import CLASSES, LR, each_backend, each_class, matrices

pytestmark = pytest.mark.usefixtures("one_thread")


@each_backend
@each_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_update_is_orthogonal(name, backend, dtype):
    """Neither the gradient nor a multiple of it: its condition number is 100."""
    shape = (24, 40)
    u, _ = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(40, 24, dtype=torch.float64))
    g = (u * torch.logspace(0, -2, 24, dtype=torch.float64)) @ v.mT
    p = nn.Parameter(torch.zeros(shape, dtype=dtype))
    p.grad = g.to(dtype)
    options = {"weight_decay": 0.0, "ns_coefficients": "simple", "ns_steps": 12, "backend": backend}
    CLASSES[name]([p], 1.0, adjust_lr_fn="none", **options).step()
    s = torch.linalg.svdvals(p.detach().double())
    slack = 0.2 if name == "NorMuon" else 0.02
    assert s.min() > 1 - slack
    assert s.max() < 1 + slack
    # and it points down
    assert (p.detach().double() * g).sum() < 0
    assert torch.linalg.svdvals(g / g.norm()).min() < 0.01


@each_class
@pytest.mark.parametrize("split", [2, 3])
def test_split_parameters_are_so_many_matrices(name, split):
    whole = nn.Parameter(torch.randn(6 * split, 10))
    parts = [nn.Parameter(each.clone()) for each in whole.detach().chunk(split)]
    one = CLASSES[name]([whole], LR, split=split, lookahead=EMANesterov())
    many = CLASSES[name](parts, LR, lookahead=EMANesterov())
    for t in range(5):
        whole.grad = gradients([whole], t)[0]
        for part, g in zip(parts, whole.grad.chunk(split), strict=True):
            part.grad = g.clone()
        one.step()
        many.step()
    assert torch.equal(whole.detach(), torch.cat([p.detach() for p in parts]))


@each_class
def test_kernels_are_flattened(name):
    kernel = nn.Parameter(torch.randn(8, 3, 5, 5))
    flat = nn.Parameter(kernel.detach().clone().flatten(1))
    last = nn.Parameter(kernel.detach().clone().to(memory_format=torch.channels_last))
    optimizers = [CLASSES[name]([p], LR, lookahead=EMANesterov()) for p in (kernel, flat, last)]
    for t in range(4):
        g = gradients([kernel], t)[0]
        for p, o in zip((kernel, flat, last), optimizers, strict=True):
            p.grad = g.flatten(1) if p is flat else g
            o.step()
        last.grad = g.to(memory_format=torch.channels_last)
    assert torch.equal(kernel.detach().flatten(1), flat.detach())
    assert torch.equal(kernel.detach(), last.detach())


@each_backend
@each_class
def test_without_gradient_there_is_decay_alone(name, backend):
    p = nn.Parameter(torch.ones(4, 6, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    CLASSES[name]([p], 0.5, weight_decay=0.1, backend=backend).step()
    torch.testing.assert_close(p.detach(), torch.full((4, 6), 0.95, dtype=torch.float64))


@each_backend
@each_class
def test_what_is_not_finite_spoils_its_own_parameter_only(name, backend):
    def stepped(bad):
        params = matrices(torch.float32)
        for p, g in zip(params, gradients(params, 0), strict=True):
            p.grad = g
        params[0].grad[0, 0] = bad
        CLASSES[name](params, LR, backend=backend).step()
        return params

    clean, spoiled = stepped(0.5), stepped(torch.nan)
    assert spoiled[0].isnan().all()
    # the third has the shape of the first, and was in the same batch
    assert [bits(p) for p in clean[1:]] == [bits(p) for p in spoiled[1:]]


@each_class
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
def test_the_size_of_gradients_does_not_matter(name, size):
    def stepped(size):
        p = nn.Parameter(torch.zeros(8, 12))
        p.grad = gradients([p], 0)[0] * size
        CLASSES[name]([p], 1.0, eps=1e-38).step()
        return p.detach()

    torch.testing.assert_close(stepped(size), stepped(1.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-3)])
def test_normuon_keeps_the_norm_and_evens_rows(dtype, tolerance):
    """Rows of unlike sizes; the first step knows nothing of earlier ones."""
    g = torch.randn(24, 40) * torch.logspace(0, -1, 24)[:, None]
    o = orthogonalize(g, 3, dtype=dtype)
    p = nn.Parameter(torch.zeros(24, 40))
    p.grad = g
    options = {"weight_decay": 0.0, "adjust_lr_fn": "none", "ns_dtype": dtype}
    optimizer = NorMuon([p], 1.0, ns_steps=3, **options)
    optimizer.step()
    rows = p.detach().norm(dim=1)
    assert (o.norm(dim=1).max() / o.norm(dim=1).min()) > 1.5
    torch.testing.assert_close(p.detach().norm(), o.norm(), rtol=tolerance, atol=0)
    assert rows.max() / rows.min() <= 1.01
    assert optimizer.state[p]["second_momentum_buffer"].shape == (24, 1)


def test_state_is_float32_for_narrow_parameters():
    params = matrices(torch.bfloat16)
    optimizer = NorMuon(params, lookahead=EMANesterov())
    train(optimizer, range(2))
    for p in params:
        state = optimizer.state[p]
        assert state["momentum_buffer"].shape == state["exp_avg_update"].shape == p.shape
        assert state["second_momentum_buffer"].shape == (len(p), 1)
        assert {v.dtype for k, v in state.items() if k != "lookahead"} == {torch.float32}


@each_class
@each_backend
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (1, 7), (7, 1)], ids=str)
def test_odd_shapes_are_stepped(name, backend, shape):
    params = matrices(torch.float32, [shape, (3, 4)])
    optimizer = CLASSES[name](params, LR, lookahead=EMANesterov(), backend=backend)
    train(optimizer, range(3))
    kept = [v for p in params for v in optimizer.state[p].values()]
    assert all(t.isfinite().all() for t in (*params, *kept))


@pytest.mark.gpu
@each_class
@pytest.mark.parametrize("backend", ["triton", "cpp"])
@pytest.mark.parametrize(("dtype", "slack"), [("float32", 1e-4), (None, 3e-2)])
def test_a_gpu_steps_as_the_cpu_does(name, backend, dtype, slack):
    """In float16, as it would by itself, but for the digits of that."""
    if backends.find(backend, "cuda")[0] is None:
        pytest.skip(backends.find(backend, "cuda")[1])
    here = matrices(torch.float32, [(40, 96), (96, 40), (64, 64), (8, 3, 5, 5)])
    there = [nn.Parameter(p.detach().cuda()) for p in here]
    start = [p.detach().clone() for p in here]
    options = {"lr": LR, "weight_decay": 0.0, "lookahead": EMANesterov()}
    cpu = CLASSES[name](here, **options, backend="eager", ns_dtype="float32")
    gpu = CLASSES[name](there, **options, backend=backend, ns_dtype=dtype)
    for t in range(5):
        for p, q, g in zip(here, there, gradients(start, t), strict=True):
            p.grad, q.grad = g, g.cuda()
        cpu.step()
        gpu.step()
    for p, q, s in zip(here, there, start, strict=True):
        assert (p - q.cpu()).norm() <= slack * (p - s).norm()
