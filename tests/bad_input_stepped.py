# SPDX-License-Identifier: MIT
"""Rows 37 to 47 of the table of bad inputs: gradients, and parameters that change."""

import copy

import pytest
import torch
from torch import nn

from bad_input import (
    ELEMENTWISE,
    EVERY,
    OURS,
    SHAPES,
    Row,
    assert_same,
    goes_on,
    make,
    matrices,
    not_stepped,
    options_for,
    ready,
    refused,
)
from helpers import (
    bits,
    gradients,
    parameters,
    params_of,
    run,
    set_gradients,
)

# ---- gradients ----------------------------------------------------------------------------------


def sparse(optimizer):
    p = params_of(optimizer)[0]
    p.grad = torch.ones(p.shape).to_sparse()


def not_finite(optimizer):
    for group in optimizer.param_groups:
        group["nonfinite"] = "raise"
    params_of(optimizer)[1].grad[0, 0] = torch.nan


def propagated(name):
    """To its own element, of an element-wise optimizer."""
    optimizer, twin = ready(name), ready(name)
    params_of(optimizer)[1].grad[0, 0] = torch.nan
    optimizer.step()
    twin.step()
    for i, (p, q) in enumerate(zip(params_of(optimizer), params_of(twin), strict=True)):
        wrong = p.isnan()
        assert wrong.sum() == (i == 1)
        assert torch.equal(p[~wrong], q[~wrong])


def skipped(name):
    optimizer, twin = ready(name, nonfinite="skip"), ready(name, nonfinite="skip")
    for bad in (torch.nan, torch.inf, -torch.inf):
        set_gradients(params_of(optimizer), 2)
        params_of(optimizer)[1].grad[0, 0] = bad
        optimizer.step()
    goes_on(optimizer, twin)


def given(name, give, dtype=torch.float32, steps=4):
    """Gradients handed over in another way are those of the usual one, bit for bit."""
    optimizer, plain = (make(name, matrices(dtype), **options_for(name)) for _ in range(2))
    for t in range(steps):
        for p, g in zip(params_of(optimizer), gradients(params_of(optimizer), t), strict=True):
            give(p, g)
        optimizer.step()
        run(plain, [t])
    assert_same(optimizer, plain)


def in_float32(name):
    """Of bfloat16 parameters; torch's optimizers cannot."""

    def give(p, g):
        p.grad = None
        p.grad_dtype = torch.float32
        p.grad = g.float()

    given(name, give, torch.bfloat16)


def transposed(p, g):
    p.grad = g.t().contiguous().t()


def strided(p, g):
    p.grad = torch.stack([g, g + 1], dim=-1)[..., 0]


def in_another_layout(name):
    for give in (transposed, strided):
        for dtype in (torch.float32, torch.bfloat16):
            given(name, give, dtype)


def channels_last(name):
    """Parameters, gradients, or one of them."""

    def trained(p_format, g_format):
        kernel = parameters(shapes=[(4, 3, 2, 2)])[0].detach()
        optimizer = make(name, [nn.Parameter(kernel.to(memory_format=p_format))])
        for t in range(3):
            set_gradients(params_of(optimizer), t)
            p = params_of(optimizer)[0]
            p.grad = p.grad.contiguous(memory_format=g_format)
            optimizer.step()
        return bits(params_of(optimizer)[0].contiguous())

    formats = torch.contiguous_format, torch.channels_last
    expected = trained(*formats[:1] * 2)
    assert all(trained(p, g) == expected for p in formats for g in formats)


def expanded(name):
    optimizer, plain = (make(name, matrices()) for _ in range(2))
    for t in range(3):
        for p, q in zip(params_of(optimizer), params_of(plain), strict=True):
            row = torch.randn(p.shape[1], generator=torch.Generator().manual_seed(t))
            p.grad = row.expand(p.shape)
            q.grad = row.expand(p.shape).clone()
        optimizer.step()
        plain.step()
    assert_same(optimizer, plain)


def in_a_graph(name):
    optimizer, plain = (make(name, matrices()) for _ in range(2))
    for _ in range(4):
        for p in params_of(optimizer):
            p.grad = torch.autograd.grad(p.pow(3).sum(), p, create_graph=True)[0]
            assert p.grad.requires_grad
        for p in params_of(plain):
            p.grad = torch.autograd.grad(p.pow(3).sum(), p)[0]
        optimizer.step()
        plain.step()
    assert_same(optimizer, plain)


# ---- parameters ---------------------------------------------------------------------------------


def empty(name):
    """Empty ones are stepped beside the others, and 0-d ones by what is element-wise."""
    scalars = [(), (0,)] * (name not in ("Muon", "NorMuon"))
    params = parameters(shapes=[(0, 4), *SHAPES[:1], (3, 0), *SHAPES[1:], *scalars])
    filled = [p for p in params if p.numel()]
    optimizer = make(name, params)
    plain = make(name, [nn.Parameter(p.detach().clone()) for p in filled])
    for t in range(4):
        set_gradients(params_of(plain), t)
        set_gradients(filled, t)
        for p in params_of(optimizer):
            p.grad = torch.zeros_like(p) if p.numel() == 0 else p.grad
        optimizer.step()
        plain.step()
        with optimizer.at_iterate():
            pass
    assert [bits(p) for p in filled] == [bits(p) for p in params_of(plain)]


def mixed(name):
    """A group may mix dtypes: each parameter goes as it would alone."""
    dtypes = [torch.float64, torch.bfloat16, torch.float16, torch.float32]
    dtypes += [torch.complex64] * (name not in ("Muon", "NorMuon"))

    def trained(params):
        optimizer = make(name, params)
        for t in range(4):
            for p in params:
                set_gradients([p], t)
            optimizer.step()
        return [bits(p) for p in params]

    def one(dtype):
        return parameters(dtype, SHAPES[:1])

    together = trained([p for dtype in dtypes for p in one(dtype)])
    assert together == [trained(one(dtype))[0] for dtype in dtypes]


def reshape(optimizer):
    p = params_of(optimizer)[1]
    p.grad, p.data = None, torch.ones(5, 2)
    p.grad = torch.ones(5, 2)


def of_another_shape(name):
    optimizer = ready(name)
    reshape(optimizer)
    with refused(optimizer, RuntimeError, r"changed shape from \(3, 4\) to \(5, 2\).*make a new"):
        optimizer.step()


def of_another_dtype(name):
    """State keeps its width; one warning."""
    optimizer = ready(name, **options_for(name))
    module = nn.ParameterList(params_of(optimizer))
    state = {k: v.dtype for p in module for k, v in optimizer.state[p].items() if v is not None}
    with pytest.warns(UserWarning, match="moved from torch.float32 .* to torch.bfloat16") as caught:
        run(optimizer_to(optimizer, module, torch.bfloat16), range(2, 4))
    assert len(caught) == 1
    assert {k: optimizer.state[p][k].dtype for p in module for k in state} == state
    run(optimizer_to(optimizer, module, torch.float32), range(4, 6))
    assert all(p.isfinite().all() for p in module)


def optimizer_to(optimizer, module, *where):
    module.to(*where)
    for p in module:
        p.grad = None
    return optimizer


def on_another_device(name):
    """And bit for bit as if its checkpoint had been loaded there."""
    optimizer = ready(name, **options_for(name))
    saved = copy.deepcopy(optimizer.state_dict())
    device = torch.device("cuda", 0)
    with pytest.warns(UserWarning, match="moved from torch.float32 on cpu to .* on cuda:0"):
        steps_on(optimizer_to(optimizer, nn.ParameterList(params_of(optimizer)), device))
    loaded = ready(name, **options_for(name))
    optimizer_to(loaded, nn.ParameterList(params_of(loaded)), device)
    loaded.load_state_dict(saved)
    steps_on(loaded)
    found, expected = ([p.cpu() for p in params_of(o)] for o in (optimizer, loaded))
    assert [bits(p) for p in found] == [bits(p) for p in expected]


def steps_on(optimizer):
    for t in range(2):
        for p in params_of(optimizer):
            p.grad = torch.full_like(p, t + 1.0)
        optimizer.step()


ROWS = [
    Row(
        37,
        "a sparse gradient",
        not_stepped(
            sparse,
            RuntimeError,
            "does not support sparse gradients: parameter 0 of group 0.*use a dense layer",
        ),
        OURS,
    ),
    Row(
        37,
        "a sparse gradient inside",
        not_stepped(sparse, RuntimeError, "does not support sparse gradients"),
        ("Wrap",),
    ),
    Row(38, "NaN, propagated", propagated, (*ELEMENTWISE, "Wrap")),
    Row(38, "NaN, skipped", skipped, OURS),
    Row(
        38,
        "NaN, raised",
        not_stepped(not_finite, RuntimeError, "non-finite gradient .*: parameter 0 of group 1$"),
        OURS,
    ),
    Row(39, "gradients of another dtype", in_float32, OURS),
    Row(40, "gradients of another layout", in_another_layout),
    Row(40, "channels last", channels_last),
    Row(40, "expanded gradients", expanded),
    Row(41, "gradients in a graph", in_a_graph),
    Row(42, "empty and 0-d parameters", empty),
    Row(44, "a group of several dtypes", mixed),
    Row(45, "a parameter of another shape", of_another_shape),
    Row(46, "another dtype", of_another_dtype),
    Row(47, "another device", on_another_device, EVERY, (pytest.mark.gpu,)),
]
