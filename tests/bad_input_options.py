# SPDX-License-Identifier: MIT
"""Rows 23 to 36 of the table of bad inputs: options."""

import decimal
import fractions
import math
import os
from unittest import mock

import numpy
import pytest
import torch

import emanest
from bad_input import (
    EMA,
    EVERY,
    MATRICES,
    OURS,
    Row,
    bad_option,
    goes_on,
    make,
    matrices,
    not_stepped,
    options_of,
    ready,
    refused,
)
from emanest import EMANesterov, ScheduleFree
from helpers import run

INF, NAN = math.inf, math.nan

RATE = "Invalid learning rate:"
KIND = "lr must be a float or 1-element tensor, got"
LEARNING_RATES = [
    (23, -1e-3, ValueError, f"{RATE} -0.001 .lr must be finite and at least 0"),
    (23, NAN, ValueError, f"{RATE} nan"),
    (23, torch.tensor(-1.0), ValueError, f"{RATE} -1.0"),
    (23, torch.tensor(NAN), ValueError, f"{RATE} nan"),
    (24, INF, ValueError, f"{RATE} inf"),
    (24, torch.tensor(INF), ValueError, f"{RATE} inf"),
    (25, "0.1", TypeError, f"{KIND} '0.1' .str."),
    (25, None, TypeError, f"{KIND} None"),
    (25, [0.1], TypeError, KIND),
    (25, 1j, TypeError, KIND),
    (24, 10**400, ValueError, f"{RATE} inf"),
    (26, True, TypeError, f"{KIND} True .bool."),
    (27, torch.ones(2), ValueError, "Tensor lr must be 1-element"),
]

# row, option, value -> error, message; for every optimizer that has the option
OPTIONS = [
    (30, "betas", (1.0, 0.9), ValueError, "Invalid beta parameter at index 0: 1.0"),
    (30, "betas", (0.9, -0.1), ValueError, "Invalid beta parameter at index 1: -0.1"),
    (30, "betas", (0.9, NAN), ValueError, "Invalid beta parameter at index 1: nan"),
    (30, "betas", (0.9,), ValueError, "betas must be two numbers"),
    (30, "betas", 0.9, ValueError, "betas must be two numbers.*got 0.9"),
    (30, "betas", "09", ValueError, "betas must be two numbers.*got '09'"),
    (30, "betas", {0.9, 0.99}, ValueError, "betas must be two numbers.*got {0.9"),
    (30, "betas", {0.9: 0, 0.99: 1}, ValueError, "betas must be two numbers.*got {0.9: 0"),
    (30, "betas", numpy.array(0.9), ValueError, "betas must be two numbers.*got array"),
    (30, "betas", numpy.ones((2, 2)), TypeError, r"betas\[0\] must be a number, got array"),
    (30, "betas", torch.tensor([0.9, 0.99]), ValueError, "betas must be two numbers.*got tensor"),
    (30, "betas", ("a", 0.9), TypeError, r"betas\[0\] must be a number, got 'a'"),
    (30, "betas", (torch.tensor(0.9), 0.99), TypeError, r"betas\[0\] must be a number, got tens"),
    (30, "momentum", -0.1, ValueError, "Invalid momentum value: -0.1"),
    (30, "momentum", NAN, ValueError, "Invalid momentum value: nan"),
    (30, "dampening", NAN, ValueError, "dampening must be finite, got nan"),
    (30, "beta2", 1.0, ValueError, r"beta2 must be in \[0, 1\), got 1.0"),
    (31, "eps", -1e-8, ValueError, "Invalid epsilon value: -1e-08"),
    (31, "eps", NAN, ValueError, "Invalid epsilon value: nan"),
    (31, "eps", INF, ValueError, "Invalid epsilon value: inf"),
    (31, "weight_decay", numpy.complex64(1), TypeError, "weight_decay must be a number, got np.co"),
    (31, "weight_decay", -1, ValueError, "Invalid weight_decay value: -1"),
    (31, "weight_decay", NAN, ValueError, "Invalid weight_decay value: nan"),
    (31, "weight_decay", INF, ValueError, "Invalid weight_decay value: inf"),
    (31, "weight_decay", "x", TypeError, "weight_decay must be a number, got 'x'"),
    (34, "differentiable", True, ValueError, "differentiable=True is not supported"),
    (35, "maximize", "yes", TypeError, "maximize must be True or False, got 'yes'"),
    (35, "capturable", 2, TypeError, "capturable must be True or False, got 2"),
    (35, "amsgrad", 1.0, TypeError, "amsgrad must be True or False, got 1.0"),
    (35, "foreach", "no", TypeError, "foreach must be True or False, got 'no'"),
    (35, "nesterov", None, TypeError, "nesterov must be True or False, got None"),
    (35, "nonfinite", "ignore", ValueError, "nonfinite must be one of .*got 'ignore'"),
    (35, "nonfinite", ["skip"], ValueError, r"nonfinite must be one of .*got \['skip'\]"),
    (36, "backend", ["cpp"], ValueError, r"backend must be None or one of .*\['cpp'\]"),
    (36, "backend", "cuda-graph", ValueError, "backend must be None or one of .*'cuda-graph'"),
]
LOOKAHEADS = [
    (0.5, TypeError, r"lookahead must be a method such as emanest.EMANesterov\(\).*got 0.5"),
    (EMANesterov, TypeError, r"got the class: write emanest.EMANesterov\(\)"),
    ("ema", ValueError, "lookahead must be one of .*'ema'; did you mean 'ema_nesterov'"),
    (["nag"], TypeError, "lookahead must be a method .*'nag'"),
]
SETTINGS = [
    ("decay", 1.0, ValueError, r"decay must be in \[0, 1\), got 1.0"),
    ("decay", NAN, ValueError, r"decay must be in \[0, 1\), got nan"),
    ("stepsize", 1.0, ValueError, "stepsize must be in .*got 1.0"),
    ("warmup", -1, ValueError, "warmup must be at least 0, got -1"),
    ("rest", 0, ValueError, "rest must be above warmup"),
]


def junk(value):
    """What user code may do to a learning rate later."""
    return lambda optimizer: optimizer.param_groups[1].update(lr=value)


def no_rate(optimizer):
    del optimizer.param_groups[1]["lr"]


def entry(key, value):
    return lambda optimizer: optimizer.param_groups[1].update({key: value})


# an entry of a group that user code changed -> error, message
CHANGED = [
    ("lookahead_stepsize", 3.0, ValueError, "stepsize must be in .*got 3.0"),
    ("lookahead_decay", 1.0, ValueError, r"decay must be in \[0, 1\), got 1.0"),
    ("lookahead_stepsize", lambda t: 7.0, ValueError, r"stepsize\(\d\) must be in .*got 7.0"),
    (
        "lookahead_stepsize",
        lambda t: "far",
        TypeError,
        r"stepsize\(\d\) must be a number, got 'far'",
    ),
    ("lookahead", "ema", ValueError, "lookahead must be one of .*got 'ema'"),
    ("lookahead", ["nag"], ValueError, "lookahead must be one of .*'nag'"),
]


def in_group(match):
    """The message of a step names the group."""
    return match.replace("lr must", "lr of group 1 must")


def numbers_of_any_kind(name):
    """They become floats: numpy's would keep a checkpoint from loading with weights_only."""
    rates = [numpy.float64(0.125), numpy.float32(0.125), decimal.Decimal("0.125")]
    for rate in [*rates, fractions.Fraction(1, 8)]:
        # of an inner optimizer only what we look at ourselves
        options = {} if name == "Wrap" else {"weight_decay": rate}
        if name == "Wrap" and not isinstance(rate, float):
            continue
        optimizer = make(name, matrices(), lr=rate, **options)
        plain = make(name, matrices(), lr=0.125, **dict.fromkeys(options, 0.125))
        if name != "Wrap":
            assert {type(optimizer.param_groups[0][k]) for k in ("lr", "weight_decay")} == {float}
        goes_on(optimizer, plain)


def bad_lookahead(value, error, match):
    def check(name):
        if not isinstance(value, str):
            with pytest.raises(error, match=match):
                make(name, matrices(), lookahead=value)
        with pytest.raises(error, match=match):
            make(name, [{"params": matrices(), "lookahead": value}])

    return check


def bad_setting(key, value, error, match):
    """A setting of a group's own."""

    def check(name):
        with pytest.raises(error, match=match):
            make(name, [{"params": matrices(), key: value}])
        not_added_with({key: value}, error, match)(name)

    return check


def not_added_with(entries, error, match):
    def check(name):
        optimizer, twin = ready(name), ready(name)
        with refused(optimizer, error, match):
            optimizer.add_param_group({"params": matrices(), **entries})
        goes_on(optimizer, twin)

    return check


def momentum_of_its_own(name):
    """Schedule-Free brings the momentum."""
    with pytest.raises(ValueError, match=r"betas=.0, beta2.*got betas|momentum=0, got mom"):
        make(name, matrices(), lookahead=ScheduleFree(), **({"momentum": 0.5} if has(name) else {}))


def has(name, option="momentum"):
    return name != "Wrap" and option in options_of(name)


def unknown_argument(key, near):
    question = f"; did you mean '{near}'\\?" if near else "$"

    def check(name):
        given = torch.optim.SGD(matrices()) if name == "Wrap" else matrices()
        match = f"{name}\\(\\) got an unexpected keyword argument '{key}'{question}"
        with pytest.raises(TypeError, match=match):
            getattr(emanest, name)(given, **{key: EMA})

    return check


def subclass_argument(name):
    """Constructors of the user's own hand unknown arguments on, or take them themselves."""
    base = getattr(emanest, name)

    class Scaled(base):
        def __init__(self, params, scale, **options):
            super().__init__(params, **options)
            self.scale = scale

    assert Scaled(matrices(), scale=2.0, lr=0.5).param_groups[0]["lr"] == 0.5
    with pytest.raises(TypeError, match=r"Scaled\(\) got .* 'lookahed'; did you mean 'lookahead'"):
        Scaled(matrices(), scale=2.0, lookahed=EMA)


def near_miss_in_a_group(typo, near):
    def check(name):
        match = f"group 0 has the unknown key '{typo}'; did you mean '{near}'"
        with pytest.warns(UserWarning, match=match) as caught:
            optimizer = make(name, [{"params": matrices(), typo: 1, "layer": "encoder"}])
        assert len(caught) == 1
        assert [optimizer.param_groups[0][k] for k in (typo, "layer")] == [1, "encoder"]
        run(optimizer, range(2))

    return check


def conflict(options, match):
    def check(name):
        with pytest.raises(RuntimeError, match=match):
            make(name, matrices(), **options)

    return check


def flags_as_torch_takes_them(name):
    """0 and 1, and NumPy's bools."""
    for yes in (1, numpy.True_, numpy.array(True)):
        optimizer, plain = (make(name, matrices(), maximize=m) for m in (yes, True))
        assert optimizer.param_groups[0]["maximize"] is True
        goes_on(optimizer, plain)
    assert make(name, matrices(), maximize=0, foreach=0).param_groups[0]["foreach"] is False


def triton_is_not_here(name):
    with mock.patch.dict(os.environ):
        for variable in ("TRITON_INTERPRET", "EMANEST_BACKEND"):
            os.environ.pop(variable, None)
        match = "backend='triton' serves 'cpu' .* where TRITON_INTERPRET=1; backend=None chooses"
        with pytest.raises(RuntimeError, match=match):
            make(name, matrices(), backend="triton")
        optimizer, twin = ready(name), ready(name)
        with refused(optimizer, RuntimeError, match):
            optimizer.add_param_group({"params": matrices(), "backend": "triton"})
        goes_on(optimizer, twin)


def with_option(option):
    """The optimizers that have an option; of a Wrap those of the inner one are its own affair."""
    return tuple(name for name in OURS if option in options_of(name))


ROWS = [
    *(
        Row(n, f"lr={value!r}", bad_option("lr", value, error, match), OURS)
        for n, value, error, match in LEARNING_RATES
    ),
    Row(28, "numbers of any kind", numbers_of_any_kind),
    *(
        Row(29, f"lr={value!r} later", not_stepped(junk(value), error, in_group(match)))
        for _, value, error, match in LEARNING_RATES
    ),
    Row(29, "lr removed later", not_stepped(no_rate, TypeError, "lr of group 1 must .*got None")),
    *(
        Row(n, f"{option}={value!r}", bad_option(option, value, *row), with_option(option))
        for n, option, value, *row in OPTIONS
    ),
    *(Row(30, f"lookahead={value!r}", bad_lookahead(value, *row)) for value, *row in LOOKAHEADS),
    *(
        Row(30, f"{key}={value!r}", bad_setting(f"lookahead_{key}", value, *row))
        for key, value, *row in SETTINGS
    ),
    *(
        Row(30, f"{key} later ({i})", not_stepped(entry(key, value), *row))
        for i, (key, value, *row) in enumerate(CHANGED)
    ),
    Row(
        30,
        "nesterov without momentum",
        bad_option("nesterov", True, ValueError, "Nesterov momentum requires a momentum and zero"),
        ("SGD",),
    ),
    Row(30, "two momenta", momentum_of_its_own, ("AdamW", "SGD", "Wrap")),
    *(
        Row(32, key, unknown_argument(key, near), on)
        for key, near, on in [
            ("lookahed", "lookahead", EVERY),
            ("look_ahead", "lookahead", EVERY),
            ("weigth_decay", "weight_decay", OURS),
            ("momentun", "momentum", ("SGD", *MATRICES)),
            ("beta", "betas", ("AdamW",)),
            ("optimiser", "optimizer", ("Wrap",)),
            ("whatever", None, EVERY),
        ]
    ),
    Row(32, "in a subclass", subclass_argument, OURS),
    *(
        Row(33, typo, near_miss_in_a_group(typo, near))
        for typo, near in [
            ("lookahed", "lookahead"),
            ("lookahead_stepsiz", "lookahead_stepsize"),
        ]
    ),
    Row(33, "weight_decai", near_miss_in_a_group("weight_decai", "weight_decay"), OURS),
    Row(33, "bets", near_miss_in_a_group("bets", "betas"), ("AdamW",)),
    Row(
        34,
        "fused and foreach",
        conflict({"fused": True, "foreach": True}, "`fused` and `foreach` cannot be `True` tog"),
    ),
    Row(
        34,
        "fused and differentiable",
        conflict({"fused": True, "differentiable": True}, "`fused` does not support `differenti"),
    ),
    Row(35, "flags as torch takes them", flags_as_torch_takes_them, OURS),
    Row(36, "backend='triton'", triton_is_not_here, OURS),
    Row(
        36,
        "nonfinite misspelt later",
        not_stepped(
            entry("nonfinite", "Skip"), ValueError, "nonfinite of group 1 must be one of .*'Skip'"
        ),
        OURS,
    ),
]
