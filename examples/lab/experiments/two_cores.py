# SPDX-License-Identifier: MIT
"""Experiments that two cores do in minutes, on arms of byte_lm."""

import dataclasses

from ..settings import merged
from .byte_lm import BASES, BYTES, MORE, arm, at_lr, beside, ema_nesterov, lookaheads
from .sweep import Experiment, Stage

# stages of an experiment whose arms have each their own learning rate
FINER = Stage((), around=1, finer=True)
SWEEP = Stage((0,)), Stage((1, 2), around=1), FINER, Stage((3, 4), around=0)
SHORT_SWEEP = Stage((0,)), FINER, Stage((1, 2, 3, 4), around=0)
BY_ONE_SEED = (
    "The learning rate of an arm is the best of seed 0 alone, which is one of the five that are "
    "compared."
)


# by how much a method multiplies the learning rate of its base where gradients are steady
GAINS = {
    "ema_nesterov": lambda stepsize, **_: 1 / (1 - stepsize),
    "nag": lambda momentum: 1 / (1 - momentum),
    "lookahead": lambda alpha, **_: alpha,
    "long_horizon": lambda stepsize, **_: 1 / (1 - stepsize),
    "snoo": lambda lr, momentum, **_: lr / (1 - momentum),
    "nala": lambda mu, every, **_: (1 + mu) * every / (every + 1),
}


def gain(lookahead):
    options = {name: value for name, value in lookahead.items() if name != "name"}
    return GAINS.get(lookahead["name"], lambda **_: 1.0)(**options)


def demo(base="AdamW", label="EMA-Nesterov", *, steps=1000, seeds=3, lr=None, corpus=None):
    """A base with a lookahead; beside it the base at the same lr, and at the lr of their gain.

    Args:
        lr: of the base; None: that of its settings.
        corpus: a folder of text in place of Python's standard library.
    """
    common = BYTES
    if corpus is not None:
        common = merged(BYTES, {"data": {"name": "folder", "path": str(corpus)}})
    lookahead = {**lookaheads(steps), **MORE}[label]
    factor = 1.0 if lr is None else lr / BASES[base]["optimizer"]["lr"]
    alone, ahead = (
        at_lr(each, factor) for each in beside(base, {label: lookahead}, common=common, steps=steps)
    )
    times = gain(lookahead)
    larger = f"{base}, {times:g} times the lr"
    control = dataclasses.replace(at_lr(alone, times), label=larger, against=base)
    return Experiment(
        name="demo",
        question=f"Does {label} lower the loss of {base}, or does a larger learning rate?",
        arms=(alone, ahead) if times == 1 else (alone, control, ahead),
        stages=(Stage(tuple(range(seeds))),),
        size="two cores, three minutes",
    )


BYTE_LM = Experiment(
    name="byte_lm",
    question="Which lookahead lowers the loss beside a tuned learning rate?",
    arms=tuple(each for base in ("AdamW", "Muon") for each in beside(base, lookaheads(1000))),
    factors=(0.25, 0.5, 1.0, 2.0),
    stages=SWEEP,
    source="figures 4 and 5 of arXiv:2605.25395",
)
BYTE_LM_MORE = Experiment(
    name="byte_lm_more",
    question="Does it help other bases, and do other lookaheads help?",
    arms=tuple(
        each
        for base in ("NorMuon", "Aurora", "SOAP")
        for each in beside(base, {"EMA-Nesterov": ema_nesterov(1000)})
    )
    + tuple(arm("AdamW", label, each) for label, each in MORE.items())
    + (arm("AdamW", None, None),),
    factors=(0.25, 0.5, 1.0, 2.0),
    stages=SHORT_SWEEP,
    note=BY_ONE_SEED,
    source="figure 4 of arXiv:2605.25395",
)
LENGTHS = Experiment(
    name="lengths",
    question="Does the gain of EMA-Nesterov grow with the length of a run?",
    arms=tuple(
        each
        for steps in (250, 500, 1000, 2000, 4000)
        for each in beside(
            "AdamW",
            {"EMA-Nesterov": ema_nesterov(steps)},
            **{"steps": steps, "name": f"AdamW, {steps:,} steps", "at": {"steps": steps}},
        )
    ),
    factors=(0.5, 1.0, 2.0),
    stages=SHORT_SWEEP,
    note=BY_ONE_SEED,
    report="axis",
)


def by_batch(name, base):
    """EMA-Nesterov on a base at several sizes of a batch."""
    arms = [
        each
        for batch in (4, 16, 64)
        for each in beside(
            base,
            {"EMA-Nesterov": ema_nesterov(1000)},
            common=merged(BYTES, {"feed": {"batch": batch}}),
            name=f"{base}, batches of {batch}",
            at={"batch": batch},
        )
    ]
    return Experiment(
        name=name,
        question=f"Does the gain of EMA-Nesterov on {base} grow with the size of a batch?",
        arms=tuple(arms),
        factors=(0.5, 1.0, 2.0),
        stages=SHORT_SWEEP,
        note=BY_ONE_SEED,
        report="axis",
        source="figures 7 and 9 of arXiv:2605.25395",
    )


PROBED = merged(BYTES, {"probe": {"every": 4, "stepsizes": [0.25 * k for k in range(-4, 9)]}})
LOSS_ALONG = Experiment(
    name="loss_along",
    question="Does the loss fall along the average of updates, and along the last one?",
    arms=tuple(
        arm(base, "EMA-Nesterov", ema_nesterov(1000), common=PROBED) for base in ("AdamW", "Muon")
    ),
    stages=(Stage((0, 1, 2)),),
    report="along",
    source="figures 2 and 8 of arXiv:2605.25395",
)
DECAYS, STEPSIZES = (0.0, 0.9, 0.98, 0.99), (0.1, 0.3, 0.5, 0.7, 0.9)
DECAY_STEPSIZE = Experiment(
    name="decay_stepsize",
    question="Which decay and stepsize does EMA-Nesterov want?",
    arms=(
        # at the lr that byte_lm found best for it; EMA-Nesterov's was that of the settings
        at_lr(arm("AdamW", None, None), 2**0.5),
        *(
            dataclasses.replace(
                arm(
                    "AdamW",
                    "EMA-Nesterov",
                    ema_nesterov(1000, stepsize, decay),
                    at={"decay": decay, "stepsize": stepsize},
                ),
                label=f"decay {decay:g}, stepsize {stepsize:g}",
            )
            for decay in DECAYS
            for stepsize in STEPSIZES
        ),
    ),
    stages=(Stage((0, 1, 2)),),
    report="map",
    source="figures 6 and 10 of arXiv:2605.25395",
)

EXPERIMENTS = [
    demo(),
    BYTE_LM,
    LENGTHS,
    by_batch("batches", "AdamW"),
    LOSS_ALONG,
    DECAY_STEPSIZE,
    BYTE_LM_MORE,
]
