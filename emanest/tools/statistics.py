# SPDX-License-Identifier: MIT
"""What several runs say together: means, paired differences, how much sooner a loss was reached.

Functions of plain numbers; they know of no files and no training. A value that is not finite is a
run that diverged: it is counted and named, and never left out of a mean.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

# a difference is called one from so many seeds on, and beyond so many standard errors
SEEDS, ERRORS = 5, 2

# steps and the values at them, of one run
Curve: TypeAlias = tuple[Sequence[float], Sequence[float]]


class Mean(NamedTuple):
    """The mean of several values, and how well they determine it.

    Args:
        mean: NaN if a value is not finite.
        error: the standard error, of the sample (n - 1); NaN for a single value, or without a mean.
        count: how many values, those that are not finite among them.
        diverged: how many are not finite.
    """

    mean: float
    error: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  (tuples have one)
    diverged: int = 0


class Difference(NamedTuple):
    """The mean of differences, value minus the other's, over seeds that both have; see ``paired``.

    Args:
        mean, error: as in ``Mean``.
        count: seeds that both have.
        diverged, other_diverged: of these, in how many the one or the other is not finite.
        higher_is_better: of accuracies; otherwise values are losses.
    """

    mean: float
    error: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  (tuples have one)
    diverged: int = 0
    other_diverged: int = 0
    higher_is_better: bool = False

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"``, ``"no difference seen"`` or ``"diverged"`` (either of both).

        Better and worse are said of at least 5 seeds, beyond 2 standard errors.
        """
        if self.diverged or self.other_diverged:
            return "diverged"
        if self.count < SEEDS or not abs(self.mean) > ERRORS * self.error:
            return "no difference seen"
        return "better" if (self.mean > 0) == self.higher_is_better else "worse"

    @property
    def words(self) -> str:
        """The verdict and, where it is no difference, why: too few seeds, or too few errors."""
        gone = (("", self.diverged), ("the other ", self.other_diverged))
        if said := [f"{who}diverged in {n} of {seeds(self.count)}" for who, n in gone if n]:
            return " and ".join(said)
        if self.verdict != "no difference seen":
            return self.verdict
        few = f"{seeds(self.count)}, {SEEDS} are needed"
        return f"{self.verdict}: {few if self.count < SEEDS else f'within {ERRORS} errors'}"


class Earlier(NamedTuple):
    """By how many steps runs reached the others' last values before these did.

    Args:
        mean, error: as in ``Mean``, in steps; NaN unless the value was reached for every seed.
        count: seeds that both have.
        reached: for how many of them it was reached.
    """

    mean: float
    error: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  (tuples have one)
    reached: int

    @property
    def words(self) -> str:
        """The mean and its error, or for how many seeds the value was never reached."""
        if self.reached == self.count:
            return plus_minus(self)
        if not self.reached:
            return "never"
        return f"never for {self.count - self.reached} of {seeds(self.count)}"


def mean(values: Iterable[float]) -> Mean:
    """The mean of values and its standard error.

    Raises:
        ValueError: there are none.
    """
    values = list(map(float, values))
    if not values:
        raise ValueError("values is empty: a mean needs at least one")
    gone = sum(not math.isfinite(value) for value in values)
    if gone:
        return Mean(math.nan, math.nan, len(values), gone)
    count = len(values)
    middle = math.fsum(values) / count
    spread = math.hypot(*(value - middle for value in values))
    error = spread / math.sqrt(count * (count - 1)) if count > 1 else math.nan
    return Mean(middle, error, count)


def paired(
    values: Mapping[Any, float],
    others: Mapping[Any, float],
    *,
    higher_is_better: bool = False,
) -> Difference:
    """The differences ``values[seed] - others[seed]`` over the seeds that both have.

    Runs of one seed share first weights and batches, whose chance the difference takes out.

    Args:
        values, others: seed -> the value of a run; one that is not finite is a run that diverged.
        higher_is_better: the values are accuracies, not losses.

    Returns:
        A ``Difference``; its ``verdict`` says what follows. Without a common seed its mean is NaN.
    """
    common = [seed for seed in values if seed in others]
    gone, others_gone = (
        sum(not math.isfinite(each[seed]) for seed in common) for each in (values, others)
    )
    found = Mean(math.nan, math.nan, len(common))
    if common and not (gone or others_gone):
        found = mean(values[seed] - others[seed] for seed in common)
    return Difference(*found[:3], gone, others_gone, higher_is_better)


def track3(losses: Iterable[float], target: float = 3.28) -> bool:
    """Whether runs meet the rule of the NanoGPT optimizer benchmark (modded-nanogpt's track 3).

    ``(target - mean) * sqrt(n) >= .004``: n runs whose mean is below the target by what chance
    alone, a standard deviation of .0013 among seeds, would hardly give.

    Args:
        losses: final validation losses of all n runs; with one that is not finite the rule is not
            met.
        target: the loss to be reached.

    Raises:
        ValueError: there are no losses.
    """
    found = mean(losses)
    # losses are decimals: what is .004 in them may be less by their rounding
    return (target - found.mean) * math.sqrt(found.count) >= 0.004 - 1e-12


def steps_earlier(
    steps: Sequence[float],
    values: Sequence[float],
    goal: float,
    *,
    higher_is_better: bool = False,
) -> float | None:
    """How many steps before its end a run had reached a value for good.

    The place is taken on the straight line between two evaluations. Of a curve that goes below the
    goal, above it and below it again, the last crossing counts: noise that dips below early
    flatters nobody.

    Args:
        steps: at which the run was evaluated, rising.
        values: its losses there (accuracies, with ``higher_is_better``).
        goal: the value to be reached: what another run of as many steps ends with, say.
        higher_is_better: values are to rise to the goal, not to fall.

    Returns:
        Steps, at least 0; None if the run does not end at the goal or beyond it, or the goal is not
        finite. A curve that is beyond the goal throughout counts from its first evaluation.

    Raises:
        ValueError: steps do not rise, or are not as many as values, or there are none.
    """
    _check_curve(steps, values)
    if not math.isfinite(goal):
        return None
    # how far above the goal; as for a loss
    sign = -1 if higher_is_better else 1
    left = [sign * (value - goal) if math.isfinite(value) else math.inf for value in values]
    above = [i for i, distance in enumerate(left) if distance > 0]
    if not above:
        return float(steps[-1] - steps[0])
    last = above[-1]
    if last == len(steps) - 1:
        return None
    way = left[last] / (left[last] - left[last + 1]) if math.isfinite(left[last]) else 1.0
    return float(steps[-1] - (steps[last] + way * (steps[last + 1] - steps[last])))


def paired_steps_earlier(
    curves: Mapping[Any, Curve],
    others: Mapping[Any, Curve],
    *,
    higher_is_better: bool = False,
) -> Earlier:
    """``steps_earlier`` of each run to the last value of the other of its seed, over these seeds.

    Args:
        curves, others: seed -> (steps, values) of a run.
        higher_is_better: as in ``steps_earlier``.

    Returns:
        An ``Earlier``; without a common seed its mean is NaN.

    Raises:
        ValueError: as in ``steps_earlier``, or two runs of a seed that did not diverge end at
            different steps.
    """
    found = []
    common = [seed for seed in curves if seed in others]
    for seed in common:
        (steps, values), (other_steps, goals) = curves[seed], others[seed]
        _check_curve(other_steps, goals)
        sooner = steps_earlier(steps, values, goals[-1], higher_is_better=higher_is_better)
        if sooner is not None and steps[-1] != other_steps[-1]:
            raise ValueError(
                f"the runs of seed {seed!r} end at steps {steps[-1]} and {other_steps[-1]}: "
                "compare runs of as many steps"
            )
        found.append(sooner)
    reached = [sooner for sooner in found if sooner is not None]
    if not common or len(reached) < len(common):
        return Earlier(math.nan, math.nan, len(common), len(reached))
    return Earlier(*mean(reached)[:3], len(reached))


def plus_minus(found: Mean | Difference | Earlier, *, sign: bool = False) -> str:
    """A mean and its error as text, to two digits of the error: ``1.6536 ± 0.0012``.

    Args:
        found: anything with a mean and an error; without an error (a single value) it is to five
            digits, without a mean a dash.
        sign: write a plus before what is above 0.
    """
    plus = "+" if sign and found.mean > 0 else ""
    if math.isnan(found.mean):
        return "-"
    if not found.error > 0:
        zero = "" if math.isnan(found.error) else " ± 0"
        return f"{found.mean:{plus}.5g}{zero}"
    digits = 1 - math.floor(math.log10(found.error))
    form = f".{max(digits, 0)}f" if digits < 10 else ".1e"
    return f"{found.mean:{plus}{form}} ± {found.error:{form}}"


def seeds(count: int) -> str:
    """So many seeds, in words: ``1 seed``, ``3 seeds``."""
    return f"{count} seed{'s' * (count != 1)}"


def _check_curve(steps: Sequence[float], values: Sequence[float]) -> None:
    if not len(steps) or len(steps) != len(values):
        raise ValueError(
            f"steps and values must be as many, and at least one, got {len(steps)} steps and "
            f"{len(values)} values"
        )
    if any(after <= before for before, after in itertools.pairwise(steps)):
        raise ValueError(f"steps must rise, got {list(steps)}")
