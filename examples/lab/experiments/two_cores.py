"""Experiments that two cores do in minutes: a transformer over bytes of source text, LeNet-5."""

from ..settings import merged
from .sweep import Arm, Experiment, Stage

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
BASES = {"AdamW": ADAMW, "Muon": MUON}
PLAIN_ADAMW = {"betas": [0.0, 0.999]}
# Schedule-Free brings the momentum and takes the place of the decay of the lr
MOMENTUM_FREE = {
    "AdamW": {"optimizer": PLAIN_ADAMW},
    "Muon": {"optimizer": {"momentum": 0.0, "nesterov": False, "adamw": PLAIN_ADAMW}},
}
WARMUP, DECAY = 0.05, 0.25  # of the schedule, in shares of all steps


def length(steps, decays=True):
    """Steps and schedule."""
    decay = round(DECAY * steps) if decays else 0
    schedule = {"name": "trapezoid", "warmup": round(WARMUP * steps), "decay": decay}
    return {"steps": steps, "schedule": schedule}


def ema_nesterov(steps, stepsize=0.5, decay=0.98):
    """The paper's stepsize and window; its decay of 0.99 is that of runs of 2,500 steps."""
    window = {"warmup": round(0.3 * steps), "rest": round(0.8 * steps)}
    return {"name": "ema_nesterov", "stepsize": stepsize, "decay": decay, **window}


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


def arm(base, label, lookahead, steps, common=BYTES, at=None):
    """A base with a lookahead, or without one (``label`` None)."""
    free = label == "Schedule-Free"
    settings = merged(common, BASES[base], length(steps, decays=not free), {"lookahead": lookahead})
    if free:
        settings = merged(settings, MOMENTUM_FREE[base])
    if label is None:
        return Arm(base, settings, at={"base": base, "lookahead": "none", **(at or {})})
    at = {"base": base, "lookahead": label, **(at or {})}
    return Arm(f"{base} + {label}", settings, against=base, at=at)


def byte_lm(steps=1000):
    arms = []
    for base in BASES:
        arms.append(arm(base, None, None, steps))
        arms += [arm(base, label, each, steps) for label, each in lookaheads(steps).items()]
    return Experiment(
        name="byte_lm",
        question="Which lookahead lowers the loss beside a tuned learning rate?",
        arms=tuple(arms),
        factors=(0.25, 0.5, 1.0, 2.0),
        stages=(Stage((0,)), Stage((1, 2), around=1), Stage((3, 4), around=0)),
        source="figures 4 and 5 of arXiv:2605.25395, at the size of two cores",
    )


EXPERIMENTS = [byte_lm()]
