# SPDX-License-Identifier: MIT
"""Comparisons of two arms, each at its own best learning rate, and what they say in words."""

import math
from typing import NamedTuple

from emanest.tools.statistics import (
    Difference,
    Earlier,
    Mean,
    mean,
    paired,
    paired_steps_earlier,
    plus_minus,
    seeds,
)

from .runs import LOSS, Measure, Runs


class Finding(NamedTuple):
    """An arm beside the one that it is compared with.

    Args:
        runs, others: of both.
        measure: by which they are compared.
        difference: each at its own best learning rate, over seeds that both have.
        share: the difference, in % of the other's mean.
        same_lr: the difference at the best learning rate of the other.
        earlier: how many steps before its end it has what the other ends with.
    """

    runs: Runs
    others: Runs
    measure: Measure
    difference: Difference
    share: Mean
    same_lr: Difference
    earlier: Earlier

    @property
    def settled(self):
        """Whether no run of either will follow."""
        return self.runs.complete and self.others.complete


def compare(runs, others, measure=LOSS):
    """What two arms say together."""
    higher = {"higher_is_better": measure.higher_is_better}
    ours, theirs = runs.values(measure), others.values(measure)
    difference = paired(ours, theirs, **higher)
    same = paired(runs.values(measure, others.lr), others.values(measure), **higher)
    earlier = paired_steps_earlier(runs.curves(measure), others.curves(measure), **higher)
    common = [theirs[seed] for seed in theirs if seed in ours]
    per_cent = 100 / mean(common).mean if common else math.nan
    share = Mean(difference.mean * per_cent, difference.error * per_cent, difference.count)
    return Finding(runs, others, measure, difference, share, same, earlier)


def findings(groups, measure=LOSS):
    """Those of all arms that are compared with another."""
    return [
        compare(runs, groups[runs.arm.against], measure)
        for runs in groups.values()
        if runs.arm.against is not None
    ]


def value(values):
    """The mean of seeds and its error; what diverged is counted, and there is no mean then."""
    if not values:
        return "-"
    found = mean(values.values())
    if found.diverged:
        return f"diverged in {found.diverged} of {seeds(found.count)}"
    return f"{plus_minus(found)} ({found.count})"


def sentence(finding):
    """What a comparison says, as a sentence that stands alone."""
    name, other = finding.runs.arm.label, finding.others.arm.label
    difference = finding.difference
    if not difference.count:
        return f"{name} and {other} have no runs to compare yet."
    if difference.verdict == "diverged":
        return f"{name} beside {other}, {finding.measure.name}: {difference.words}."
    if difference.verdict == "no difference seen":
        amount = _amount(finding, sign=True)
        return f"{name} beside {other}: {finding.measure.name} {amount}; {difference.words}."
    way = "higher" if difference.mean > 0 else "lower"
    return (
        f"{name} is {difference.verdict} than {other}: its {finding.measure.name} is {way} by "
        f"{_amount(finding)}{_sooner(finding)}."
    )


def _amount(finding, sign=False):
    """The size of a difference, its share, and of how many seeds it is."""
    difference, share = finding.difference, finding.share
    if not sign:
        difference, share = (
            Mean(abs(each.mean), abs(each.error), each.count) for each in (difference, share)
        )
    text = plus_minus(difference, sign=sign)
    if finding.measure is LOSS:
        return f"{text} ({plus_minus(share, sign=sign)} %, {seeds(difference.count)})"
    return f"{text} points ({seeds(difference.count)})"


def _sooner(finding):
    """How much earlier the other's last value was reached, where it was."""
    if math.isnan(finding.earlier.mean):
        return ""
    whole = finding.runs.arm.settings["steps"]
    return (
        f"; what {finding.others.arm.label} ends with is reached "
        f"{finding.earlier.words} of {whole:,} steps earlier"
    )


def per_cent(share, sign=1):
    """A share as text; of a gain, the other way round."""
    text = plus_minus(share._replace(mean=sign * share.mean), sign=True)
    return text if text == "-" else f"{text} %"


# entry of where a run was done -> what it is called
MIXED = {
    "processor": "processors",
    "torch": "versions of torch",
    "commit": "commits",
    "data": "texts or images",
}


def mixed(compared):
    """Sentences on what is compared although it was not done alike.

    Args:
        compared: findings, or other groups of ``Runs``.
    """
    compared = [
        (each.runs, each.others) if isinstance(each, Finding) else each for each in compared
    ]
    said = []
    for entry, what in MIXED.items():
        across = {}
        for group in compared:
            lines = [line for runs in group for line in runs.best.values()]
            kinds = tuple(sorted({line["where"][entry] for line in lines}))
            if len(kinds) > 1:
                across.setdefault(kinds, []).append(group[0].arm.label)
        said += [
            f"Compared across {what} ({'; '.join(kinds)}): {', '.join(dict.fromkeys(labels))}."
            for kinds, labels in across.items()
        ]
    return said
