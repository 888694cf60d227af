# SPDX-License-Identifier: MIT
"""Experiments and stored lines that are made up, for the tests of reports."""

import dataclasses

from examples.lab.experiments.sweep import Arm, Experiment, Stage, run
from examples.lab.settings import key, merged

SETTINGS = {
    "data": {"name": "bytes of tests"},
    "model": {"name": "small"},
    "feed": {"batch": 1},
    "validation": {"count": 1},
    "optimizer": {"name": "adamw", "lr": 1.0},
    "schedule": {"name": "constant"},
    "lookahead": None,
    "steps": 100,
    "evaluations": 4,
}
AHEAD = {"lookahead": {"name": "ema_nesterov"}}
BASE = Arm("Base", SETTINGS, at={"base": "Base", "lookahead": "none"})
ARMS = (
    BASE,
    Arm("Base + EMA", merged(SETTINGS, AHEAD), "Base", {"base": "Base", "lookahead": "EMA"}),
)
SWEEP = Experiment(
    "sweep_of_tests",
    "Does it help?",
    ARMS,
    factors=(0.5, 1.0, 2.0),
    stages=(Stage((0,)), Stage((1, 2, 3, 4), around=0)),
)
# label -> factor of the learning rate -> last losses, of seeds 0, 1, ...; where the lowest lies at
# an end of the factors, one beyond it
LOSSES = {
    "Base": {0.5: [2.1], 1.0: [2.0, 2.02, 2.04, 2.06, 2.08], 2.0: [2.3]},
    "Base + EMA": {0.25: [2.4], 0.5: [1.9, 1.91, 1.95, 1.95, 1.99], 1.0: [1.95], 2.0: [2.2]},
}
WHERE = {
    **{"commit": "abc", "processor": "a chip", "torch": "2.13", "python": "3.11"},
    "data": "digest",
}


def store(experiment, losses, *, changed=None):
    """Lines by key.

    Args:
        losses: as ``LOSSES`` has them; None is a run that diverged.
        changed: function of (arm, seed) that returns entries of its ``where``.
    """
    lines = {}
    for arm in experiment.arms:
        for factor, ends in losses.get(arm.label, {}).items():
            for seed, end in enumerate(ends):
                settings = run(arm, factor, seed)
                where = WHERE | (changed(arm.label, seed) if changed else {})
                line = {"settings": settings, "where": where, "result": result(end, settings)}
                lines[key(settings)] = {"key": key(settings), **line}
    return lines


def result(end, settings):
    """Falls to ``end``, by 0.25 in the last quarter; None: diverges at half of the steps."""
    last = settings["steps"]
    steps = [last * k // 4 for k in range(5)]
    if end is None:
        return {"steps": steps[:3], "loss": [5.0, 9.0, None], "diverged": steps[2]}
    return {"steps": steps, "loss": [5.0, 4.0, 3.0, end + 0.25, end], "diverged": None}


def cells(table):
    """Rows of a table, by what stands first in them."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def with_stages(experiment, *stages, **changes):
    return dataclasses.replace(experiment, stages=stages, **changes)


def along_an_axis(gains):
    """An experiment over lengths of runs, and its lines; gains by steps, of five seeds."""
    arms, losses = [], {}
    for steps, found in gains.items():
        settings = merged(SETTINGS, {"steps": steps})
        name, at = f"Base, {steps}", {"base": "Base", "steps": steps}
        arms.append(Arm(name, settings, at={**at, "lookahead": "none"}))
        at |= {"lookahead": "EMA"}
        arms.append(Arm(f"{name} + EMA", merged(settings, AHEAD), name, at))
        losses[name] = {1.0: [2.0] * len(found)}
        losses[f"{name} + EMA"] = {1.0: [2.0 - gain for gain in found]}
    stages = (Stage(tuple(range(len(found)))),)
    experiment = Experiment("axis", "Does it grow?", tuple(arms), stages=stages, report="axis")
    return experiment, store(experiment, losses)


def probed(falls):
    """An experiment with probes at one step, three seeds, and what was taken along m."""
    settings = merged(SETTINGS, AHEAD, {"probe": {"every": 4, "stepsizes": [-1.0, 0.0, 1.0]}})
    arm = Arm("Base + EMA", settings, "Base", {"base": "Base", "lookahead": "EMA"})
    stages = (Stage((0, 1, 2)),)
    experiment = Experiment("along", "Does it fall?", (arm,), stages=stages, report="along")
    lines = store(experiment, {"Base + EMA": {1.0: [2.0, 2.0, 2.0]}})
    for line in lines.values():
        fall = falls[line["settings"]["seed"]]
        taken = {"average": [2.2, 2.0, 2.0 - fall], "last step": [2.1, 2.0, 2.1]}
        line["result"]["probes"] = [{"step": 100, **taken}]
    return experiment, lines


def mapped(losses):
    """An experiment over decay and stepsize, with losses of each pair."""
    arms, found = [BASE], {"Base": {1.0: [2.0, 2.02, 2.04]}}
    for (decay, stepsize), ends in losses.items():
        look = {"lookahead": {"name": "ema_nesterov", "decay": decay, "stepsize": stepsize}}
        label, at = f"{decay}, {stepsize}", {"decay": decay, "stepsize": stepsize}
        arms.append(Arm(label, merged(SETTINGS, look), "Base", {"base": "Base", **at}))
        found[label] = {1.0: ends}
    stages = (Stage((0, 1, 2)),)
    experiment = Experiment("map", "Which?", tuple(arms), stages=stages, report="map")
    return experiment, store(experiment, found)


PAIRS = {
    (0.9, 0.5): [1.9, 1.9, 1.97],  # -.10 -.12 -.07
    (0.9, 0.7): [2.02, 2.12, 1.98],  # .02 .10 -.06
    (0.99, 0.5): [None, 2.0, 2.0],
    (0.99, 0.7): [2.1, 2.13, 2.13],  # .1 .11 .09
}


def classified():
    """Classifiers of two seeds, the second arm beside a published accuracy."""
    at = {"base": "Base", "published": 0.9}
    arms = BASE, Arm("Base + NALA", merged(SETTINGS, AHEAD), "Base", at)
    stages = (Stage((0, 1)),)
    experiment = Experiment("classes", "Does it?", arms, stages=stages, report="classes")
    lines = store(experiment, {"Base": {1.0: [0.4, 0.42]}, "Base + NALA": {1.0: [0.3, 0.34]}})
    for line in lines.values():
        ahead, seed = line["settings"]["lookahead"] is not None, line["settings"]["seed"]
        line["result"]["accuracy"] = [0.1, 0.5, 0.6, 0.7, 0.8 + 0.05 * ahead + 0.01 * seed]
    return experiment, lines
