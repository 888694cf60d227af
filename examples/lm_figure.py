"""The figure of ``lm.py``: loss against step, and beside it what the runs are compared for."""

import itertools
import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SMOOTHING = 0.98


def figure(args, runs):
    """The figure of one call of ``lm.py``."""
    beside = BESIDE[args.plan.__name__]
    fig, axes = plt.subplots(
        1,
        2 if beside else 1,
        figsize=(13 if beside else 8, 5.2),
        squeeze=False,
        layout="constrained",
    )
    losses(axes[0, 0], args, runs)
    if beside:
        beside(axes[0, 1], args, runs)
    fig.suptitle(
        f"Byte transformer ({args.layers} layers, width {args.width}) on {args.text.name}; "
        f"batch {args.batch} x {args.context}, seed {args.seed}"
    )
    return fig


def losses(axis, args, runs):
    """Validation loss at x, and the training loss behind it."""
    shown = []
    for run in runs:
        training = smoothed(run.train)
        axis.plot(range(1, len(training) + 1), training, **style(run, runs, lw=0.7, alpha=0.45))
        shown += [run.at_x, [training[max(0, step - 1)] for step in run.steps]]
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
    finish(axis, args, runs, shown)


def differences(axis, args, runs):
    """Validation losses less that of the first run at the same step."""
    first, shown = runs[0], []
    for run in runs:
        points = [("", run.at_x, {"marker": "o", "ms": 3})]
        if run.at_y != run.at_x:
            points.append((", at y", run.at_y, {"ls": ":"}))
        for suffix, values, changes in points:
            shown.append([a - b for a, b in zip(values, first.at_x, strict=True)])
            axis.plot(
                run.steps, shown[-1], **style(run, runs, **changes), label=f"{run.label}{suffix}"
            )
    axis.set(
        xlabel="step",
        ylabel="difference, nats per byte",
        title=f"validation loss minus that of {first.label}\n(below 0: better)",
    )
    finish(axis, args, runs, shown)


def final_losses(axis, args, runs):
    """Final validation loss against lr, one line per optimizer."""
    by_name = sorted(runs, key=lambda run: (run.name, run.lr))
    for name, group in itertools.groupby(by_name, lambda run: run.name):
        points = [(run.lr, run.at_x[-1]) for run in group]
        axis.plot(*zip(*points, strict=True), "o-", label=name)
    lrs = sorted({run.lr for run in runs})
    axis.set(
        xscale="log",
        xlabel="lr",
        ylabel="loss, nats per byte",
        title=f"validation at x after {args.steps} steps",
    )
    axis.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()


BESIDE = {"one": None, "compare": differences, "sweep": final_losses}


def style(run, runs, **changes):
    """One colour per lr; dashed without a lookahead."""
    lrs = sorted({r.lr for r in runs})
    dash = "--" if run.lookahead is None else "-"
    return {"color": f"C{lrs.index(run.lr)}", "ls": dash, "lw": 1.6} | changes


def finish(axis, args, runs, curves):
    """Limits that fit ``curves`` without their first tenth, the window in grey, the legend."""
    # the fall from 5.5 at the start would flatten everything else
    late = [
        value
        for curve in curves
        for step, value in zip(runs[0].steps, curve, strict=True)
        if step >= args.steps / 10 and math.isfinite(value)
    ]
    if late:
        room = 0.08 * (max(late) - min(late)) + 0.002
        axis.set_ylim(min(late) - room, max(late) + room)
    for start, end in {window for window in map(active, runs) if window}:
        axis.axvspan(
            start,
            args.steps if end is None else end,
            color="0.92",
            zorder=0,
            label="lookahead active",
        )
    axis.set_xlim(0, args.steps)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)


def active(run):
    """(first active step, first resting step or None), for methods that have such a window."""
    if not hasattr(run.lookahead, "rest"):
        return None
    return run.lookahead.warmup, run.lookahead.rest


def smoothed(values):
    """Exponential average without the bias of its start."""
    average, out = 0.0, []
    for count, value in enumerate(values, 1):
        average += (1 - SMOOTHING) * (value - average)
        out.append(average / (1 - SMOOTHING**count))
    return out
