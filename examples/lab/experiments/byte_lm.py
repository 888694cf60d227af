# SPDX-License-Identifier: MIT
"""Arms that train a transformer over bytes of source text: what two cores do in seconds a run."""

import dataclasses

from ..settings import merged
from .sweep import Arm, with_lr

BYTES = {
    "data": {"name": "python"},
    "model": {"name": "bytes", "layers": 2, "width": 64, "context": 48},
    "feed": {"batch": 16, "context": 48},
    "validation": {"count": 8, "batch": 64, "context": 48},
    "evaluations": 20,
}
# lr: the best of a first sweep; what is no hidden matrix gets 0.3 of Muon's
ADAMW = {"optimizer": {"name": "adamw", "lr": 6e-3}}
MUON = {"optimizer": {"name": "muon", "lr": 0.02, "weight_decay": 0.01, "adamw": {"lr": 6e-3}}}
BASES = {
    "AdamW": ADAMW,
    "Muon": MUON,
    "NorMuon": merged(MUON, {"optimizer": {**MUON["optimizer"], "name": "normuon"}}),
    "Aurora": merged(MUON, {"optimizer": {**MUON["optimizer"], "name": "aurora"}}),
    "SOAP": {
        "optimizer": {"name": "soap", "lr": 0.012, "weight_decay": 0.01, "adamw": {"lr": 0.012}}
    },
}
PLAIN_ADAMW = {"betas": [0.0, 0.999]}
# Schedule-Free brings the momentum and takes the place of the decay of the lr
MOMENTUM_FREE = {
    "AdamW": {"optimizer": PLAIN_ADAMW},
    "Muon": {"optimizer": {"momentum": 0.0, "nesterov": False, "adamw": PLAIN_ADAMW}},
}
WARMUP, DECAY = 0.05, 0.25  # of the schedule, in shares of all steps
START, REST = 0.3, 0.8  # of EMA-Nesterov's window, as the paper recommends
MEMORY = 0.05  # over how many steps EMA-Nesterov averages, likewise; the paper's is 0.04


def length(steps, decays=True):
    """Steps and schedule."""
    decay = round(DECAY * steps) if decays else 0
    schedule = {"name": "trapezoid", "warmup": round(WARMUP * steps), "decay": decay}
    return {"steps": steps, "schedule": schedule}


def ema_nesterov(steps, stepsize=0.5, decay=None):
    """The paper's stepsize and window, and a memory that grows with the run as its own does."""
    decay = 1 - 1 / (MEMORY * steps) if decay is None else decay
    window = {"warmup": round(START * steps), "rest": round(REST * steps)}
    return {"name": "ema_nesterov", "stepsize": stepsize, "decay": round(decay, 6), **window}


def lookaheads(steps):
    """Settings by label.

    NAG's momentum is below the usual 0.9: the bases have their own. SNOO syncs every 25 steps, not
    the 28 of the NanoGPT record: it divides the number of steps, and x is that of the last sync.
    """
    return {
        "EMA-Nesterov": ema_nesterov(steps),
        "NAG": {"name": "nag", "momentum": 0.5},
        "Lookahead": {"name": "lookahead", "every": 5, "alpha": 0.5},
        "SNOO": {"name": "snoo", "every": 25, "lr": 0.68, "momentum": 0.37},
        "Schedule-Free": {"name": "schedule_free", "momentum": 0.9},
    }


# published settings of those that come after
MORE = {
    "GPA": {"name": "gpa", "mu_x": 0.9869, "mu_y": 0.7},
    "LongHorizon": {"name": "long_horizon", "every": 10, "stepsize": 0.5},
    "NALA": {"name": "nala", "every": 5, "lr": 1e-3, "mu": -0.5},
}


def arm(base, label, lookahead, *, common=BYTES, steps=1000, name=None, at=None):
    """A base with a lookahead, or without one (``label`` None).

    Args:
        name: of the base, beside what else sets the arm apart; by default that of the base.
    """
    free, name = label == "Schedule-Free", name or base
    schedule = length(steps, decays=not free)
    settings = merged(common, BASES[base], schedule, {"lookahead": lookahead})
    if free:
        settings = merged(settings, MOMENTUM_FREE[base])
    at = {"base": base, "lookahead": label or "none", **(at or {})}
    if label is None:
        return Arm(name, settings, at=at)
    return Arm(f"{name} + {label}", settings, against=name, at=at)


def beside(base, chosen, **options):
    """The base alone, and with each of the chosen lookaheads."""
    return [arm(base, None, None, **options)] + [
        arm(base, label, lookahead, **options) for label, lookahead in chosen.items()
    ]


def at_lr(arm, factor):
    return dataclasses.replace(arm, settings=with_lr(arm.settings, factor))
