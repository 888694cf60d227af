# SPDX-License-Identifier: MIT
"""Rows 1 to 22 of the table of bad inputs: parameters."""

import numpy
import pytest
import torch
from torch import nn

from bad_input import (
    ELEMENTWISE,
    EVERY,
    MATRICES,
    OURS,
    Row,
    assert_same,
    goes_on,
    make,
    matrices,
    not_added,
    not_made,
    ready,
    refused,
)
from helpers import bits, params_of, run, set_gradients


def parameter(*shape, **options):
    return nn.Parameter(torch.ones(*(shape or (3, 2)), **options))


# ---- parameters ---------------------------------------------------------------------------------


def expanded():
    return nn.Parameter(torch.ones(1, 3).expand(4, 3))


def integers():
    return torch.ones(3, 2, dtype=torch.int32)


def conjugate():
    return nn.Parameter(torch.ones(2, dtype=torch.complex64).conj())


def negative():
    return nn.Parameter(torch.ones(2, dtype=torch.complex64).conj().imag)


def lazy():
    return [*nn.LazyLinear(2).parameters()]


EMPTY = "empty parameter list .did you already consume model.parameters"
VIEW = r"parameter 0 of group 0 is a view that conjugates or negates.*clone\(\) it"
ITERABLE = "argument given to the optimizer should be an iterable of Tensors or dicts"

# row, what is given as params -> error, message, optimizers
GIVEN = [
    (1, "no parameters", list, ValueError, EMPTY, OURS),
    (1, "a generator that is used up", lambda: iter(()), ValueError, EMPTY, OURS),
    (2, "None", lambda: None, TypeError, "params must be an iterable of .*, got None", OURS),
    (3, "a parameter", parameter, TypeError, ITERABLE, EVERY),
    (4, "a module", lambda: nn.Linear(2, 2), TypeError, r"pass model.parameters\(\), not", OURS),
    (5, "a dict", lambda: {"params": [parameter()]}, TypeError, "wrap the group .* list", OURS),
    (6, "a set", lambda: [{"params": {parameter()}}], TypeError, "ordered collections", EVERY),
    (7, "a float", lambda: [1.0], TypeError, "can only optimize Tensors.*float", EVERY),
    (7, "an array", lambda: [numpy.ones(3)], TypeError, "can only optimize Tensors.*ndarr", EVERY),
    (7, "a list", lambda: [parameter(), [1.0]], TypeError, "can only optimize Tensors", EVERY),
    (8, "no leaf", lambda: [parameter() * 2], ValueError, "can't optimize a non-leaf", EVERY),
    (9, "no params", lambda: [{"lr": 0.1}], ValueError, "group 0 has no 'params'", OURS),
    (9, "group a list", lambda: [[parameter()]], TypeError, "can only optimize Tensors", EVERY),
    (
        9,
        "second group a list",
        lambda: [{"params": [parameter()]}, [parameter()]],
        TypeError,
        "param_group must be a dict, got list",
        OURS,
    ),
    (
        12,
        "some named",
        lambda: [("a", parameter()), parameter()],
        ValueError,
        "all optimizer params should be with/without names",
        EVERY,
    ),
    (
        15,
        "an expanded tensor",
        lambda: [expanded()],
        ValueError,
        "parameter 0 of group 0 overlaps itself",
        EVERY,
    ),
    (15, "a conjugate view", lambda: [conjugate()], ValueError, VIEW, (*ELEMENTWISE, "Wrap")),
    (15, "a negative view", lambda: [negative()], ValueError, VIEW, EVERY),
    (15, "no shape yet", lazy, ValueError, "parameter 0 of group 0 has no shape yet", MATRICES),
    (
        16,
        "integers",
        lambda: [integers()],
        TypeError,
        "parameter 0 of group 0 has dtype torch.int32: only floating",
        EVERY,
    ),
]

# row, params of a late group -> error, message
LATE = [
    (3, "a float as a late group", lambda: 1.0, TypeError, "'float' object is not iterable"),
    (6, "a late set", lambda: {parameter()}, TypeError, "ordered collections"),
    (7, "a late float", lambda: [1.0], TypeError, "can only optimize Tensors.*float"),
    (8, "a late tensor that is no leaf", lambda: [parameter() * 2], ValueError, "non-leaf Tensor"),
    (12, "late names", lambda: [("a", parameter())], ValueError, "with/without names"),
    (
        15,
        "late and expanded",
        lambda: [parameter(), expanded()],
        ValueError,
        "parameter 1 of group 2 overlaps",
    ),
    (
        16,
        "late integers",
        lambda: [integers()],
        TypeError,
        "parameter 0 of group 2 has dtype torch.int32",
    ),
]


def repeated(name):
    p, q = matrices()[:2]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        twice = make(name, [p, q, p])
    once = make(name, matrices()[:2])
    assert params_of(twice) == [p, q]
    run(twice, range(3))
    run(once, range(3))
    assert_same(twice, once)


def twice_over(name):
    p = parameter()
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        make(name, [{"params": [p]}, {"params": [p]}])
    optimizer, twin = ready(name), ready(name)
    with refused(optimizer, ValueError, "appear in more than one parameter group"):
        optimizer.add_param_group({"params": [params_of(optimizer)[1]]})
    goes_on(optimizer, twin)


def tied(name):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    optimizer = make(name, model.parameters())
    alone = make(name, [nn.Parameter(model[0].weight.detach().clone())])
    for each in (optimizer, alone):
        run(each, range(3))
    assert len(optimizer.state) == 1
    assert_same(optimizer, alone)


def share_memory(name):
    whole = torch.ones(10, 3)
    first, second = nn.Parameter(whole[:6]), nn.Parameter(whole[4:])
    optimizer = make(name, [{"params": [first]}, {"params": [second]}])
    first.grad, second.grad = torch.ones(6, 3), torch.ones(6, 3)
    with refused(optimizer, ValueError, r"shapes \(6, 3\) and \(6, 3\) share memory.*clone"):
        optimizer.step()
    assert torch.equal(whole, torch.ones(10, 3))
    assert not optimizer.state


def parts_of_one_tensor(name):
    def split(rows, columns):
        return [rows[:6], rows[6:], columns[:, :2], columns[:, 2:]]

    rows, columns = torch.ones(10, 4), torch.ones(4, 4)
    parts = make(name, [nn.Parameter(part) for part in split(rows, columns)])
    apart = make(name, [nn.Parameter(part.clone()) for part in split(rows, columns)])
    for each in (parts, apart):
        run(each, range(3))
    assert [bits(p) for p in params_of(parts)] == [bits(p) for p in params_of(apart)]


def frozen(name):
    params = matrices()
    params[1].requires_grad_(False)
    optimizer, twin = make(name, params), make(name, matrices()[::2])
    before = bits(params[1])
    for t in range(3):
        for a, b in zip(params[::2], params_of(twin), strict=True):
            a.grad, b.grad = torch.full_like(a, t + 1), torch.full_like(b, t + 1)
        optimizer.step()
        twin.step()
    assert params[1] not in optimizer.state
    assert bits(params[1]) == before
    assert [bits(p) for p in params[::2]] == [bits(p) for p in params_of(twin)]


def on_meta(name):
    p = parameter(device="meta")
    optimizer = make(name, [p])
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="on the meta device: materialise the model before the"):
        optimizer.step()
    assert "lookahead" not in optimizer.state.get(p, {})


def inference(name):
    with torch.inference_mode():
        p = torch.ones(3, 2)
        optimizer = make(name, [p])
        p.grad = torch.ones(3, 2)
    with pytest.raises(RuntimeError, match=r"made in inference mode.*clone\(\) it outside"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(p, torch.ones(3, 2))


def complex_numbers(name):
    params = matrices(torch.complex64)
    pairs = [nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    optimizer, twin = make(name, params), make(name, pairs)
    for t in range(4):
        set_gradients(params, t)
        for pair, p in zip(pairs, params, strict=True):
            pair.grad = torch.view_as_real(p.grad)
        optimizer.step()
        twin.step()
    assert [bits(torch.view_as_real(p.detach())) for p in params] == [bits(p) for p in pairs]


def vectors(shape):
    return not_made(
        lambda: [("norm.weight", parameter(*shape) if shape else nn.Parameter(torch.ones(())))],
        ValueError,
        r"'norm.weight'.* has shape .*split_params\(model\)",
    )


def kernels(name):
    """As the matrices that they are when flattened."""
    kernel = torch.randn(6, 3, 2, 2)
    optimizer = make(name, [nn.Parameter(kernel.clone())])
    flat = make(name, [nn.Parameter(kernel.clone().flatten(1))])
    for t in range(3):
        (p,), (q,) = params_of(optimizer), params_of(flat)
        p.grad = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(t))
        q.grad = p.grad.flatten(1)
        optimizer.step()
        flat.step()
    assert bits(p.flatten(1)) == bits(q)


ROWS = [
    *(Row(n, what, not_made(*row), on) for n, what, *row, on in GIVEN),
    *(Row(n, what, not_added(*row)) for n, what, *row in LATE),
    Row(10, "a repeated parameter", repeated, OURS),
    Row(11, "a parameter in two groups", twice_over),
    Row(13, "tied weights", tied),
    Row(14, "memory that is shared", share_memory),
    Row(14, "parts of one tensor", parts_of_one_tensor),
    Row(17, "a frozen parameter", frozen),
    Row(18, "the meta device", on_meta),
    Row(19, "inference tensors", inference),
    Row(20, "complex numbers", complex_numbers, (*ELEMENTWISE, "Wrap")),
    Row(
        20,
        "complex matrices",
        not_made(lambda: [parameter(dtype=torch.complex64)], ValueError, "only real matrices here"),
        MATRICES,
    ),
    Row(21, "a vector", vectors((3,)), MATRICES),
    Row(21, "a scalar", vectors(()), MATRICES),
    Row(22, "kernels", kernels, MATRICES),
]
