# SPDX-License-Identifier: MIT
"""The table of the demo in README.md, between two marks."""

from emanest.tools.statistics import plus_minus

from .comparing import compare, value
from .runs import LOSS, collect, rate, stored

BEGIN, END = "<!-- make lab writes this table -->\n", "<!-- up to here -->\n"


def table(experiment, lines):
    """What the stored runs of the demo say, and where they were done."""
    groups = collect(experiment, lines)
    first, *_ = groups.values()
    rows = [
        f"| run | lr | loss at x (seeds) | less that of {first.arm.label} | steps earlier |",
        "|---|---|---|---|---|",
    ]
    for runs in groups.values():
        found = compare(runs, first)
        beside = (plus_minus(found.difference, sign=True), found.earlier.words)
        cells = (runs.arm.label, rate(runs.lr), value(runs.values(LOSS)))
        rows.append(f"| {' | '.join((*cells, *(beside if runs is not first else ('', ''))))} |")
    where = [line["where"] for line in stored(groups).values()]
    about = ("commit", "processor", "torch")
    said = "; ".join(
        f"{name} {' and '.join(sorted({each[name] for each in where}))}" for name in about
    )
    return "\n".join(["", *rows, "", f"({said})", ""])


def written(text, experiment, lines):
    """The text of README.md with the table as it is now."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table(experiment, lines)}{END}{after}"
