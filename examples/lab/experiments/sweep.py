# SPDX-License-Identifier: MIT
"""What an experiment is: arms that are compared, learning rates that are tried, seeds."""

import dataclasses
import math
import statistics

from ..settings import key, merged

EXTENSIONS = 2  # how often a grid of learning rates grows at each of its ends


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Attributes:
        label: in tables and figures.
        settings: of its runs, but for the seed and the factor of the learning rate.
        against: label of the arm that it is compared with; None: with nothing.
        at: where it lies on the axes of a figure, by their names.
    """

    label: str
    settings: dict
    against: str | None = None
    at: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Seeds at the best learning rate and at ``around`` neighbours each way; None: at all.

    Attributes:
        finer: whether the neighbours are new ones, half way to the old.
    """

    seeds: tuple[int, ...]
    around: int | None = None
    finer: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
    """How far an arm is.

    Attributes:
        runs: settings of all its runs that can be told so far.
        best: the factor with the lowest mean loss; None before the first stage is done.
        factors: those that were tried at the last stage that is done.
        seeds: of that stage and those before it.
        complete: whether all stages are done.
    """

    runs: list
    best: float | None
    factors: tuple
    seeds: tuple
    complete: bool


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Arms, each at several learning rates and seeds.

    Attributes:
        name: of its file and on the command line.
        question: that it answers.
        arms: that are compared.
        factors: of the learning rate, in order; one apart, they are neighbours.
        stages: each looks where those before it found the lowest loss. While that lies at an end
            of the factors of the first stage, these grow.
        report: name of a row of report.REPORTS.
        source: what it repeats.
        size: what it needs.
        goal: a loss that is to be reached, by the rule of the NanoGPT optimizer benchmark.
        note: what a reader should know beside it, such as what differs from its source.
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    factors: tuple[float, ...] = (1.0,)
    stages: tuple[Stage, ...] = (Stage((0,)),)
    report: str = "sweep"
    source: str = ""
    size: str = "two cores"
    goal: float | None = None
    note: str = ""

    def runs(self, store):
        """Settings of all runs that can be told from those that are stored, once each."""
        lines = store.lines()
        found = [s for arm in self.arms for s in self.found(arm, lines).runs]
        return list({key(settings): settings for settings in found}.values())

    def found(self, arm, lines):
        """How far an arm is, given the stored lines by key."""
        runs, seeds, factors, best = [], (), self.factors, None
        done = (None, (), ())
        for stage in self.stages:
            seeds += stage.seeds
            if stage.finer:
                factors = finer(factors, best)
            while True:
                near = factors
                if best is not None and stage.around is not None:
                    at = factors.index(best)
                    near = factors[max(0, at - stage.around) : at + stage.around + 1]
                cells = {f: [run(arm, f, seed) for seed in seeds] for f in near}
                runs += [settings for cell in cells.values() for settings in cell]
                losses = {f: [final(lines.get(key(s))) for s in cells[f]] for f in cells}
                if any(loss is None for cell in losses.values() for loss in cell):
                    return Found(runs, *done, complete=False)
                lowest = min(losses, key=lambda f: statistics.fmean(losses[f]))
                grown = self._grown(factors, lowest) if best is None else factors
                if grown == factors:
                    break
                factors = grown
            best = lowest
            done = best, tuple(near), seeds
        return Found(runs, *done, complete=True)

    def _grown(self, factors, lowest):
        """The factors with one more beyond the end at which the lowest loss lies."""
        if len(factors) < 2:
            return factors
        ratio = factors[1] / factors[0]
        begin, end = factors.index(self.factors[0]), factors.index(self.factors[-1])
        if lowest == factors[0] and begin < EXTENSIONS:
            return (factors[0] / ratio, *factors)
        if lowest == factors[-1] and len(factors) - 1 - end < EXTENSIONS:
            return (*factors, factors[-1] * ratio)
        return factors


def finer(factors, best):
    """The factors and, half way from the best to its neighbours, new ones."""
    at = factors.index(best)
    new = (math.sqrt(best * f) for f in factors[max(0, at - 1) : at + 2] if f != best)
    return tuple(sorted((*factors, *new)))


def run(arm, factor, seed):
    """Settings of a run of an arm."""
    return {**with_lr(arm.settings, factor), "seed": seed}


def with_lr(settings, factor):
    """The settings with every learning rate of the optimizer multiplied."""

    def scaled(options):
        changed = {
            name: scaled(value) if isinstance(value, dict) else value
            for name, value in options.items()
        }
        if "lr" in changed:
            changed["lr"] = float(f"{changed['lr'] * factor:.6g}")
        return changed

    return merged(settings, {"optimizer": scaled(settings["optimizer"])})


def final(line):
    """The loss that a run ends with: infinite where it diverged; None without a line."""
    if line is None:
        return None
    result = line["result"]
    loss = result["loss"][-1]
    return math.inf if loss is None or result["diverged"] is not None else loss
