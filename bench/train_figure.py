# SPDX-License-Identifier: MIT
"""The figure of the runs in ``train.jsonl``: losses, and what they differ by from the first run."""

import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SMOOTHING = 0.98


def figure(title, steps, runs):
    """The figure of runs of so many steps, as ``train_report.run_of`` has them."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    losses(left, steps, runs)
    differences(right, steps, runs)
    fig.suptitle(title)
    return fig


def losses(axis, steps, runs):
    """Validation loss at x, and the training loss behind it."""
    shown = []
    for run in runs:
        training = smoothed(run.train)
        axis.plot(range(1, len(training) + 1), training, **style(run, runs, lw=0.7, alpha=0.45))
        behind = [training[max(0, step - 1)] for step in run.steps]
        shown += [(run.steps, run.at_x), (run.steps, behind)]
        axis.plot(
            run.steps,
            run.at_x,
            **style(run, runs, marker="o", ms=3),
            label=f"{run.label}: {run.at_x[-1]:.4f}",
        )
    axis.set(
        xlabel="step",
        ylabel="loss, nats per byte",
        title="validation at x, final values in the legend\n(thin: training at y, smoothed)",
    )
    finish(axis, steps, runs, shown)


def differences(axis, steps, runs):
    """Validation losses less that of the first run at the same step."""
    first, shown = runs[0], []
    for run in runs:
        points = [("", run.at_x, {"marker": "o", "ms": 3})]
        if run.at_y != run.at_x:
            points.append((", at y", run.at_y, {"ls": ":"}))
        for suffix, values, changes in points:
            # one that diverged ends early
            gaps = [a - b for a, b in zip(values, first.at_x, strict=False)]
            shown.append((run.steps[: len(gaps)], gaps))
            axis.plot(*shown[-1], **style(run, runs, **changes), label=f"{run.label}{suffix}")
    axis.set(
        xlabel="step",
        ylabel="difference, nats per byte",
        title=f"validation loss minus that of {first.label}\n(below 0: better)",
    )
    finish(axis, steps, runs, shown)


def style(run, runs, **changes):
    """One colour per lr; dashed without a lookahead."""
    lrs = sorted({r.lr for r in runs})
    dash = "--" if run.lookahead is None else "-"
    return {"color": f"C{lrs.index(run.lr)}", "ls": dash, "lw": 1.6} | changes


def finish(axis, steps, runs, curves):
    """Limits that fit ``curves`` without their first tenth, the window in grey, the legend."""
    # the fall from 5.5 at the start would flatten everything else
    late = [
        value
        for at, values in curves
        for step, value in zip(at, values, strict=True)
        if step >= steps / 10 and math.isfinite(value)
    ]
    if late:
        room = 0.08 * (max(late) - min(late)) + 0.002
        axis.set_ylim(min(late) - room, max(late) + room)
    for start, end in {window for window in map(active, runs) if window}:
        axis.axvspan(start, end, color="0.92", zorder=0, label="lookahead active")
    axis.set_xlim(0, steps)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)


def active(run):
    """(first active step, first resting step) of a run with a lookahead."""
    return run.lookahead and (run.lookahead["warmup"], run.lookahead["rest"])


def smoothed(values):
    """Exponential average without the bias of its start."""
    average, out = 0.0, []
    for count, value in enumerate(values, 1):
        average += (1 - SMOOTHING) * (value - average)
        out.append(average / (1 - SMOOTHING**count))
    return out
