# SPDX-License-Identifier: MIT
"""The stored runs of an experiment, by arm, learning rate and seed."""

import dataclasses
import math
from typing import NamedTuple

from ..experiments.sweep import Arm, final, run
from ..settings import key
from .section import counted, listed

NAMED = 8  # arms that are named one by one


class Measure(NamedTuple):
    """Something by which runs are compared.

    Args:
        name: of the curve of a result.
        unit: on an axis.
        scale: what stored values are multiplied by.
        higher_is_better: as in ``paired``.
    """

    name: str
    unit: str
    scale: float = 1.0
    higher_is_better: bool = False

    def last(self, line):
        """The value that a run ends with; NaN where it diverged."""
        if not math.isfinite(final(line)):
            return math.nan
        return self.scale * line["result"][self.name][-1]

    def curve(self, line):
        """Steps, and the values at them."""
        steps, values = line["result"]["steps"], line["result"][self.name]
        values = [math.nan if value is None else self.scale * value for value in values]
        return steps, [*values[:-1], self.last(line)]


LOSS = Measure("loss", "nats")
ACCURACY = Measure("accuracy", "%", 100.0, higher_is_better=True)


@dataclasses.dataclass(frozen=True)
class Runs:
    """The stored runs of an arm.

    Attributes:
        arm: whose they are.
        lr: the best; None before it can be told.
        cells: learning rate -> seed -> line, of all that is stored.
        missing: runs that are due and not stored.
        complete: whether nothing will follow.
    """

    arm: Arm
    lr: float | None
    cells: dict
    missing: int
    complete: bool

    @property
    def best(self):
        """Seed -> line at the best learning rate."""
        return self.cells.get(self.lr, {})

    @property
    def searched(self):
        """Whether there are several learning rates to choose from."""
        return len(self.cells) > 1

    @property
    def at_an_end(self):
        """Whether no learning rate beyond the best one was tried, on one side."""
        return self.searched and self.lr in (min(self.cells), max(self.cells))

    def values(self, measure, lr=None):
        """Seed -> last value, at the best learning rate or at another."""
        lines = self.best if lr is None else self.cells.get(lr, {})
        return {seed: measure.last(line) for seed, line in lines.items()}

    def curves(self, measure):
        return {seed: measure.curve(line) for seed, line in self.best.items()}


def collect(experiment, lines):
    """Label -> ``Runs`` of every arm, given the stored lines by key."""
    return {arm.label: _runs(experiment, arm, lines) for arm in experiment.arms}


def _runs(experiment, arm, lines):
    found = experiment.found(arm, lines)
    wanted = {key(settings): settings for settings in found.runs}
    cells = {}
    for name, settings in sorted(wanted.items(), key=lambda item: _place(item[1])):
        lr, seed = _place(settings)
        cells.setdefault(lr, {})
        if name in lines:
            cells[lr][seed] = lines[name]
    # one alone is known before it is tried
    factor = experiment.factors[0] if len(experiment.factors) == 1 else found.best
    lr = None if factor is None else _place(run(arm, factor, 0))[0]
    missing = sum(name not in lines for name in wanted)
    return Runs(arm, lr, cells, missing, found.complete)


def _place(settings):
    return settings["optimizer"]["lr"], settings["seed"]


def stored(groups):
    """Every line of the arms, once."""
    return {
        line["key"]: line
        for runs in groups.values()
        for cell in runs.cells.values()
        for line in cell.values()
    }


def missing(experiment, groups):
    """Sentences on the runs that are not there yet."""
    open_ = {label: runs for label, runs in groups.items() if not runs.complete}
    if not open_:
        return []
    count = sum(runs.missing for runs in open_.values())
    # what is due next depends on what these find
    more = "at least " if len(experiment.stages) > 1 or len(experiment.factors) > 1 else ""
    verb = "is" if count == 1 else "are"
    whose = "; ".join(open_) if len(open_) <= NAMED else f"{len(open_)} of {len(groups)} arms"
    return [f"Not complete: {more}{counted(count, 'run')} {verb} missing, of {whose}."]


def ends(groups):
    """A sentence on arms whose best learning rate lies at an end of those that were tried."""
    found = [label for label, runs in groups.items() if runs.at_an_end]
    if not found:
        return []
    return [f"The best learning rate is the lowest or highest that was tried: {listed(found)}."]


def rate(lr):
    """A learning rate as text; a half step of a grid is of many digits."""
    return "not found yet" if lr is None else f"{lr:.3g}"
