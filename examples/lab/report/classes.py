# SPDX-License-Identifier: MIT
"""Report of classifiers: accuracy and loss, beside published numbers where an arm has them."""

import math

from emanest.tools.statistics import mean, plus_minus, seeds

from . import drawing
from .comparing import findings, mixed, sentence, value
from .runs import ACCURACY, LOSS, collect, ends, missing, rate, stored
from .section import Figure, Section, Table

MEASURES = ACCURACY, LOSS


def report(experiment, lines):
    groups = collect(experiment, lines)
    by_measure = {measure: findings(groups, measure) for measure in MEASURES}
    found = [each for all_ in by_measure.values() for each in all_]
    section = Section(experiment.question, findings=found, stored=len(stored(groups)))
    section.answer += missing(experiment, groups)
    section.answer.append([sentence(each) for each in found if each.difference.count])
    section.answer += ends(groups) + mixed(found)
    if section.stored:
        section.tables = [table(groups, measure, by_measure[measure]) for measure in MEASURES]
    shown = {label: runs for label, runs in groups.items() if runs.best}
    if shown:
        section.figures.append(Figure(title(shown), lambda: draw(shown)))
    return section


def published(runs, measure):
    """The published accuracy as the arm has it, in the unit of the measure, or None."""
    number = runs.arm.at.get("published")
    return None if number is None or measure is not ACCURACY else measure.scale * number


def table(groups, measure, found):
    """What each arm ends with, beside what it is compared with and what was published."""
    by_label = {each.runs.arm.label: each for each in found}
    numbers = {label: published(runs, measure) for label, runs in groups.items()}
    known = any(number is not None for number in numbers.values())
    rows = []
    for label, runs in groups.items():
        each, number = by_label.get(label), numbers[label]
        row = [label, rate(runs.lr), value(runs.values(measure))]
        if known:
            row.append("-" if number is None else f"{number:.4g}")
        if each is None or not each.difference.count:
            rows.append([*row, *["-"] * 3])
            continue
        difference = plus_minus(each.difference, sign=True)
        rows.append([*row, each.others.arm.label, difference, each.difference.words])
    columns = ("arm", "lr", f"{measure.name} (seeds)", *["published"] * known)
    columns += ("compared with", "difference", "verdict")
    return Table(f"**{measure.name.capitalize()}** at the end, in {measure.unit}.", columns, rows)


def title(shown):
    """Who ends with the highest accuracy and with the lowest loss."""
    said = []
    for measure, what in ((ACCURACY, "the highest accuracy"), (LOSS, "the lowest loss")):
        means = {label: mean(runs.values(measure).values()) for label, runs in shown.items()}
        means = {label: each for label, each in means.items() if math.isfinite(each.mean)}
        if means:
            sign = -1 if measure.higher_is_better else 1
            label = min(means, key=lambda label: sign * means[label].mean)
            unit = " %" if measure is ACCURACY else ""
            amount = f"{plus_minus(means[label])}{unit}, {seeds(means[label].count)}"
            said.append(f"{what} is that of {label} ({amount})")
    text = ", ".join(said) or "every arm diverged"
    return f"{text[0].upper()}{text[1:]}"


def draw(shown):
    """A panel for each measure, a row for each arm; rings are published numbers."""
    figure, panels = drawing.panels(1, len(MEASURES), sharey=True)
    color = drawing.colors(["stored runs"])["stored runs"]
    labels = list(shown)[::-1]
    for axes, measure in zip(panels, MEASURES, strict=True):
        means = {y: mean(shown[label].values(measure).values()) for y, label in enumerate(labels)}
        drawing.dots(axes, means, color, "stored runs")
        known = {y: published(shown[label], measure) for y, label in enumerate(labels)}
        known = {y: number for y, number in known.items() if number is not None}
        if known:
            axes.plot(
                list(known.values()), list(known), "o", color="black", mfc="none", label="published"
            )
        axes.set(xlabel=f"{measure.name} at the end ({measure.unit})")
        drawing.rows(axes, labels)
        axes.set_title("mean of seeds ± standard error")
    drawing.legend(figure, panels)
    return figure
