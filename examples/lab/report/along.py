# SPDX-License-Identifier: MIT
"""Report of the loss along the average of updates and along the last one."""

import math

from emanest.tools.statistics import mean, plus_minus, seeds

from . import drawing
from .comparing import mixed
from .runs import collect, missing, stored
from .section import Figure, Section, Table, listed

# entry of what a probe took -> what x is moved along
DIRECTIONS = {"average": "the average of updates", "last step": "the last update"}


def report(experiment, lines):
    groups = collect(experiment, lines)
    section = Section(experiment.question, stored=len(stored(groups)))
    section.answer += missing(experiment, groups)
    for label, runs in groups.items():
        if not runs.best:
            continue
        taken = rises(runs)
        taken = {name: times for name, times in taken.items() if times}
        title = (
            f"{label}: from x on, the loss falls in all of {seeds(len(runs.best))} "
            f"{listed(falls(*item) for item in taken.items())}"
        )
        section.summary.append(f"{title}; {'; '.join(lowest(*item) for item in taken.items())}.")
        section.tables += [table(label, *item) for item in taken.items()]
        section.figures.append(Figure(title, lambda taken=taken: draw(taken)))
    section.answer += [list(section.summary), *mixed((runs,) for runs in groups.values())]
    return section


def rises(runs):
    """Direction -> step -> b -> for each seed the loss there, less that at x."""
    found = {name: {} for name in DIRECTIONS}
    for line in runs.best.values():
        result, stepsizes = line["result"], line["settings"]["probe"]["stepsizes"]
        at_x = dict(zip(result["steps"], result["loss"], strict=True))
        for probe in result["probes"]:
            for name in DIRECTIONS:
                times = found[name].setdefault(probe["step"], {b: [] for b in stepsizes})
                for b, loss in zip(stepsizes, probe[name], strict=True):
                    times[b].append(math.nan if loss is None else loss - at_x[probe["step"]])
    return found


def falls(name, times):
    """At how many times the loss falls in every run.

    Every run below x at one b: no claim on the mean, which wants more seeds than there may be.
    """
    count = sum(
        any(max(values) < 0 for values in ahead_of_x(by_b).values()) for by_b in times.values()
    )
    return f"at {count} of {len(times)} times along {DIRECTIONS[name]}"


def lowest(name, times):
    """Where it is lowest."""
    means = {
        (step, b): mean(values)
        for step, by_b in times.items()
        for b, values in ahead_of_x(by_b).items()
    }
    if not means:
        return f"along {DIRECTIONS[name]} it is finite nowhere"
    step, b = min(means, key=lambda place: means[place].mean)
    amount = plus_minus(means[step, b], sign=True)
    return f"along {DIRECTIONS[name]} it is lowest at step {step:,} and b = {b:g}: {amount}"


def ahead_of_x(by_b):
    """What was taken at b above 0, and is finite in all runs."""
    return {
        b: values for b, values in by_b.items() if b > 0 and all(math.isfinite(v) for v in values)
    }


def table(label, name, times):
    columns = ("b", *(f"step {step:,}" for step in times))
    stepsizes = next(iter(times.values()))
    rows = [
        [f"{b:g}", *(plus_minus(mean(by_b[b]), sign=True) for by_b in times.values())]
        for b in stepsizes
    ]
    return Table(
        f"**{label}**: the loss at x + b times {DIRECTIONS[name]}, less that at x.", columns, rows
    )


def draw(taken):
    """A panel for each direction, a curve for each time."""
    figure, panels = drawing.panels(1, len(taken))
    for axes, (name, times) in zip(panels, taken.items(), strict=True):
        shades = drawing.shades(times)
        for step, by_b in times.items():
            points = {b: mean(values) for b, values in by_b.items()}
            drawing.errors(axes, points, shades[step], f"step {step:,}")
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set(xlabel="b", ylabel="loss less that at x (nats)")
        axes.set_title(f"along {DIRECTIONS[name]}; mean of seeds ± standard error")
    drawing.legend(figure, panels)
    return figure
