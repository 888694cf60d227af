# SPDX-License-Identifier: MIT
"""Report of a gain against a number: of steps, or of rows in a batch."""

import math

from emanest.tools.statistics import Mean, paired, plus_minus, seeds

from . import drawing
from .comparing import findings, mixed, per_cent, value
from .runs import LOSS, collect, ends, missing, rate, stored
from .section import Figure, Section, Table

# entries of ``Arm.at`` that name an arm, and are no axis
NAMES = "base", "lookahead"
# what is on an axis, and how a place on it is called
AXES = {
    "steps": ("steps of a run", "{:,} steps"),
    "batch": ("rows of a batch", "batches of {:,}"),
}

# verdict on the last gain beside the first -> what the gain does
HOW = {
    "better": "grows",
    "worse": "shrinks",
    "no difference seen": "does not change as far as is seen",
    "diverged": "cannot be told",
}


def report(experiment, lines):
    groups = collect(experiment, lines)
    axis = next(name for name in experiment.arms[0].at if name not in NAMES)
    found = [each for each in findings(groups) if each.difference.count]
    section = Section(experiment.question, stored=len(stored(groups)))
    section.answer += missing(experiment, groups)
    rows = series(found, axis)
    section.summary = [trend(name, points, axis) for name, points in rows.items()]
    section.answer += section.summary + ends(groups) + mixed(found)
    for name, points in rows.items():
        section.tables.append(table(name, points, axis))
    if rows:
        title = " ".join(trend(name, points, axis, short=True) for name, points in rows.items())
        section.figures.append(Figure(title, lambda: draw(rows, axis)))
    return section


def series(found, axis):
    """Name of a base with a lookahead -> place on the axis -> comparison."""
    rows = {}
    for each in found:
        at = each.runs.arm.at
        rows.setdefault(f"{at['base']} + {at['lookahead']}", {})[at[axis]] = each
    return {name: dict(sorted(points.items())) for name, points in rows.items()}


def gain(finding):
    """How much lower the loss is: above 0, the lookahead helps."""
    difference = finding.difference
    return Mean(-difference.mean, difference.error, difference.count)


def trend(name, points, axis, short=False):
    """Whether the gain at the last place differs from that at the first, as a sentence.

    Args:
        short: as a title, without counts.
    """
    places = [at for at in points if math.isfinite(points[at].difference.mean)]
    if not places:
        return f"{name} has no gain that can be told."
    first, last, most = places[0], places[-1], max(places, key=lambda at: gain(points[at]).mean)
    said = {at: _at(points[at], at, axis, short) for at in (first, last, most)}
    if first == last:
        return f"The gain of {name} is {said[first]}."
    change = paired(_gains(points[last]), _gains(points[first]), higher_is_better=True)
    why = f" ({change.words.split(': ')[-1]})" * (change.verdict not in ("better", "worse"))
    text = f"The gain of {name} {HOW[change.verdict]}{why}: {said[first]}, {said[last]}"
    return text + f", the largest {said[most]}" * (most not in (first, last)) + "."


def _gains(finding):
    ours, theirs = finding.runs.values(LOSS), finding.others.values(LOSS)
    return {seed: theirs[seed] - ours[seed] for seed in theirs if seed in ours}


def _at(finding, at, axis, short):
    share, found = -finding.share.mean, gain(finding)
    count = "" if short else f", {seeds(found.count)}"
    return f"{plus_minus(found)} ({share:.2g} %{count}) with {AXES[axis][1].format(at)}"


def table(name, points, axis):
    columns = (
        *(AXES[axis][0], "best lr without", "loss without (seeds)", "best lr with"),
        *("loss with (seeds)", "gain", "gain in %", "same loss so many steps earlier"),
        *("of the run", "verdict"),
    )
    rows = []
    for at, each in points.items():
        whole = each.runs.arm.settings["steps"]
        sooner = each.earlier.mean
        rows.append(
            [
                *(
                    f"{at:,}",
                    rate(each.others.lr),
                    value(each.others.values(LOSS)),
                    rate(each.runs.lr),
                ),
                *(value(each.runs.values(LOSS)), plus_minus(gain(each), sign=True)),
                *(per_cent(each.share, -1), each.earlier.words),
                "-" if math.isnan(sooner) else f"{100 * sooner / whole:.1f} %",
                each.difference.words,
            ]
        )
    return Table(f"**{name}**: the gain over the base, each at its own best lr.", columns, rows)


def draw(rows, axis):
    """The gain in nats, and how much sooner the base's last loss is reached, by place."""
    figure, (left, right) = drawing.panels(1, 2)
    colors = drawing.colors(rows)
    places = sorted({at for points in rows.values() for at in points})
    for name, points in rows.items():
        gains = {at: gain(each) for at, each in points.items()}
        drawing.errors(left, gains, colors[name], name)
        sooner = {at: _sooner(each) for at, each in points.items() if each.earlier.count}
        drawing.errors(right, sooner, colors[name], name, gone=drawing.NEVER)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel=AXES[axis][0])
        axes.set_xticks(places, [f"{at:,}" for at in places])
        axes.minorticks_off()
    left.set(ylabel="gain (nats)", title="paired difference of the last losses ± standard error")
    right.set(ylabel="earlier (% of the run)", title="same loss so much earlier ± standard error")
    drawing.legend(figure, (left, right))
    return figure


def _sooner(finding):
    part = 100 / finding.runs.arm.settings["steps"]
    earlier = finding.earlier
    return Mean(part * earlier.mean, part * earlier.error, earlier.count)
