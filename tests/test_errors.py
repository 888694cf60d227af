# SPDX-License-Identifier: MIT
"""Every setting of every method has its range, and says so by name and value."""

import math

import pytest
import torch
from torch import nn

import emanest
from emanest import GPA, NAG, NALA, SNOO, AdamW, EMANesterov, LongHorizon, Lookahead, ScheduleFree

INF, NAN = math.inf, math.nan


def parameter():
    return nn.Parameter(torch.ones(3))


# method, setting -> values below, above, at open ends, of the wrong kind
SETTINGS = [
    (EMANesterov, "stepsize", [1.0, 1.5, -199.0, -1e9, NAN, INF, "0.5", True, None]),
    (EMANesterov, "decay", [1.0, -0.1, 2.0, NAN, "x", None, True]),
    (EMANesterov, "warmup", [-1, 1.5, "3", True, None]),
    (EMANesterov, "rest", [-1, 0, 2.5, "9", True]),
    (EMANesterov, "follow_lr", [2, 1.0, "yes", None]),
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
    fields = {(m, f) for m in emanest.methods.method.METHODS.values() for f in m.__match_args__}
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
