# SPDX-License-Identifier: MIT
"""What a comparison of optimizers found: its runs, and the table that they make."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from .statistics import (
    Curve,
    Difference,
    Earlier,
    Mean,
    mean,
    paired,
    paired_steps_earlier,
    plus_minus,
    seeds,
)


class Run(NamedTuple):
    """One run of one optimizer.

    Args:
        optimizer: its name.
        seed: of first weights and batches.
        steps: after how many steps the run was evaluated, rising.
        values: what was measured there; of a run that diverged, NaN at its last step.
        diverged: the step, counted from 1, whose loss was not finite, or after which an evaluation
            was not; None for a run that went to its end.
    """

    optimizer: str
    seed: int
    steps: tuple[int, ...]
    values: tuple[float, ...]
    diverged: int | None = None

    @property
    def final(self) -> float:
        """The last value; NaN of a run that diverged."""
        return self.values[-1]


@dataclass(frozen=True)
class Comparison:
    """Runs of several optimizers over the same seeds, and what they say; ``compare`` makes one.

    Printed, it is a Markdown table with a line about it; notebooks show the table. A value that is
    not finite is never averaged away: means and differences that it enters are NaN, and the words
    beside them say how many runs diverged.

    Args:
        runs: all runs.
        baseline: the name of the optimizer that the others are compared with.
        measure: what values are, in a few words; the heading of their column.
        higher_is_better: values are accuracies, not losses.
    """

    runs: tuple[Run, ...]
    baseline: str
    measure: str
    higher_is_better: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the optimizers, in the order of their runs."""
        return list(dict.fromkeys(run.optimizer for run in self.runs))

    def mean(self, name: str) -> Mean:
        """The mean of an optimizer's final values over the seeds, and its standard error.

        Raises:
            ValueError: no optimizer has this name (of all methods that take one).
        """
        return mean(self._finals(name).values())

    def difference(self, name: str, other: str | None = None) -> Difference:
        """The mean difference of final values, ``name`` minus ``other``, paired by seed.

        Args:
            name: of an optimizer.
            other: of another; the baseline by default.

        Returns:
            A ``Difference``; its ``verdict`` is ``"better"`` or ``"worse"`` only beyond 2 standard
            errors over at least 5 seeds.
        """
        finals = self._finals(name), self._finals(self._other(other))
        return paired(*finals, higher_is_better=self.higher_is_better)

    def steps_earlier(self, name: str, other: str | None = None) -> Earlier:
        """By how many steps ``name`` reached for good the values that ``other`` ends with.

        Args:
            name: of an optimizer.
            other: of another; the baseline by default.

        Returns:
            An ``Earlier``: mean and error over the seeds, NaN if it was not reached for all.
        """
        curves = self._curves(name), self._curves(self._other(other))
        return paired_steps_earlier(*curves, higher_is_better=self.higher_is_better)

    def best(self) -> str:
        """The name of the optimizer with the best mean: a choice for a sweep, not a claim.

        An optimizer with a run that diverged is passed over.

        Raises:
            ValueError: every optimizer has one.
        """
        means = {name: self.mean(name).mean for name in self.names}
        finite = [name for name in means if math.isfinite(means[name])]
        if not finite:
            raise ValueError("no optimizer is best: each has a run that diverged; lower their lr")
        return (max if self.higher_is_better else min)(finite, key=means.__getitem__)

    def table(self) -> str:
        """The comparison as a Markdown table.

        Columns: the optimizer; the mean of its final values ± its standard error; its paired
        difference from the baseline ± the standard error; how many steps before the end it had
        reached the baseline's final value; the verdict in words.
        """
        said = "higher" if self.higher_is_better else "lower"
        head = (
            "optimizer",
            f"{self.measure} ({said} is better)",
            f"difference from {self.baseline}",
            "same value, steps earlier",
            "verdict",
        )
        rows = [head, *map(self._cells, self.names)]
        # a bar in a name would end its cell
        rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        cells = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)

    def record(self) -> dict[str, Any]:
        """Everything as JSON holds it: runs and the numbers of the table; null for NaN."""
        summary = []
        for name in self.names:
            row = {"optimizer": name, **_fields(self.mean(name))}
            if name != self.baseline:
                found = self.difference(name)
                row["difference"] = {**_fields(found), "verdict": found.verdict}
                row["steps_earlier"] = _fields(self.steps_earlier(name))
            summary.append(row)
        return {
            "baseline": self.baseline,
            "measure": self.measure,
            "higher_is_better": self.higher_is_better,
            "summary": summary,
            "runs": [_fields(run) for run in self.runs],
        }

    def __str__(self) -> str:
        count = len({run.seed for run in self.runs})
        last = max(run.steps[-1] for run in self.runs)
        about = f"{seeds(count)}, {last} steps; means ± standard errors; differences by seed."
        return f"{self.table()}\n\n{about}"

    def _repr_markdown_(self) -> str:
        return str(self)

    def _cells(self, name: str) -> list[str]:
        value = self.mean(name)
        gone = f"diverged in {value.diverged} of {seeds(value.count)}"
        shown = gone if value.diverged else plus_minus(value)
        if name == self.baseline:
            return [name, shown, "", "", "the baseline"]
        found = self.difference(name)
        sooner = "-" if found.verdict == "diverged" else self.steps_earlier(name).words
        return [name, shown, plus_minus(found, sign=True), sooner, found.words]

    def _of(self, name: str) -> list[Run]:
        found = [run for run in self.runs if run.optimizer == name]
        if not found:
            raise ValueError(f"name must be one of {self.names}, got {name!r}")
        return found

    def _other(self, name: str | None) -> str:
        return self.baseline if name is None else name

    def _finals(self, name: str) -> dict[int, float]:
        return {run.seed: run.final for run in self._of(name)}

    def _curves(self, name: str) -> dict[int, Curve]:
        return {run.seed: (run.steps, run.values) for run in self._of(name)}


def _fields(row: NamedTuple) -> dict[str, Any]:
    return {name: _plain(value) for name, value in row._asdict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(map(_plain, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
