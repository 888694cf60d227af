# SPDX-License-Identifier: MIT
"""torchtitan: its container of optimizers holds ours; its flat state dicts resume them."""

import pytest
import torch
from torch import distributed, nn
from torchtitan.components.optimizer import ParamGroupConfig, default_adamw

import emanest
import runs
from emanest.integrations.torchtitan import Optimizers
from helpers import METHODS, content, differing

# Muon has a momentum of its own
each_method = pytest.mark.parametrize("method", [m for m in METHODS if m != "schedule free"])
OPTIONS = {"Muon": {"lr": 0.02}, "AdamW": {"lr": 0.05}}


@pytest.fixture(autouse=True)
def process_group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def make_model():
    net = runs.make_model()
    return nn.ModuleDict({"first": net[:2], "layers": net[2:4], "last": net[4:]})


def forward(model, x):
    return model["last"](model["layers"](model["first"](x)))


def make(method, implementation="fused"):
    patterns = {"Muon": r"layers\..*\.weight$", "AdamW": ".*"}
    groups = [
        ParamGroupConfig(
            pattern=pattern,
            optimizer_name=name,
            optimizer_kwargs={**OPTIONS[name], "lookahead": METHODS[method]},
        )
        for name, pattern in patterns.items()
    ]
    model = make_model()
    config = Optimizers.Config(implementation=implementation, param_groups=groups)
    return model, config.build(model_parts=[model])


def train(model, optimizers, some):
    for x, target in list(runs.loader(9))[some]:
        nn.functional.mse_loss(forward(model, x), target).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@each_method
def test_a_container_steps_as_its_optimizers(method):
    model, container = make(method)
    train(model, [container], slice(None))
    plain = make_model()
    hidden = plain["layers"][0].weight
    others = [p for p in plain.parameters() if p is not hidden]
    optimizers = [
        emanest.Muon([hidden], **OPTIONS["Muon"], lookahead=METHODS[method]),
        emanest.AdamW(others, **OPTIONS["AdamW"], lookahead=METHODS[method]),
    ]
    train(plain, optimizers, slice(None))
    assert runs.weights(model.state_dict()) == runs.weights(plain.state_dict())
    x = emanest.iterate_state_dict(plain, optimizers)
    with emanest.at_iterate(container):
        assert runs.weights(model.state_dict()) == runs.weights(x)


@each_method
@pytest.mark.parametrize("implementation", ["for-loop", "foreach", "fused"])
def test_a_flat_state_dict_resumes_exactly(method, implementation):
    model, container = make(method, implementation)
    train(model, [container], slice(5))
    resumed_model, resumed = make(method, implementation)
    resumed_model.load_state_dict(model.state_dict())
    saved = {k: v.clone() if torch.is_tensor(v) else v for k, v in container.state_dict().items()}
    resumed.load_state_dict(saved)
    for each in ((model, container), (resumed_model, resumed)):
        train(each[0], [each[1]], slice(5, None))
    pairs = zip(emanest.find_all(container), emanest.find_all(resumed), strict=True)
    assert [differing(*map(content, pair)) for pair in pairs] == [[], []]


def plain_values(**muon):
    """What a configuration of plain values says: names, numbers, mappings."""
    rest = {"lr": 0.05, "lookahead": {"name": "ema_nesterov", "stepsize": 0.3}}
    rows = [(r"layers\..*\.weight$", "Muon", muon), (".*", "AdamW", rest)]
    names = ("pattern", "optimizer_name", "optimizer_kwargs")
    return [ParamGroupConfig(**dict(zip(names, row, strict=True))) for row in rows]


def test_plain_values_describe_optimizers_and_lookaheads():
    groups = plain_values(lr=0.02, lookahead="ema_nesterov", lookahead_warmup=2)
    container = Optimizers.Config(param_groups=groups).build(model_parts=[make_model()])
    assert type(container) is Optimizers
    muon, adamw = emanest.find_all(container)
    assert (type(muon), type(adamw)) == (emanest.Muon, emanest.AdamW)
    assert muon.param_groups[0]["lookahead_warmup"] == 2
    assert adamw.param_groups[0]["lookahead_stepsize"] == 0.3


@pytest.mark.parametrize("name", [cls.__name__ for cls in emanest.OPTIMIZERS.values()])
def test_all_of_ours_have_their_names(name):
    pattern = r"layers\..*\.weight$"
    groups = [ParamGroupConfig(pattern=pattern, optimizer_name=name), *default_adamw().param_groups]
    container = Optimizers.Config(param_groups=groups).build(model_parts=[make_model()])
    assert type(next(iter(container))) is getattr(emanest, name)


def test_torchtitans_own_names_stay_and_others_are_refused():
    for name, expected in (("Adam", torch.optim.Adam), ("AdamW", emanest.AdamW)):
        groups = [ParamGroupConfig(pattern=".*", optimizer_name=name)]
        (made,) = Optimizers.Config(param_groups=groups).build(model_parts=[make_model()])
        assert type(made) is expected
    groups = [ParamGroupConfig(pattern=".*", optimizer_name="Muun")]
    with pytest.raises(NotImplementedError, match="Optimizer Muun not added"):
        Optimizers.Config(param_groups=groups).build(model_parts=[make_model()])
