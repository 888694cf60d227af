# SPDX-License-Identifier: MIT
"""How the results of a page were measured, from the stored lines."""

from emanest.tools.statistics import ERRORS, SEEDS

from ..experiments.sweep import EXTENSIONS
from .runs import collect, missing, stored
from .section import Table, counted, listed

RULE = (
    f"A difference is called better or worse if, over at least {SEEDS} seeds, its mean lies beyond "
    f"{ERRORS} standard errors; otherwise no difference is seen. Differences are paired: runs of "
    "one seed share first weights and batches. ± is one standard error of the mean over seeds, "
    f"with n - 1. With {SEEDS} seeds, chance alone passes this rule in about one of nine "
    "comparisons of equals: read many of them as such, and look at the size."
)
TUNING = (
    "Where the table has several factors, every arm has its own learning rate: these factors of a "
    "common one are tried with the first seeds, and the lowest mean loss is taken. A grid whose "
    f"lowest loss lies at an end grows by as much, up to {EXTENSIONS} times. The further seeds run "
    "at the best learning rate, and where the table says so at its neighbours, or half way to "
    "them, and choose again. The best is chosen by the same held-out data and seeds that the "
    "comparison then uses, for all arms alike; and where the best of an arm falls between two "
    "factors, some of its difference is due to that."
)
EARLIER = (
    "Steps earlier: how long before its end a run had reached for good what the other of its seed "
    "ends with, by straight lines between evaluations. Both have the same schedule, so this is not "
    "how many steps a shorter run would need."
)


def measured(experiments, lines):
    """Paragraphs and tables.

    Args:
        experiments: those that have stored runs.
    """
    if not experiments:
        return []
    groups = {each.name: collect(each, lines) for each in experiments}
    found = {key: line for each in groups.values() for key, line in stored(each).items()}
    gone = sum(line["result"]["diverged"] is not None for line in found.values())
    said = [
        f"{counted(len(found), 'stored run')}, of which {gone} diverged. Losses are those of "
        "held-out data at x, at the end of a run.",
        *(RULE, TUNING, EARLIER),
        plan(experiments, groups),
        places(found.values()),
        data(found.values()),
    ]
    return [str(each) for each in said]


def plan(experiments, groups):
    """What each experiment tries, and how far it is."""
    rows = []
    for each in experiments:
        here = groups[each.name]
        count = len(stored(here))
        left = sum(runs.missing for runs in here.values()) if missing(each, here) else 0
        rows.append(
            [
                f"[{each.name}](#{each.name})",
                f"{len(each.arms)}",
                ", ".join(f"{factor:g}" for factor in each.factors),
                "; ".join(map(_stage, each.stages)),
                f"{count:,}",
                f"{left:,}" if left else "none",
            ]
        )
    columns = ("experiment", "arms", "factors of the lr", "seeds", "runs stored", "missing")
    return Table("What was tried:", columns, rows)


def _stage(stage):
    names = listed(map(str, stage.seeds))
    if stage.finer:
        return f"the same at the best and {stage.around} half way to each neighbour"
    if stage.around is None:
        return f"{names} at all"
    return f"{names} at the best" + (f" and {stage.around} beside it" if stage.around else "")


# columns of the table of places -> entry of a line
PLACE = {"processor": "processor", "torch": "torch", "Python": "python", "commit": "commit"}


def places(lines):
    """Where the runs were done."""
    rows = _counted(tuple(line["where"][entry] for entry in PLACE.values()) for line in lines)
    return Table(
        "Where they were done (a plus: files differed from the commit):", (*PLACE, "runs"), rows
    )


def data(lines):
    """What they trained on."""
    rows = _counted((line["settings"]["data"]["name"], line["where"]["data"]) for line in lines)
    return Table("On which data:", ("data", "digest of content and split", "runs"), rows)


def _counted(rows):
    counts = {}
    for row in rows:
        counts[row] = counts.get(row, 0) + 1
    return [[*row, f"{count:,}"] for row, count in sorted(counts.items())]
