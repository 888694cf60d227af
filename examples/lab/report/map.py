# SPDX-License-Identifier: MIT
"""Report of a difference on two axes, such as decay and stepsize."""

import math

from emanest.tools.statistics import ERRORS, SEEDS, plus_minus, seeds

from . import drawing
from .axis import NAMES
from .comparing import findings, mixed
from .runs import collect, missing, rate, stored
from .section import Figure, Section, Table, counted, listed

# seeds -> how often, in %, Student's t with one degree of freedom fewer is beyond 2
CHANCE = {2: 30, 3: 18, 4: 14, 5: 12}


def report(experiment, lines):
    groups = collect(experiment, lines)
    section = Section(experiment.question, stored=len(stored(groups)))
    section.answer += missing(experiment, groups)
    found = [each for each in findings(groups) if each.difference.count]
    if not found:
        return section
    names = [name for name in found[0].runs.arm.at if name not in NAMES]
    cells = {tuple(each.runs.arm.at[name] for name in names): each for each in found}
    base = found[0].others.arm.label
    section.summary = [sentence(cells, names, base), *chance(cells)]
    whole = len(found) == len(findings(groups))
    section.answer += section.summary + (edge(cells, names) if whole else []) + mixed(found)
    section.tables.append(table(cells, names, base))
    section.figures.append(Figure(section.summary[0], lambda: draw(cells, names, base)))
    return section


def places(cells, axis):
    """The values on an axis, in order."""
    return sorted({place[axis] for place in cells})


def beyond(difference):
    """Whether the mean lies beyond so many standard errors: what a cell is marked for."""
    return abs(difference.mean) > ERRORS * difference.error


def lowest(cells):
    finite = {at: each for at, each in cells.items() if math.isfinite(each.difference.mean)}
    return min(finite, key=lambda at: finite[at].difference.mean) if finite else None


def sentence(cells, names, base):
    """How many cells are lower and higher, and where it is lowest."""
    differences = [each.difference for each in cells.values()]
    lower, higher = (
        sum(sign * each.mean < 0 and beyond(each) for each in differences) for sign in (1, -1)
    )
    gone = sum(each.verdict == "diverged" for each in differences)
    diverged = f", {gone} diverged" if gone else ""
    said = (
        f"Of {counted(len(cells), 'pair')} {lower} end more than {ERRORS} standard errors below "
        f"{base} and {higher} above{diverged}"
    )
    at = lowest(cells)
    if at is None:
        return f"{said}."
    count = cells[at].difference.count
    why = f"; {SEEDS} are needed to call it better" if count < SEEDS else ""
    where = " and ".join(f"{name} {value:g}" for name, value in zip(names, at, strict=True))
    amount = plus_minus(cells[at].difference, sign=True)
    return f"{said}; the lowest is {amount} at {where} ({seeds(count)}{why})."


def chance(cells):
    """A sentence on how many pairs of equals would be told apart with so few seeds."""
    fewest = min(each.difference.count for each in cells.values())
    share = CHANCE.get(fewest)
    if share is None:
        return []
    return [f"With {fewest} seeds chance alone would put {share} % of equals that far apart."]


def edge(cells, names):
    """A sentence where the lowest lies at an end of an axis."""
    at = lowest(cells)
    found = (
        []
        if at is None
        else [
            f"{names[axis]} {at[axis]:g}"
            for axis in range(len(names))
            if at[axis] in (places(cells, axis)[0], places(cells, axis)[-1])
        ]
    )
    return [f"It lies at the end of what was tried: {', '.join(found)}."] if found else []


def text(finding):
    """Difference and error; a star beyond 2 standard errors."""
    difference = finding.difference
    if difference.verdict == "diverged":
        return "diverged"
    return plus_minus(difference, sign=True) + " *" * beyond(difference)


def table(cells, names, base):
    columns = places(cells, 1)
    rows = [
        [f"{row:g}"]
        + [text(cells[row, column]) if (row, column) in cells else "-" for column in columns]
        for row in places(cells, 0)
    ]
    head = (f"{names[0]} \\ {names[1]}", *(f"{column:g}" for column in columns))
    lrs = sorted({runs.lr for each in cells.values() for runs in (each.runs, each.others)})
    caption = (
        f"Loss at the end less that of {base}, same seeds, at lr "
        f"{listed(map(rate, lrs))}; * beyond {ERRORS} standard errors."
    )
    return Table(caption, head, rows)


def draw(cells, names, base):
    """A map in colours, blue where the loss is lower, each cell with its number."""
    rows, columns = places(cells, 0), places(cells, 1)
    figure, axes = drawing.panels(1, 1, width=max(6.5, 1.5 * len(columns) + 1.5))
    values = [
        [
            cells[row, column].difference.mean if (row, column) in cells else math.nan
            for column in columns
        ]
        for row in rows
    ]
    text_of = {
        (x, y): text(cells[row, column]).replace(" ± ", "\n± ")
        for y, row in enumerate(rows)
        for x, column in enumerate(columns)
        if (row, column) in cells
    }
    bar = drawing.heat(axes, values, text_of)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], [f"{column:g}" for column in columns])
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [f"{row:g}" for row in rows])
    axes.set(xlabel=names[1], ylabel=names[0])
    axes.set_title(f"± standard error; * beyond {ERRORS}")
    figure.colorbar(bar, ax=axes, label=f"loss less that of {base} (nats)")
    return figure
