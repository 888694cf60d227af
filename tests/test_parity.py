# SPDX-License-Identifier: MIT
"""Without a lookahead, AdamW and SGD are drop-ins for those of torch.optim: 1e-12 in float64."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import emanest
from helpers import one_thread  # noqa: F401
from torch_options import OPTIONS, each_class, each_option, ours, torchs

STEPS = 100
TOLERANCE = 1e-12

METHODS = [
    name
    for name, member in vars(torch.optim.Optimizer).items()
    if inspect.isfunction(member) and not name.startswith("_")
]


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- signatures ---------------------------------------------------------------------------------


def arguments(function):
    return list(inspect.signature(function).parameters.values())


@each_class
def test_constructors_take_torchs_arguments(name):
    def of_kind(cls, keyword_only):
        found = [p for p in arguments(cls) if (p.kind == p.KEYWORD_ONLY) == keyword_only]
        return [(p.name, p.default) for p in found]

    assert of_kind(ours(name), False) == of_kind(torchs(name), False)
    assert set(of_kind(ours(name), True)) >= set(of_kind(torchs(name), True))


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Wrap"])
@pytest.mark.parametrize("method", METHODS)
def test_methods_take_torchs_arguments(name, method):
    found, expected = (
        [(p.name, p.kind) for p in arguments(getattr(cls, method))]
        for cls in (getattr(emanest, name), torch.optim.Optimizer)
    )
    assert found == expected


@each_option
def test_groups_hold_torchs_options(name, option):
    found, expected = (
        cls([nn.Parameter(torch.ones(2))], **OPTIONS[name][option]).param_groups[0]
        for cls in (ours(name), torchs(name))
    )
    # not an option: it tells torch's Adam and AdamW apart
    names = expected.keys() - {"params", "decoupled_weight_decay"}
    assert {k: found[k] for k in names} == {k: expected[k] for k in names}


@each_class
def test_they_are_torch_optimizers(name):
    assert issubclass(ours(name), torch.optim.Optimizer)


# ---- results ------------------------------------------------------------------------------------


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def channels_last():
    return randn(4, 3, 5, 5).to(memory_format=torch.channels_last)


def complex_():
    return randn(7, 5, dtype=torch.complex128)


# name -> parameter, and its gradient at step t
CASES = {
    "matrix": (lambda: randn(33, 17), lambda t: randn(33, 17)),
    "scalar": (lambda: randn(()), lambda t: randn(())),
    "empty": (lambda: randn(0, 5), lambda t: randn(0, 5)),
    "complex": (complex_, lambda t: complex_()),
    "transposed": (lambda: randn(9, 5).t(), lambda t: randn(9, 5).t()),
    "strided": (lambda: randn(5, 18)[:, ::2], lambda t: randn(5, 9)),
    "channels last": (channels_last, lambda t: channels_last()),
    "gradient in another order": (channels_last, lambda t: channels_last().contiguous()),
    "transposed gradient": (lambda: randn(5, 9), lambda t: randn(9, 5).t()),
    "expanded gradient": (lambda: randn(5, 9), lambda t: randn(9).expand(5, 9)),
    "gradient at times": (lambda: randn(9), lambda t: randn(9) if t % 3 else None),
    "gradient from step 40": (lambda: randn(9), lambda t: randn(9) if t >= 40 else None),
    "no gradient": (lambda: randn(9), lambda t: None),
}


def run(make, each_step=lambda: None):
    """Every case's parameter and its state after the steps of one optimizer over all of them."""
    torch.manual_seed(1)
    params = {case: nn.Parameter(parameter()) for case, (parameter, _) in CASES.items()}
    optimizer = make(list(params.values()))
    for t in range(STEPS):
        for case, (_, gradient) in CASES.items():
            params[case].grad = gradient(t)
        optimizer.step()
        each_step()
    return {
        case: {"parameter": p.detach(), **optimizer.state.get(p, {})} for case, p in params.items()
    }


def check(found, expected):
    for case, values in expected.items():
        more = found[case].keys() - values.keys()
        # torch makes state at a parameter's first gradient, and counts no steps of SGD
        assert more <= {"step", "lookahead"} or values.keys() == {"parameter"}
    mine = {case: {k: found[case][k] for k in values} for case, values in expected.items()}
    torch.testing.assert_close(mine, expected, rtol=0, atol=TOLERANCE)


@each_option
def test_float64_is_torchs(name, option):
    """Torch's own runs are plain loops: some of its fused kernels refuse or misread odd layouts."""
    options = OPTIONS[name][option]
    plain = {k: v for k, v in options.items() if k not in ("foreach", "fused")}
    found = run(lambda params: ours(name)(params, **options))
    check(found, run(lambda params: torchs(name)(params, **plain)))


GROUPS = {
    "AdamW": [{}, {"lr": 0.02, "betas": (0.5, 0.9)}, {"weight_decay": 0.3, "amsgrad": True}],
    "SGD": [
        {},
        {"lr": 0.02, "momentum": 0.5, "dampening": 0.2},
        {"nesterov": True, "momentum": 0.8},
    ],
}


@each_class
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01, dtype=torch.float64)], ids=type)
def test_groups_under_a_schedule_are_torchs(name, lr):
    def scheduled(cls):
        def make(params):
            groups = [{"params": params[i::3], **more} for i, more in enumerate(GROUPS[name])]
            for group in groups:
                # torch would share one tensor among groups, and scale it once for each of them
                group.setdefault("lr", lr.clone() if isinstance(lr, torch.Tensor) else lr)
            optimizer = cls(groups, lr, weight_decay=0.1)
            schedulers.append(LambdaLR(optimizer, lambda t: math.cos(t / 70)))
            return optimizer

        schedulers = []
        return run(make, lambda: schedulers[0].step())

    check(scheduled(ours(name)), scheduled(torchs(name)))


@each_class
@pytest.mark.parametrize("shape", [(), (1, 1)])
def test_a_tensor_lr_is_the_number_that_it_holds(name, shape):
    """Torch's AdamW rounds lr * weight_decay and lr / bias to the dtype of the tensor: 4e-6 off."""
    lr = torch.full(shape, 0.03)
    runs = [run(lambda params, lr=lr: ours(name)(params, lr)) for lr in (lr, lr.item())]
    torch.testing.assert_close(*runs, rtol=0, atol=0)
    check(runs[0], run(lambda params: torchs(name)(params, lr.item())))
