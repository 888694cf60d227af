# SPDX-License-Identifier: MIT
"""A model at x: iterate_state_dict, update_bn."""

import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import emanest
from emanest import iterate_state_dict, update_bn
from helpers import METHODS, bits, content, differing

OPTIMIZERS = {
    "adamw": lambda params, method: emanest.AdamW(params, lr=0.05, lookahead=method),
    "sgd": lambda params, method: emanest.SGD(params, lr=0.05, lookahead=method),
    "wrap": lambda params, method: emanest.Wrap(torch.optim.AdamW(params, lr=0.05), method),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS)
# one that is ahead along a direction, one that keeps positions
each_method = pytest.mark.parametrize("method", ["ema", "gpa"])


class Net(nn.Module):
    """Tied weights, BatchNorm (one of them frozen), buffers, a frozen and a foreign parameter."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.frozen_norm = nn.BatchNorm1d(4, momentum=0.3)
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight
        self.scale = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        self.foreign = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x):
        x = self.norm(self.encoder(x)).relu() * self.scale + self.foreign
        return self.decoder(self.frozen_norm(x))

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}


def batches(count=3):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(8, 4, generator=generator) * 3 + 1 for _ in range(count)]


def trained(make="adamw", method="ema", steps=4, each=lambda model, optimizer: None):
    torch.manual_seed(1)
    model = Net()
    stepped = [p for name, p in model.named_parameters() if name != "foreign"]
    optimizer = OPTIMIZERS[make](stepped, METHODS[method])
    for _ in range(steps):
        for batch in batches(2):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        each(model, optimizer)
    return model, optimizer


def content_of(model):
    """All tensors of a model, by name, bit for bit, and the mode of every module."""
    modes = {f"{name}.training": module.training for name, module in model.named_modules()}
    return modes | {k: bits(v) for k, v in model.state_dict().items() if torch.is_tensor(v)}


# ---- iterate_state_dict ---------------------------------------------------------------------


@each_method
@each_optimizer
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_state_dict_is_that_of_the_model_at_x(make, method, mode):
    model, optimizer = trained(make, method)
    getattr(optimizer, mode)()
    before = content(optimizer), content_of(model)
    found = iterate_state_dict(model, SimpleNamespace(optimizer=optimizer))
    assert differing(content(optimizer), before[0]) == []
    assert content_of(model) == before[1]
    optimizer.eval()
    expected = model.state_dict()
    assert isinstance(found, OrderedDict)
    assert list(found) == list(expected)
    assert found._metadata == expected._metadata
    assert found.pop("_extra_state") == expected.pop("_extra_state") == {"version": 3}
    assert {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in expected.items()}


def test_the_state_dict_is_not_that_at_y_and_loads_into_a_new_model():
    model, optimizer = trained()
    found = iterate_state_dict(model, optimizer)
    assert bits(found["encoder.weight"]) != bits(model.encoder.weight)
    for name in ("foreign", "scale", "seen", "norm.running_mean"):
        assert bits(found[name]) == bits(model.state_dict()[name])
    new = Net()
    new.load_state_dict(found)
    optimizer.eval()
    assert bits(new.eval()(batches()[0])) == bits(model.eval()(batches()[0]))


def test_the_state_dict_shares_memory_within_it_only():
    model, optimizer = trained()
    found = iterate_state_dict(model, optimizer)
    assert found["encoder.weight"].data_ptr() == found["decoder.weight"].data_ptr()
    theirs = {v.data_ptr() for v in model.state_dict().values() if torch.is_tensor(v)}
    tensors = [v for v in found.values() if torch.is_tensor(v)]
    assert theirs.isdisjoint(v.data_ptr() for v in tensors)
    assert not any(v.requires_grad for v in tensors)


def test_before_the_first_step_the_state_dict_is_the_models():
    model, optimizer = trained(steps=0)
    found = iterate_state_dict(model, optimizer)
    assert bits(found["encoder.weight"]) == bits(model.encoder.weight)
    assert len(optimizer.state) == 0


def test_several_optimizers_share_a_model():
    layers = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.Sequential(*layers)
    optimizers = [
        OPTIMIZERS[name](layer.parameters(), METHODS["ema"])
        for name, layer in zip(("adamw", "sgd"), layers, strict=True)
    ]
    for batch in batches():
        model(batch).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    found = iterate_state_dict(model, optimizers)
    for optimizer in optimizers:
        optimizer.eval()
    expected = {k: bits(v) for k, v in model.state_dict().items()}
    assert {k: bits(v) for k, v in found.items()} == expected


# ---- update_bn ------------------------------------------------------------------------------


@each_method
@each_optimizer
def test_statistics_are_those_of_the_model_at_x(make, method):
    model, optimizer = trained(make, method)
    expected = Net()
    expected.load_state_dict(iterate_state_dict(model, optimizer))
    swa_utils.update_bn(batches(), expected)
    update_bn(batches(), model, SimpleNamespace(optimizer=optimizer))
    for name in ("norm.running_mean", "norm.running_var", "frozen_norm.running_var"):
        assert bits(model.get_buffer(name)) == bits(expected.get_buffer(name))
    at_y = copy.deepcopy(model)
    swa_utils.update_bn(batches(), at_y)
    assert bits(at_y.norm.running_var) != bits(model.norm.running_var)


@each_method
@each_optimizer
def test_a_run_with_updates_of_statistics_equals_a_run_without(make, method):
    def update(model, optimizer):
        update_bn(batches(), model, optimizer)

    (_, updated), (_, plain) = trained(make, method, each=update), trained(make, method)
    assert differing(content(updated), content(plain)) == []


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_nothing_but_the_statistics_changes(mode):
    model, optimizer = trained()
    model.eval()
    model.norm.train()
    getattr(optimizer, mode)()
    before = content(optimizer), content_of(model)
    update_bn([(batch, "a label") for batch in batches()], model, optimizer, device="cpu")
    assert differing(content(optimizer), before[0]) == []
    changed = {k for k, v in content_of(model).items() if v != before[1][k]}
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{name}" for layer in ("norm", "frozen_norm") for name in names}
    assert (model.norm.momentum, model.frozen_norm.momentum) == (0.1, 0.3)


def test_batches_go_to_the_device_first():
    class Batch:
        def to(self, device):
            devices.append(device)
            return batches()[0]

    model, optimizer = trained()
    devices = []
    update_bn([Batch(), (Batch(), "a label")], model, optimizer, device="cpu")
    assert devices == ["cpu", "cpu"]


def failing():
    yield batches()[0]
    raise OSError("the loader failed")


@pytest.mark.parametrize(
    ("loader", "error", "match"),
    [
        (list, ValueError, "loader is empty"),
        (lambda: iter([]), ValueError, "has it been consumed already"),
        (failing, OSError, "the loader failed"),
        (lambda: [batches()[0], torch.ones(8, 5)], RuntimeError, "shapes"),
    ],
    ids=["empty", "consumed", "fails", "wrong shape"],
)
def test_after_an_error_all_is_as_before(loader, error, match):
    model, optimizer = trained()
    model.frozen_norm.eval()
    before = content(optimizer), content_of(model)
    with pytest.raises(error, match=match):
        update_bn(loader(), model, optimizer)
    assert differing(content(optimizer), before[0]) == []
    assert content_of(model) == before[1]
    assert (model.norm.momentum, model.frozen_norm.momentum) == (0.1, 0.3)


def test_a_model_without_batch_norm_is_left_alone():
    model = nn.Linear(4, 4)
    optimizer = emanest.AdamW(model.parameters(), lookahead=METHODS["ema"])
    update_bn(pytest.fail, model, optimizer)


CALLS = {
    "iterate_state_dict": iterate_state_dict,
    "update_bn": lambda model, optimizer: update_bn(batches(), model, optimizer),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_model_and_an_optimizer_that_do_not_belong_together_are_refused(call):
    model, optimizer = trained()
    for pair, error, match in [
        ((copy.deepcopy(model), optimizer), ValueError, "none of the model's parameters"),
        ((model.state_dict(), optimizer), TypeError, "model must be an nn.Module, got OrderedDict"),
        ((model, torch.optim.SGD(model.parameters())), TypeError, "no optimizer of emanest"),
    ]:
        with pytest.raises(error, match=match):
            CALLS[call](*pair)
