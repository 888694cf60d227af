"""What is trained with what: base optimizers, lookahead methods, and a schedule for both."""

import dataclasses
from collections.abc import Callable

import torch

import emanest
from training import Run, lr_factor

# lr of AdamW beside Muon and its relatives, relative to theirs
ADAMW_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class Base:
    """A base optimizer: ``make(model, lr, lookahead, **options)`` and the best lr for it here."""

    make: Callable
    lr: float


@dataclasses.dataclass(frozen=True)
class Method:
    """A lookahead method.

    Attributes:
        make: steps of the run -> the method, or None for the base alone.
        gain: method -> how much faster than its base it moves where gradients are steady. The
            base at lr * gain is the control that tells a lookahead from a larger lr.
        options: arguments that the method asks of a base, by the name of the base.
        decays: False if the method stands in for the decay of the lr.
    """

    make: Callable
    gain: Callable = lambda lookahead: 1.0
    options: dict = dataclasses.field(default_factory=dict)
    decays: bool = True


def adamw(model, lr, lookahead, **options):
    return emanest.AdamW(model.parameters(), lr=lr, lookahead=lookahead, **options)


def sgd(model, lr, lookahead, momentum=0.9):
    return emanest.SGD(model.parameters(), lr=lr, momentum=momentum, lookahead=lookahead)


def of_matrices(cls, share=ADAMW_SHARE):
    """A base for hidden matrices: the rest goes to AdamW, at that share of its lr."""

    def make(model, lr, lookahead, adamw=(), **options):
        # queries, keys and values are three matrices
        rest = {"lr": lr * share, **dict(adamw)}
        groups = emanest.split_params(model, {"qkv": {"split": 3}}, adamw=rest, verbose=False)
        return cls(groups, lr=lr, weight_decay=0.01, lookahead=lookahead, **options)

    return make


def ema_nesterov(steps):
    # the paper's stepsize and window; its decay of 0.99 suits runs of 2,500 steps and more
    warmup = steps // 4
    rest = max(warmup + 1, steps * 4 // 5)
    return emanest.EMANesterov(stepsize=0.5, decay=0.98, warmup=warmup, rest=rest)


# lr: the best on a grid of factors of 2, at the default size and length; sgd diverges at 1.6
BASES = {
    "adamw": Base(adamw, lr=6e-3),
    "sgd": Base(sgd, lr=0.8),
    "muon": Base(of_matrices(emanest.Muon), lr=0.02),
    "normuon": Base(of_matrices(emanest.NorMuon), lr=0.04),
    "aurora": Base(of_matrices(emanest.Aurora), lr=0.02),
    "soap": Base(of_matrices(emanest.SOAP, share=1.0), lr=0.012),
}
# without momentum, which Schedule-Free brings along
PLAIN_ADAMW = {"betas": (0.0, 0.999)}
PLAIN_MUON = {"momentum": 0.0, "nesterov": False, "adamw": PLAIN_ADAMW}
LOOKAHEADS = {
    "none": Method(lambda steps: None),
    "ema-nesterov": Method(ema_nesterov, gain=lambda lookahead: 1 / (1 - lookahead.stepsize)),
    # less than the usual 0.9: the bases here have momentum of their own
    "nag": Method(
        lambda steps: emanest.NAG(momentum=0.5), gain=lambda lookahead: 1 / (1 - lookahead.momentum)
    ),
    # the settings of the papers and, for SNOO, of the modded-nanogpt record
    "lookahead": Method(
        lambda steps: emanest.Lookahead(every=5, alpha=0.5), gain=lambda lookahead: lookahead.alpha
    ),
    "long-horizon": Method(
        lambda steps: emanest.LongHorizon(every=10, stepsize=0.5),
        gain=lambda lookahead: 1 / (1 - lookahead.stepsize),
    ),
    "snoo": Method(
        lambda steps: emanest.SNOO(every=28, lr=0.68, momentum=0.37),
        gain=lambda lookahead: lookahead.lr / (1 - lookahead.momentum),
    ),
    "gpa": Method(lambda steps: emanest.GPA(mu_x=0.9869, mu_y=0.7)),
    "schedule-free": Method(
        lambda steps: emanest.ScheduleFree(momentum=0.9),
        options={
            "adamw": PLAIN_ADAMW,
            "sgd": {"momentum": 0.0},
            "muon": PLAIN_MUON,
            "normuon": PLAIN_MUON,
            "aurora": PLAIN_MUON,
            "soap": {"betas": (0.0, 0.95), "adamw": PLAIN_ADAMW},
        },
        decays=False,
    ),
    "nala": Method(
        lambda steps: emanest.NALA(every=5, lr=1e-3, mu=-0.5),
        gain=lambda lookahead: 1 + lookahead.mu,
    ),
}


def make_run(model, base, method, lr, steps, device):
    """A run of ``steps`` steps of a base optimizer with a lookahead method, by their names."""
    row = LOOKAHEADS[method]
    lookahead = row.make(steps)
    optimizer = BASES[base].make(model, lr, lookahead, **row.options.get(base, {}))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, steps, row.decays)
    )
    name = base if lookahead is None else f"{base} + {method}"
    return Run(name, lr, lookahead, model, optimizer, schedule, device)
