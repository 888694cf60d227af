# SPDX-License-Identifier: MIT
"""Numbers that the device finds with torch: those of the host, and nothing moves on if skipped."""

from types import SimpleNamespace

import pytest
import torch

import emanest
from device_plans import METHODS, PAIRS, Device, Host, group_of, largest_error, rate
from emanest.backends.eager import plan_
from emanest.backends.program import record, symbol
from emanest.optimizers.adamw import ADAMW
from emanest.state.clock import clock_of
from emanest.state.joint import Part
from emanest.step import nonfinite, plan
from emanest.step.on_device import DevicePlan, options, trace_clock
from helpers import bits

each_method = pytest.mark.parametrize("method", METHODS)
each_pair = pytest.mark.parametrize(("method", "base"), PAIRS)


@each_pair
def test_the_device_agrees_with_the_host(method, base):
    """But the last bits: powers of tensors round differently from powers of Python numbers."""
    assert largest_error(method, base) <= 1e-12


def contents(device):
    return {name: bits(value) for name, value in device.entries.items()}


@each_pair
def test_a_skipped_step_moves_nothing(method, base):
    device = Device(method, base)
    for t in range(5):
        device.step(rate(t), False)
    before, tensors = contents(device), dict(device.entries)
    numbers = device.step(rate(5), True)
    assert contents(device) == before
    assert device.step(rate(5), False) == numbers
    assert contents(device) != before
    # a graph writes to where it was captured
    assert all(device.entries[name] is tensor for name, tensor in tensors.items())


@each_method
@pytest.mark.parametrize("skipped", [False, True])
def test_a_step_is_undone(method, skipped):
    """What is put back after a pass that failed."""
    device = Device(method, "adamw")
    for t in range(5):
        device.step(rate(t), False)
    before = contents(device)
    device.step(rate(5), skipped)
    device.found.undo()
    assert contents(device) == before


@each_method
def test_nothing_is_read_on_the_host(method, monkeypatch):
    device = Device(method, "adamw")
    inputs = {**device.entries, "lr": 0.1, "initial_lr": 0.1, "grad_scale": torch.ones(1)}

    def read(*_):
        pytest.fail("a tensor was read on the host")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, read)
    first, _ = device.plan.run(device.traced(), inputs, torch.zeros(1), "eager")
    second, _ = device.plan.run(device.traced(), inputs, None, "eager")
    monkeypatch.undo()
    assert first.data_ptr() == second.data_ptr()
    assert float(device.entries["step"]) == 2


def test_what_moves_on_moves_together():
    """The next value of one may be the present value of another."""
    a, b = symbol("a"), symbol("b")
    program, constants = record([a, b], {"a": b, "b": a})
    first, second = torch.tensor(1.0).double(), torch.tensor([2.0])
    out = torch.empty(4, dtype=torch.float64)
    plan_(program, [first, second], constants, out)
    assert (float(first), float(second)) == (2.0, 1.0)
    assert out.tolist() == [1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_learning_rate_may_be_any_tensor_with_one_element(dtype, shape):
    host, device = Host("ema", "sgd"), Device("ema", "sgd")
    lr = torch.ones(shape, dtype=dtype)
    assert device.step(lr, False) == host.step(1.0, False)


# ---- recording once -----------------------------------------------------------------------------


@each_pair
def test_another_learning_rate_is_the_same_program(method, base):
    device = Device(method, base)
    first = device.traced()
    for lr in (0.0, 0.1, 0.03, 1.0):
        device.group["lr"] = device.group["initial_lr"] = lr
        device.step(lr, False)
        assert device.traced() is first


def test_another_option_is_recorded_anew():
    device = Device("ema", "adamw")
    first = device.traced()
    changes = [
        ("betas", (0.8, 0.99)),
        ("eps", 1e-6),
        ("weight_decay", 0.25),
        ("betas", [0.8, 0.9]),
    ]
    for key, value in changes:
        device.group[key] = value
        second = device.traced()
        assert second.program == first.program
        assert second.constants != first.constants
        assert device.traced() is second
        first = second
    device.group["betas"][0] = 0.7
    assert device.traced() is not first
    first = device.traced()
    device.method = METHODS["ema constant"]
    assert device.traced().program != first.program


def test_options_are_what_can_be_compared():
    optimizer = emanest.AdamW([torch.ones(2, requires_grad=True)], lookahead=emanest.NAG(0.5))
    optimizer.param_groups[0]["mine"] = torch.ones(2)
    names = dict(options(optimizer.param_groups[0]))
    assert {"betas", "eps", "weight_decay", "lookahead", "lookahead_momentum"} <= names.keys()
    assert not {"params", "lr", "mine"} & names.keys()
    assert options(group_of("ema", "adamw")) == options(group_of("ema", "adamw"))


def test_the_clock_of_a_group_without_gradients_moves_on():
    plan, recorded = DevicePlan(torch.device("cpu")), trace_clock(METHODS["ema"])
    t, peak = (torch.tensor(v, dtype=torch.float64) for v in (3.0, 0.02))
    inputs = {"lookahead_t": t, "lookahead_peak": peak, "lr": 0.05, "initial_lr": 0.0}
    assert plan.run(recorded, inputs, None, "eager")[0].tolist() == []
    assert (float(t), float(peak)) == (4.0, 0.05)


def test_what_a_method_does_not_name_it_remembers():
    entries = {"lookahead_t": 0, "lookahead_peak": 0.1, "lookahead_count": 4.0}
    method = SimpleNamespace(
        memory={"peak": 0.0, "count": 0.0},
        memory_entries=("lookahead_peak", "lookahead_count"),
        remember=lambda t, lr, initial_lr, memory: {"peak": lr},
    )
    clock = clock_of(method, {**entries, "lr": 0.2, "initial_lr": 0.0}.__getitem__)
    assert clock.after(method) == {**entries, "lookahead_t": 1, "lookahead_peak": 0.2}


class Parameters:
    """What a step knows of the parameters of one device."""

    def __init__(self, device):
        self.device = torch.device(device)

    def together(self, indices):
        return True


def test_a_group_on_two_devices_is_refused():
    group = {"params": [torch.ones(1)]}
    first, second = (Part(group, None, ADAMW, Parameters(d), [0]) for d in ("cpu", "meta"))
    assert plan._only_device(group, [first, first]) == torch.device("cpu")
    assert plan._only_device(group, []) == torch.device("cpu")
    with pytest.raises(RuntimeError, match=r"one group are on \['cpu', 'meta'\]; give those of"):
        plan._only_device(group, [first, second])


def test_a_flag_goes_where_parameters_are_stepped():
    """A bucket none of whose parameters has a gradient may be elsewhere."""
    group = {"params": [], "capturable": True, "lookahead": None}
    optimizer = SimpleNamespace(found_inf=0.0, param_groups=[group], _base=lambda _: ADAMW)
    found = ("meta", []), ("cpu", [0])
    parts = [Part(group, None, ADAMW, Parameters(device), indices) for device, indices in found]
    with torch.device("meta"):
        happens, flag = nonfinite.check(optimizer, parts)
    assert happens
    assert flag.device == torch.device("cpu")
