# SPDX-License-Identifier: MIT
"""Report of arms that are compared, each at its own best learning rate."""

import math

from emanest.tools.statistics import mean, plus_minus, track3

from . import drawing
from .comparing import compare, findings, mixed, per_cent, sentence, value
from .runs import LOSS, collect, ends, missing, rate, stored
from .section import Figure, Section, Table

MOST = 8  # arms of a figure


def report(experiment, lines):
    groups = collect(experiment, lines)
    found = findings(groups)
    section = Section(experiment.question, findings=found, stored=len(stored(groups)))
    section.answer += missing(experiment, groups)
    section.answer.append([sentence(each) for each in found if each.difference.count])
    if experiment.goal is not None:
        section.answer.append(reached(experiment.goal, groups))
    section.answer += ends(groups) + mixed(found)
    for base, members in families(groups).items():
        section.tables.append(outcome(base, members))
        if searched(members):
            section.tables.append(by_lr(base, members))
        if members[base].best:
            section.figures.append(Figure(title(base, members), lambda m=members: draw(m)))
    return section


def reached(goal, groups):
    """A sentence for each arm with runs: whether they meet the rule of the benchmark."""
    said = []
    for label, runs in groups.items():
        losses = runs.values(LOSS)
        if losses:
            met = track3(losses.values(), goal)
            words = "reaches" if met else "does not reach"
            said.append(
                f"{label} {words} {goal:g} by the benchmark's rule, ({goal:g} - mean) sqrt(n) >= "
                f"0.004: {value(losses)}."
            )
    return said


def families(groups):
    """Label of each arm that others are compared with -> it and them, by label."""
    found = {}
    for label, runs in groups.items():
        found.setdefault(runs.arm.against or label, {})[label] = runs
    return {
        base: {base: members.pop(base), **members}
        for base, members in found.items()
        if any(stored({label: members[label]}) for label in members if label != base)
    }


def searched(members):
    return any(runs.searched for runs in members.values())


def outcome(base, members):
    """What each arm ends with at its best learning rate, and what it differs by."""
    rows = []
    for label, runs in members.items():
        row = [label, rate(runs.lr), value(runs.values(LOSS))]
        if label == base:
            rows.append([*row, *["-"] * 5])
            continue
        found = compare(runs, members[base])
        rows.append(
            [
                *row,
                plus_minus(found.difference, sign=True),
                per_cent(found.share),
                found.earlier.words,
                found.difference.words if found.difference.count else "-",
                _same_lr(found),
            ]
        )
    columns = (
        *(
            "arm",
            "best lr" if searched(members) else "lr",
            "loss at the end (seeds)",
            f"less that of {base}",
            "in %",
        ),
        *("same loss so many steps earlier", "verdict", f"difference at {base}'s best lr (seeds)"),
    )
    whole = members[base].arm.settings["steps"]
    where = "its own best lr" if searched(members) else "the lr of its settings"
    return Table(f"**{base}**: each arm at {where}, after {whole:,} steps.", columns, rows)


def _same_lr(found):
    same = found.same_lr
    if not same.count:
        return "-"
    if same.verdict == "diverged":
        return same.words
    return f"{plus_minus(same, sign=True)} ({same.count})"


def by_lr(base, members):
    """The loss of each arm at every learning rate that was tried."""
    lrs = sorted({lr for runs in members.values() for lr in runs.cells})
    rows = []
    for label, runs in members.items():
        cells = {lr: value(runs.values(LOSS, lr)) if lr in runs.cells else "" for lr in lrs}
        if runs.best:
            cells[runs.lr] = f"**{cells[runs.lr]}**"
        rows.append([label, *cells.values()])
    columns = ("loss at the end (seeds) at lr", *map(rate, lrs))
    return Table(f"**{base}**: at each lr; the lowest mean is bold.", columns, rows)


def best(members, base):
    """The label of the lowest mean loss beside the base's, or None."""
    means = {
        label: mean(runs.values(LOSS).values()).mean
        for label, runs in members.items()
        if label != base and runs.best
    }
    means = {label: loss for label, loss in means.items() if math.isfinite(loss)}
    return min(means, key=means.get) if means else None


def title(base, members):
    """Who ends lowest, and how far from the base."""
    label = best(members, base)
    alone = f"{base} ends at {value(members[base].values(LOSS))}"
    if label is None:
        return f"{alone}; no other arm has a best lr yet"
    found = compare(members[label], members[base]).difference
    if not found.count or found.verdict == "diverged":
        return f"{alone}, {label} at {value(members[label].values(LOSS))}"
    amount = plus_minus(found._replace(mean=abs(found.mean)))
    way = "higher" if found.mean > 0 else "lower"
    count = sum(bool(runs.best) for runs in members.values()) - 1
    lowest = f", the lowest of {count} beside it," * (count > 1)
    return (
        f"{label}{lowest} ends {amount} {way} than {base}"
        f"{', each at its own best lr' * searched(members)} ({found.words})"
    )


def shown(base, members):
    """Those that a figure has room for: of many, the lowest of each lookahead."""
    if len(members) <= MOST:
        return members
    kept = {base: members[base]}
    for name in dict.fromkeys(runs.arm.at.get("lookahead") for runs in members.values()):
        group = {k: m for k, m in members.items() if m.arm.at.get("lookahead") == name}
        label = best(group, base)
        if label is not None:
            kept[label] = members[label]
    return dict(list(kept.items())[:MOST])


def draw(members):
    """The loss by learning rate, or by arm without a search, and on the way."""
    base = next(iter(members))
    members = shown(base, members)
    figure, (left, right) = drawing.panels(1, 2)
    colors = drawing.colors(members, base)
    (lr_panel if searched(members) else arm_panel)(left, members, colors)
    for label in filter(None, (base, best(members, base))):
        drawing.band(right, members[label].curves(LOSS), colors[label], label)
    right.set(xlabel="step", ylabel="loss (nats)")
    right.set_title("on the way; band: standard error")
    drawing.late(right)
    drawing.legend(figure, (left, right))
    return figure


def lr_panel(axes, members, colors):
    tops = [mean(runs.values(LOSS).values()).mean for runs in members.values() if runs.best]
    ceiling = drawing.ceiling(tops)
    for label, runs in members.items():
        points = {lr: mean(runs.values(LOSS, lr).values()) for lr in runs.cells if runs.cells[lr]}
        if points:
            drawing.errors(axes, points, colors[label], label, ceiling)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss at the end (nats)")
    axes.set_title("mean of seeds ± standard error, by learning rate")
    lrs = sorted({lr for runs in members.values() for lr in runs.cells if runs.cells[lr]})
    ticks = drawing.apart(lrs)
    axes.set_xticks(ticks, [rate(lr) for lr in ticks])
    axes.minorticks_off()


def arm_panel(axes, members, colors):
    there = {label: runs for label, runs in reversed(members.items()) if runs.best}
    for height, (label, runs) in enumerate(there.items()):
        drawing.dots(axes, {height: mean(runs.values(LOSS).values())}, colors[label], None)
    drawing.rows(axes, there)
    axes.set(xlabel="loss at the end (nats)", title="mean of seeds ± standard error")
