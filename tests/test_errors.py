"""Bad input is told clearly, by name and value, and changes nothing."""

import copy
import math

import pytest
import torch
from torch import nn

import emanest
from emanest import (
    GPA,
    NAG,
    NALA,
    SGD,
    SNOO,
    AdamW,
    EMANesterov,
    LongHorizon,
    Lookahead,
    ScheduleFree,
)

INF, NAN = math.inf, math.nan


def parameter(*shape, **options):
    return nn.Parameter(torch.ones(*(shape or (3,)), **options))


SHARED = torch.ones(6)

# what params= is -> error
PARAMS = {
    "empty list": (list, ValueError, "empty parameter list.*already consume"),
    "exhausted generator": (lambda: iter(()), ValueError, "empty parameter list"),
    "None": (lambda: None, TypeError, "params must be an iterable of tensors.*got None"),
    "a parameter": (parameter, TypeError, "should be an iterable of Tensors or dicts"),
    "a module": (lambda: nn.Linear(2, 2), TypeError, r"pass model.parameters\(\), not the module"),
    "a dict": (lambda: {"params": [parameter()]}, TypeError, "wrap the group .* in a list"),
    "a set in a group": (lambda: [{"params": {parameter()}}], TypeError, "ordered collections"),
    "a float": (lambda: [1.0], TypeError, "can only optimize Tensors.*float"),
    "a list among tensors": (lambda: [parameter(), [1.0]], TypeError, "can only optimize Tensors"),
    "a non-leaf": (lambda: [parameter() * 2], ValueError, "can't optimize a non-leaf Tensor"),
    "a group without params": (lambda: [{"lr": 0.1}], ValueError, "group 0 has no 'params'"),
    "a group that is a list": (
        lambda: [{"params": [parameter()]}, [parameter()]],
        TypeError,
        "param_group must be a dict, got list",
    ),
    "some named": (
        lambda: [("a", parameter()), parameter()],
        ValueError,
        "all optimizer params should be with/without names",
    ),
    "integers": (
        lambda: [torch.ones(3, dtype=torch.int32)],
        TypeError,
        r"parameter 0 of group 0 has dtype torch.int32.*only floating and complex",
    ),
    "an expanded tensor": (
        lambda: [nn.Parameter(torch.ones(1).expand(4))],
        ValueError,
        "parameter 0 of group 0 overlaps itself",
    ),
}


@pytest.mark.parametrize("cls", [AdamW, SGD])
@pytest.mark.parametrize(("make", "error", "match"), PARAMS.values(), ids=PARAMS)
def test_bad_params_are_refused(cls, make, error, match):
    with pytest.raises(error, match=match):
        cls(make())


def test_a_parameter_in_two_groups_is_refused():
    p = parameter()
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        AdamW([{"params": [p]}, {"params": [p]}])


def test_a_repeated_parameter_is_warned_of_and_stepped_once():
    p, q = parameter(), parameter()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = SGD([p, p], lr=1.0)
    once = SGD([q], lr=1.0)
    for each, x in ((optimizer, p), (once, q)):
        x.grad = torch.ones(3)
        each.step()
    assert torch.equal(p, q)


# option, value -> error
ADAMW_OPTIONS = [
    ("lr", -1e-3, ValueError, "Invalid learning rate: -0.001.*lr must be finite and at least 0"),
    ("lr", NAN, ValueError, "Invalid learning rate: nan"),
    ("lr", INF, ValueError, "Invalid learning rate: inf"),
    ("lr", "0.1", TypeError, "lr must be a float or 1-element tensor, got '0.1' .str."),
    ("lr", None, TypeError, "lr must be a float or 1-element tensor, got None"),
    ("lr", [0.1], TypeError, "lr must be a float or 1-element tensor"),
    ("lr", 1j, TypeError, "lr must be a float or 1-element tensor"),
    ("lr", True, TypeError, "lr must be a float or 1-element tensor, got True"),
    ("lr", torch.ones(2), ValueError, "Tensor lr must be 1-element"),
    ("lr", torch.tensor(-1.0), ValueError, "Invalid learning rate: -1"),
    ("betas", (1.0, 0.9), ValueError, "Invalid beta parameter at index 0: 1.0"),
    ("betas", (0.9, -0.1), ValueError, "Invalid beta parameter at index 1: -0.1"),
    ("betas", (0.9, NAN), ValueError, "Invalid beta parameter at index 1: nan"),
    ("betas", (0.9,), ValueError, "betas must be two numbers"),
    ("betas", 0.9, ValueError, "betas must be two numbers.*got 0.9"),
    ("betas", ("a", 0.9), TypeError, r"betas\[0\] must be a number, got 'a'"),
    ("eps", -1e-8, ValueError, "Invalid epsilon value: -1e-08"),
    ("eps", NAN, ValueError, "Invalid epsilon value: nan"),
    ("weight_decay", -1, ValueError, "Invalid weight_decay value: -1"),
    ("weight_decay", INF, ValueError, "Invalid weight_decay value: inf"),
    ("weight_decay", "x", TypeError, "weight_decay must be a number, got 'x'"),
    ("maximize", "yes", TypeError, "maximize must be True or False, got 'yes'"),
    ("amsgrad", 1, TypeError, "amsgrad must be True or False, got 1"),
    ("foreach", 1, TypeError, "foreach must be True or False, got 1"),
    ("differentiable", True, ValueError, "differentiable=True is not supported"),
    ("nonfinite", "ignore", ValueError, "nonfinite must be one of .*got 'ignore'"),
    ("backend", "cuda-graph", ValueError, "backend must be None or one of .*got 'cuda-graph'"),
    ("lookahead", 0.5, TypeError, "lookahead must be None or one of EMANesterov.*got 0.5"),
    ("lookahead", EMANesterov, TypeError, "lookahead must be None or one of"),
    ("lookahead", ScheduleFree(), ValueError, r"pass betas=\(0, beta2\).*got betas\[0\]=0.9"),
    ("unknown", 1, TypeError, "unexpected keyword argument 'unknown'"),
]
SGD_OPTIONS = [
    ("momentum", -0.1, ValueError, "Invalid momentum value: -0.1"),
    ("momentum", NAN, ValueError, "Invalid momentum value: nan"),
    ("dampening", NAN, ValueError, "dampening must be finite, got nan"),
    ("nesterov", True, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    ("nesterov", 1, TypeError, "nesterov must be True or False, got 1"),
    ("weight_decay", -1, ValueError, "Invalid weight_decay value: -1"),
]
OPTIONS = [(AdamW, *row) for row in ADAMW_OPTIONS] + [(SGD, *row) for row in SGD_OPTIONS]


@pytest.mark.parametrize(("cls", "name", "value", "error", "match"), OPTIONS)
def test_bad_options_are_refused_by_name(cls, name, value, error, match):
    with pytest.raises(error, match=match):
        cls([parameter()], **{name: value})


@pytest.mark.parametrize(
    ("cls", "name", "value", "error", "match"), [r for r in OPTIONS if r[1] != "unknown"]
)
def test_a_bad_group_is_refused_and_not_added(cls, name, value, error, match):
    optimizer = cls([parameter()])
    before = copy.deepcopy(optimizer.param_groups)
    with pytest.raises(error, match=match):
        optimizer.add_param_group({"params": [parameter()], name: value})
    assert str(optimizer.param_groups) == str(before)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fused": True, "foreach": True}, "`fused` and `foreach` cannot be `True` together"),
        ({"fused": True, "differentiable": True}, "`fused` does not support `differentiable`"),
    ],
)
def test_contradictions_are_refused_in_torchs_words(options, match):
    with pytest.raises(RuntimeError, match=match):
        AdamW([parameter()], **options)


# method, setting -> values below, above, at open ends, of the wrong kind
SETTINGS = [
    (EMANesterov, "stepsize", [1.0, 1.5, -199.0, -1e9, NAN, INF, "0.5", True, None]),
    (EMANesterov, "decay", [1.0, -0.1, 2.0, NAN, "x", None, True]),
    (EMANesterov, "warmup", [-1, 1.5, "3", True, None]),
    (EMANesterov, "rest", [-1, 0, 2.5, "9", True]),
    (EMANesterov, "follow_lr", [1, "yes", None]),
    (EMANesterov, "init", ["ones", None, 0]),
    (NAG, "momentum", [1.0, -1.0, 2.0, NAN, INF, "x", None, True]),
    (Lookahead, "every", [0, -1, 2.5, "5", None, True]),
    (Lookahead, "alpha", [-0.1, 2.0, NAN, "x", None]),
    (LongHorizon, "every", [0, -1, 2.5, None, True]),
    (LongHorizon, "stepsize", [1.0, -1.0, NAN, "x"]),
    (SNOO, "every", [0, 1.0, None]),
    (SNOO, "lr", [0.0, 2.0, -1.0, NAN, "x"]),
    (SNOO, "momentum", [1.0, -0.1, NAN, "x"]),
    (GPA, "mu_x", [1.0, -0.1, NAN, "x"]),
    (GPA, "mu_y", [0.0, 1.1, NAN, "x"]),
    (ScheduleFree, "momentum", [0.0, 1.1, NAN, "x"]),
    (ScheduleFree, "r", [-1.0, INF, NAN, "x"]),
    (ScheduleFree, "weight_lr_power", [-1.0, INF, NAN, "x"]),
    (NALA, "every", [0, 2.5, None]),
    (NALA, "lr", [-1e-3, INF, NAN, "x"]),
    (NALA, "mu", [1.0, -1.0, NAN, "x"]),
]
REQUIRED = {NAG: {"momentum": 0.5}, LongHorizon: {"every": 3}, SNOO: {"every": 3}}
BAD_SETTINGS = [(cls, name, value) for cls, name, values in SETTINGS for value in values]


def test_every_setting_of_every_method_is_in_the_table():
    listed = {(cls, name) for cls, name, _ in SETTINGS}
    fields = {(m, f) for m in emanest.lookahead.METHODS.values() for f in m.__match_args__}
    assert listed == fields


@pytest.mark.parametrize(("cls", "name", "value"), BAD_SETTINGS)
def test_settings_out_of_range_are_refused_by_name(cls, name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be .*{value!s}"):
        cls(**{**REQUIRED.get(cls, {}), name: value})


@pytest.mark.parametrize(("cls", "name", "value"), BAD_SETTINGS)
def test_a_group_may_not_override_a_setting_with_junk(cls, name, value):
    options = {"betas": (0.0, 0.9), "lookahead": cls(**REQUIRED.get(cls, {}))}
    optimizer = AdamW([parameter()], **options)
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
        optimizer.add_param_group({"params": [parameter()], f"lookahead_{name}": value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("typo", ["lookahed", "weight_decai", "lookahead_stepsiz", "bets"])
def test_a_near_miss_in_a_group_is_warned_of(typo):
    with pytest.warns(UserWarning, match=f"group 0 has the unknown key '{typo}'; did you mean"):
        optimizer = AdamW([{"params": [parameter()], typo: 1}], lookahead=EMANesterov())
    assert optimizer.param_groups[0][typo] == 1


def test_the_users_own_keys_are_kept_without_a_word():
    optimizer = AdamW([{"params": [parameter()], "tag": "encoder"}])
    assert optimizer.param_groups[0]["tag"] == "encoder"
