# SPDX-License-Identifier: MIT
"""Every method, fused and wrapped, against its textbook form in float64: 1e-12 of scale."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import emanest
import helpers
import textbook_bases
from emanest import (
    GPA,
    NAG,
    NALA,
    SNOO,
    EMANesterov,
    LongHorizon,
    Lookahead,
    ScheduleFree,
    Wrap,
    rules,
)
from emanest.methods import method as methods

STEPS = 210
TOLERANCE = 1e-12

METHODS = {
    "none": None,
    "ema": EMANesterov(0.5, 0.95, warmup=20, rest=80),
    "ema copy": EMANesterov(0.7, 0.9, rest=80, init="copy"),
    "ema debias": EMANesterov(0.5, 0.95, warmup=20, rest=80, init="debias"),
    "ema negative": EMANesterov(-3.0, 0.8, warmup=20),
    "ema flat": EMANesterov(0.5, 0.9, warmup=20, rest=80, follow_lr=False),
    "ema callable": EMANesterov(lambda t: 0.6 * math.cos(t / 9), 0.9, warmup=20, rest=80),
    "nag": NAG(0.8),
    "lookahead": Lookahead(5, 0.5),
    "long horizon": LongHorizon(5, 0.5),
    "snoo": SNOO(5, 0.7, 0.5),
    "gpa": GPA(),
    "schedule free": ScheduleFree(),
    "nala": NALA(5, 1e-2, -0.5),
}

# settings of every second group
OVERRIDES = {
    EMANesterov: {"stepsize": -0.4, "decay": 0.9},
    NAG: {"momentum": -0.5},
    Lookahead: {"every": 3, "alpha": 1.3},
    LongHorizon: {"every": 3, "stepsize": -0.5},
    SNOO: {"every": 1, "lr": 1.2, "momentum": 0.8},
    GPA: {"mu_x": 0.8, "mu_y": 0.3},
    ScheduleFree: {"momentum": 0.7, "r": 1.0, "weight_lr_power": 0.5},
    NALA: {"every": 1, "lr": 0.1, "mu": 0.3},
}

# one group each: options of the base, learning rate at step t
GROUPS = {
    "AdamW": [
        ({"betas": (0.9, 0.99), "weight_decay": 0.1}, lambda t: 0.05 * (1 - t / STEPS)),
        (
            {"betas": (0.8, 0.95), "weight_decay": 0.3, "amsgrad": True, "maximize": True},
            lambda t: 0.04 * min(t / 30, 1 - t / STEPS),
        ),
    ],
    "SGD": [
        ({"weight_decay": 0.2}, lambda t: 0.05 * 0.5 ** (t // 50)),
        (
            {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
            lambda t: 0.04 * min(t / 30, 1 - t / STEPS),
        ),
        (
            {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "maximize": True},
            lambda t: 0.02 * (1 - t / STEPS),
        ),
    ],
}


class KeepsDecay:
    """A base whose decay stays at y, whatever a method asks: an optimizer that is wrapped."""

    weight_decay = 0.0  # as far as a method can tell

    def __init__(self, base):
        self.base, self.maximize = base, base.maximize

    def update(self, i, p, g, lr, weight_decay=None):
        return self.base.update(i, p, g, lr)


def twin(method, params, base, wrapped=False):
    """The textbook form of one group."""
    return helpers.published(method, params, KeepsDecay(base) if wrapped else base)


def legal(method, options):
    """Schedule-Free replaces the momentum of its base."""
    if not isinstance(method, ScheduleFree):
        return options
    without = {"betas": (0.0, 0.99), "momentum": 0.0, "dampening": 0.0, "nesterov": False}
    return {k: without.get(k, v) for k, v in options.items()}


def parameters(shapes):
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


def grouped(name, method, wrapped=False):
    """Groups for an optimizer of that name, and for each its textbook form and schedule."""
    groups, twins, schedules = [], [], []
    for i, (options, schedule) in enumerate(GROUPS[name]):
        options, own, entries = legal(method, options), method, {}
        if method is not None and i % 2:
            own = replace(method, **OVERRIDES[type(method)])
            entries = {f"lookahead_{k}": v for k, v in OVERRIDES[type(method)].items()}
        params = parameters([(3, 2), ()])
        groups.append({"params": params, **options, **entries})
        twins.append(twin(own, params, getattr(textbook_bases, name)(**options), wrapped))
        schedules.append(schedule)
    return groups, twins, schedules


def fused(name):
    def make(method):
        groups, *others = grouped(name, method)
        return getattr(emanest, name)(groups, lookahead=method), *others

    return make


def wrap(method):
    """One wrapper around torch's AdamW and torch's SGD, the last two groups of each."""
    inner, twins, schedules = [], [], []
    for name in GROUPS:
        groups, *others = (rows[-2:] for rows in grouped(name, method, wrapped=True))
        inner.append(getattr(torch.optim, name)(groups))
        twins += others[0]
        schedules += others[1]
    return Wrap(inner, method), twins, schedules


MAKERS = {"AdamW": fused("AdamW"), "SGD": fused("SGD"), "wrap": wrap}

each_method = pytest.mark.parametrize("method", METHODS)


def hold(optimizer, twins, point, t):
    """Hold the parameters to the textbook's x or y."""
    for i, (group, textbook) in enumerate(zip(optimizer.param_groups, twins, strict=True)):
        expected = torch.cat([p.flatten() for p in getattr(textbook, point)])
        actual = torch.cat([p.detach().flatten() for p in group["params"]])
        error = (actual - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        assert error <= TOLERANCE, f"{point} of group {i} is off by {error:.1e} after step {t}"


def compare(optimizer, twins, schedules, missing=lambda: False, steps=STEPS, every=7):
    """Run an optimizer beside its textbook forms; x is compared ``every`` so many steps."""
    for t in range(steps):
        taken = []
        for group, textbook, lr in zip(optimizer.param_groups, twins, schedules, strict=True):
            group["lr"] = lr(t)
            sign = -1 if group["maximize"] else 1
            grads = [None if missing() else sign * g for g in helpers.gradients(textbook.y, t)]
            for p, g in zip(group["params"], grads, strict=True):
                p.grad = None if g is None else g.clone()
            taken.append((textbook, grads, group["lr"]))
        optimizer.step()
        # a step without any gradient does not happen
        if any(g is not None for _, grads, _ in taken for g in grads):
            for textbook, grads, lr in taken:
                textbook.step(grads, lr)
        hold(optimizer, twins, "y", t)
        if t % every == every - 1:
            before = [helpers.bits(p) for p in helpers.params_of(optimizer)]
            with optimizer.at_iterate():
                hold(optimizer, twins, "x", t)
            assert [helpers.bits(p) for p in helpers.params_of(optimizer)] == before


@each_method
@pytest.mark.parametrize("make", MAKERS)
def test_every_method_is_its_textbook_form(method, make):
    """Several groups, each with its own schedule, decay and settings; ALGORITHMS 6.1."""
    compare(*MAKERS[make](METHODS[method]))


@pytest.mark.parametrize("wrapped", [False, True])
def test_every_group_may_have_a_method_of_its_own(wrapped):
    options = {"betas": (0.0, 0.99), "weight_decay": 0.1}
    groups = [{"params": parameters([(3,)]), "lookahead": method} for method in METHODS.values()]
    twins = [
        twin(method, group["params"], textbook_bases.AdamW(**options), wrapped)
        for method, group in zip(METHODS.values(), groups, strict=True)
    ]
    if wrapped:
        optimizer = Wrap(torch.optim.AdamW(groups, **options), NAG(0.1))
    else:
        optimizer = emanest.AdamW(groups, **options, lookahead=NAG(0.1))
    schedules = [schedule for _, schedule in (*GROUPS["AdamW"], *GROUPS["SGD"])] * 3
    compare(optimizer, twins, schedules[: len(twins)])


# ---- missing gradients --------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("make", ["SGD", "wrap"])
def test_gradients_may_be_missing_at_random(method, make):
    generator = torch.Generator().manual_seed(2)
    compare(*MAKERS[make](METHODS[method]), lambda: torch.rand((), generator=generator) < 0.3, 100)


SHORT = {
    "ema": EMANesterov(0.5, 0.9, warmup=2, rest=5),
    "ema copy": EMANesterov(0.5, 0.9, rest=5, init="copy"),
    "ema debias": EMANesterov(-0.5, 0.9, warmup=2, rest=5, init="debias"),
    "nag": NAG(0.8),
    "lookahead": Lookahead(3, 0.5),
    "long horizon": LongHorizon(3, 0.5),
    "snoo": SNOO(3, 0.7, 0.5),
    "gpa": GPA(0.9, 0.7),
    "schedule free": ScheduleFree(),
    "nala": NALA(2, 0.1, -0.5),
}


each_short_method = pytest.mark.parametrize("method", SHORT)
each_kind = pytest.mark.parametrize("wrapped", [False, True])


def adamw(method, params, wrapped, groups=1):
    """An optimizer of one or several equal groups, with its textbook forms and schedules."""
    options = {"betas": (0.0 if isinstance(method, ScheduleFree) else 0.9, 0.99)}
    count = len(params) // groups
    params = [params[i * count : (i + 1) * count] for i in range(groups)]
    twins = [twin(method, each, textbook_bases.AdamW(**options), wrapped) for each in params]
    params = [{"params": each} for each in params]
    if wrapped:
        optimizer = Wrap(torch.optim.AdamW(params, **options), method)
    else:
        optimizer = emanest.AdamW(params, **options, lookahead=method)
    return optimizer, twins, [lambda t: 0.05 * (1 - t / 20)] * groups


@each_short_method
@each_kind
def test_gradients_may_be_missing_at_any_moments(method, wrapped):
    """Every subset of 7 steps, a parameter each.

    Among them: the first step, both edges of the window, a sync, the step that follows one,
    NALA's raw step, everything.
    """
    steps = 7
    made = adamw(SHORT[method], parameters([()] * 2**steps), wrapped)
    moments = iter(bool(i >> t & 1) for t in range(steps) for i in range(2**steps))
    compare(*made, lambda: next(moments), steps, every=1)


@each_short_method
@each_kind
@pytest.mark.parametrize("every", [1, 99])
def test_parameters_may_be_cut_from_one_tensor(method, wrapped, every):
    """They share a version counter: a write to one of them looks like a write to all."""
    params = [nn.Parameter(p) for p in torch.randn(8, 3, dtype=torch.float64).unbind()]
    generator = torch.Generator().manual_seed(3)
    made = adamw(SHORT[method], params, wrapped, groups=2)
    compare(*made, lambda: torch.rand((), generator=generator) < 0.3, 12, every)


# ---- nothing is left out ------------------------------------------------------------------------


def plans_of(method):
    """What a method does over some steps."""
    ahead, memory = 0.0, dict(method.memory)
    for t in range(20):
        memory = method.remember(t, 0.1, 0.0, memory)
        plan = method.plan(methods.StepInfo(t, t, ahead, 0.1, 0.0), memory)
        ahead = plan.ahead
        yield plan


@pytest.mark.parametrize("table", [METHODS, SHORT])
def test_every_method_and_rule_is_here(table):
    used = [method for method in table.values() if method is not None]
    assert {method.name for method in used} == set(methods.METHODS)
    plans = [plan for method in used for plan in plans_of(method)]
    assert {plan.rule for plan in plans} == set(rules.LOOKAHEADS)


def test_every_base_rule_is_here():
    taken = {plan.base[0] for plan in plans_of(METHODS["nala"]) if plan.base}
    for name in GROUPS:
        groups, *_ = grouped(name, None)
        optimizer = getattr(emanest, name)(groups)
        taken |= {optimizer.bases[g["base"]].rule(g) for g in optimizer.param_groups}
    assert taken == set(rules.BASES)
