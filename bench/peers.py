# SPDX-License-Identifier: MIT
"""What is timed of the optimizers that work element by element, ours and others."""

import contextlib
import dataclasses
import functools

import torch

import emanest

from . import reference
from .reference import BETAS, DECAY, EPS, LR, MOMENTUM, STEPSIZE, WEIGHT_DECAY
from .variants import Stepper, Traffic, Variant, ours, plain, two_phase

EMA = emanest.EMANesterov(stepsize=STEPSIZE, decay=DECAY)
SYNC = {"every": 5, "alpha": 0.5}
ADAMW = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
SGD = {"lr": LR, "momentum": MOMENTUM}
# Schedule-Free brings the momentum itself
NO_MOMENTUM = {**ADAMW, "betas": (0.0, BETAS[1])}


def with_modes(optimizer, params):
    """Of an optimizer with ``train`` and ``eval``, as schedulefree made them customary."""

    @contextlib.contextmanager
    def at_iterate():
        optimizer.eval()
        yield
        optimizer.train()

    optimizer.train()
    return Stepper(optimizer.step, lambda: params, at_iterate)


def fused(options):
    return {**options, "fused": True}


def emanest_adamw(params, capturable, lookahead=EMA, options=ADAMW, **more):
    options = {**options, **more, "capturable": capturable}
    return ours(emanest.AdamW(params, **options, lookahead=lookahead), params)


def in_groups(make):
    """As ``make``, with a group for each parameter; all lrs are one, which nobody makes use of."""

    def made(params, capturable):
        found = make([{"params": [p]} for p in params], capturable)
        return dataclasses.replace(found, iterate=lambda: params)

    return made


def emanest_sgd(params, capturable):
    return ours(emanest.SGD(params, **SGD, lookahead=EMA, capturable=capturable), params)


def emanest_wrap(params, capturable):
    return ours(emanest.Wrap(reference.Idle(params), EMA), params)


def torch_adamw(params, capturable, **options):
    return plain(torch.optim.AdamW(params, **ADAMW, **options, capturable=capturable), params)


def two_phase_master(params, capturable):
    def build(copies):
        return reference.TwoPhase(torch.optim.AdamW(copies, **fused(ADAMW)), copies)

    return Stepper(reference.Master(params, build).step, lambda: params)


def compiled(formula, buffers):
    def make(params, capturable):
        flat = reference.Flat(params, formula, buffers)
        return Stepper(flat.step, flat.iterate, take_gradients=flat.take_gradients)

    return make


def schedulefree_adamw(params, capturable):
    import schedulefree

    options = {k: ADAMW[k] for k in ("lr", "betas", "eps", "weight_decay")}
    return with_modes(schedulefree.AdamWScheduleFree(params, **options), params)


def pytorch_optimizer_schedule_free(params, capturable):
    import pytorch_optimizer

    return with_modes(pytorch_optimizer.ScheduleFreeAdamW(params, **ADAMW), params)


def pytorch_optimizer_lookahead(params, capturable):
    import pytorch_optimizer

    inner = torch.optim.AdamW(params, **fused(ADAMW))
    peer = pytorch_optimizer.Lookahead(inner, k=SYNC["every"], alpha=SYNC["alpha"])
    return plain(peer, params)


def optimi_adamw(params, capturable):
    import optimi

    return plain(optimi.AdamW(params, **ADAMW, kahan_sum=False), params)


def emanest_method(method, options=ADAMW):
    return lambda params, capturable: emanest_adamw(params, capturable, method, options)


def mode_call(wrapped, mode):
    """``train()`` in train mode, or ``eval()`` in eval mode, after one step."""

    def make(params, capturable):
        if wrapped:
            optimizer = emanest.Wrap(torch.optim.AdamW(params, **fused(ADAMW)), EMA)
        else:
            optimizer = emanest.AdamW(params, **ADAMW, lookahead=EMA)
        optimizer.step()
        getattr(optimizer, mode)()
        return Stepper(getattr(optimizer, mode), lambda: params, optimizer.at_iterate)

    return make


def one_step(params, capturable):
    """What a mode call leaves as it is: the x of one step."""
    reference.TwoPhase(torch.optim.AdamW(params, **ADAMW, foreach=False), params).step()
    return Stepper(lambda: None, lambda: params)


own = functools.partial(Variant, own=True)

# float32 state, whatever the parameters
OURS = "emanest AdamW + EMA-Nesterov"
OURS_GROUPS = "emanest AdamW + EMA-Nesterov, a group each"
OURS_ALONE = "emanest AdamW"
OURS_SGD = "emanest SGD + EMA-Nesterov"
OURS_WRAP = "emanest Wrap around an idle optimizer"
OURS_SCHEDULE_FREE = "emanest AdamW + Schedule-Free"
OURS_LOOKAHEAD = "emanest AdamW + Lookahead"
TRAIN = "train() in train mode"
EVAL = "eval() in eval mode"
WRAP_TRAIN = "train() of a Wrap in train mode"
WRAP_EVAL = "eval() of a Wrap in eval mode"
TWO_PHASE = "two-phase around torch fused AdamW"
TWO_PHASE_FOREACH = "two-phase around torch foreach AdamW"
TWO_PHASE_MASTER = "two-phase on a float32 copy"
TWO_PHASE_16 = "two-phase with state of 16 bits"
TWO_PHASE_SGD = "two-phase around torch fused SGD"
TWO_PHASE_IDLE = "two-phase around an idle optimizer"
COMPILED = "torch.compile of the flat one-pass formula"
FUSED = "torch fused AdamW"
FUSED_GROUPS = "torch fused AdamW, a group each"
FOREACH = "torch foreach AdamW"
COMPILED_ALONE = "torch.compile of flat AdamW"
OPTIMI = "optimi AdamW"
SCHEDULEFREE = "schedulefree AdamWScheduleFree"
PYTORCH_OPTIMIZER_SCHEDULE_FREE = "pytorch_optimizer ScheduleFreeAdamW"
PYTORCH_OPTIMIZER_LOOKAHEAD = "pytorch_optimizer Lookahead"
TorchAdamW = torch.optim.AdamW

VARIANTS = {
    OURS: own("ema adamw", emanest_adamw, Traffic(2, 1, 6, 4)),
    OURS_GROUPS: own("ema adamw", in_groups(emanest_adamw), Traffic(2, 1, 6, 4)),
    OURS_ALONE: own("adamw", emanest_method(None), Traffic(2, 1, 4, 4)),
    OURS_SGD: own("ema sgd", emanest_sgd, Traffic(2, 1, 4, 4)),
    # the snapshot has the parameters' dtype
    OURS_WRAP: own("ema alone", emanest_wrap, Traffic(4, 0, 2, 4)),
    OURS_SCHEDULE_FREE: own(
        "schedule-free", emanest_method(emanest.ScheduleFree(0.9), NO_MOMENTUM)
    ),
    OURS_LOOKAHEAD: own("lookahead", emanest_method(emanest.Lookahead(**SYNC))),
    TRAIN: own("mode call", mode_call(wrapped=False, mode="train")),
    EVAL: own("mode call", mode_call(wrapped=False, mode="eval")),
    WRAP_TRAIN: own("mode call", mode_call(wrapped=True, mode="train")),
    WRAP_EVAL: own("mode call", mode_call(wrapped=True, mode="eval")),
    # 28 bytes of AdamW and 44 of the reference
    TWO_PHASE: Variant("ema adamw", two_phase(TorchAdamW, **fused(ADAMW)), Traffic(6, 1, 11)),
    # as torch has it for parameters of 16 bits: so has the state, and small updates are lost
    TWO_PHASE_16: Variant(
        "ema adamw", two_phase(TorchAdamW, **fused(ADAMW)), Traffic(6, 1, 11), slack=20
    ),
    TWO_PHASE_FOREACH: Variant(
        "ema adamw", two_phase(TorchAdamW, **ADAMW, foreach=True), Traffic(6, 1, 24)
    ),
    TWO_PHASE_MASTER: Variant("ema adamw", two_phase_master, Traffic(1, 1, 20, 4)),
    COMPILED: Variant(
        "ema adamw", compiled(reference.flat_ema_adamw, 3), Traffic(2, 1, 6), flat=True
    ),
    FUSED: Variant("adamw", functools.partial(torch_adamw, fused=True), Traffic(2, 1, 4)),
    FUSED_GROUPS: Variant(
        "adamw", in_groups(functools.partial(torch_adamw, fused=True)), Traffic(2, 1, 4)
    ),
    FOREACH: Variant(
        "adamw",
        lambda params, capturable: torch_adamw(params, capturable, foreach=True),
        Traffic(2, 1, 17),
    ),
    COMPILED_ALONE: Variant(
        "adamw", compiled(reference.flat_adamw, 2), Traffic(2, 1, 4), flat=True
    ),
    OPTIMI: Variant("adamw", optimi_adamw, needs="optimi"),
    TWO_PHASE_SGD: Variant("ema sgd", two_phase(torch.optim.SGD, **fused(SGD)), Traffic(6, 1, 9)),
    TWO_PHASE_IDLE: Variant("ema alone", two_phase(reference.Idle), Traffic(4, 0, 7)),
    SCHEDULEFREE: Variant("schedule-free", schedulefree_adamw, needs="schedulefree", spoils=True),
    PYTORCH_OPTIMIZER_SCHEDULE_FREE: Variant(
        "schedule-free",
        pytorch_optimizer_schedule_free,
        needs="pytorch_optimizer",
        spoils=True,
    ),
    PYTORCH_OPTIMIZER_LOOKAHEAD: Variant(
        "lookahead", pytorch_optimizer_lookahead, needs="pytorch_optimizer"
    ),
}

ORACLES = {
    "ema adamw": two_phase(TorchAdamW, **ADAMW, foreach=False),
    "adamw": lambda params, capturable: torch_adamw(params, capturable, foreach=False),
    "ema sgd": two_phase(torch.optim.SGD, **SGD, foreach=False),
    "ema alone": two_phase(reference.Idle),
    "schedule-free": lambda params, capturable: emanest_adamw(
        params, False, emanest.ScheduleFree(0.9), NO_MOMENTUM, backend="eager"
    ),
    "lookahead": lambda params, capturable: emanest_adamw(
        params, False, emanest.Lookahead(**SYNC), backend="eager"
    ),
    "mode call": one_step,
}
