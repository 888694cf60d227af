# SPDX-License-Identifier: MIT
"""Plans on 0-d tensors, as a step captured in a CUDA graph makes them."""

import pytest
import torch

from emanest import GPA, NAG, SNOO, EMANesterov, LongHorizon, ScheduleFree
from emanest.methods.method import METHODS, StepInfo
from helpers import BASES, on

# settings without a default
REQUIRED = {NAG: {"momentum": 0.9}, LongHorizon: {"every": 5}, SNOO: {"every": 5}}

CAPTURABLE = [
    EMANesterov(0.3, 0.9, warmup=3, rest=9),
    EMANesterov(0.3, 0.9, warmup=3, rest=9, follow_lr=False),
    EMANesterov(-0.3, 0.9, init="copy"),
    EMANesterov(0.5, 0.99, init="debias"),
    NAG(0.9),
    GPA(0.9, 0.7),
    ScheduleFree(),
    ScheduleFree(0.8, 1.5, 0.5),
]


def test_every_capturable_method_is_here():
    defaults = [method(**REQUIRED.get(method, {})) for method in METHODS.values()]
    capturable = {type(method) for method in defaults if method.capturable}
    assert {type(method) for method in CAPTURABLE} == capturable
    assert not EMANesterov(lambda t: 0.5).capturable


def planned(method, number):
    """Everything that a method says over 14 steps that it is told in some kind of number."""
    memory = {name: number(value) for name, value in method.memory.items()}
    b, said = number(0.0), []
    for t in range(14):
        lr = number([0.0, 0.1, 0.3, 0.2][t % 4])
        memory = method.remember(number(t), lr, number(0.15 * (t > 5)), memory)
        plan = method.plan(StepInfo(number(t), number(t), b, lr, number(0.1)), memory)
        b = plan.ahead
        said.append((plan.rule, [*plan.numbers, plan.ahead, *memory.values()]))
    return said


@pytest.mark.parametrize("method", CAPTURABLE)
def test_plans_are_the_same_on_tensors(method):
    """To 1e-15: a power is the only operation that may round differently."""

    def tensor(value):
        return torch.tensor(value, dtype=torch.float64)

    for (rule, numbers), (same_rule, tensors) in zip(
        planned(method, float), planned(method, tensor), strict=True
    ):
        assert rule == same_rule
        assert [float(value) for value in tensors] == pytest.approx(numbers, rel=1e-15, abs=0)


@pytest.mark.parametrize("method", CAPTURABLE)
def test_plans_never_read_a_tensor(method):
    """Not even for a branch: a tensor without data has no answer."""
    planned(method, lambda value: torch.tensor(value, dtype=torch.float64, device="meta"))


@pytest.mark.parametrize("base", BASES)
def test_numbers_of_the_base_are_the_same_on_tensors(base):
    """To 1e-15, as above; a first step may differ from the others."""
    optimizer = on(base, None)
    (group,) = optimizer.param_groups
    for step in range(14):
        lr, numbers = 0.1 * (step % 4), optimizer.bases[group["base"]].numbers
        info = StepInfo(step, float(step), 0.0, lr, 0.1)
        tensors = numbers(group, StepInfo(*(torch.tensor(v, dtype=torch.float64) for v in info)))
        expected = numbers(group, info)
        assert [float(value) for value in tensors] == pytest.approx(expected, rel=1e-15, abs=0)
