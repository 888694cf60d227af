"""What ``lm.py`` prints and writes: heading, table, JSON, and the figure of ``lm_figure``."""

import json
import math
import os
import platform

import torch

import emanest

COLUMNS = {
    "loss at x": ("loss_x", ".4f"),
    "loss at y": ("loss_y", ".4f"),
    "ms per step": ("step_ms", ".2f"),
    "optimizer ms": ("optimizer_ms", ".3f"),
    "bytes per parameter": ("optimizer_bytes_per_parameter", ".2f"),
}


def heading(args, runs):
    """What is trained on what, in two lines."""
    text = args.text
    parameters = sum(p.numel() for p in runs[0].model.parameters())
    return (
        f"{text.name}: {text.files[0]} files, {len(text.train) / 1e6:.2f} MB to train on; "
        f"{text.files[1]} files, {len(text.validation) / 1e6:.2f} MB to validate on\n"
        f"{parameters:,} parameters ({args.layers} layers, width {args.width}); {args.steps} steps "
        f"of {args.batch} x {args.context} bytes; seed {args.seed}; {args.device}, "
        f"{args.threads} thread{'s' * (args.threads > 1)}"
    )


def table(args, runs):
    """What was compared, the final numbers as a Markdown table, and what they say."""
    rows = [["run", "lr", *COLUMNS]]
    for run in runs:
        final = run.final()
        numbers = [format(final[key], form) for key, form in COLUMNS.values()]
        rows.append([run.name, f"{run.lr:g}", *numbers])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    return "\n".join(
        [
            args.plan.__doc__,
            f"Validation loss in nats per byte after {args.steps} steps; one seed, the same first "
            "weights and batches for every run.",
            "Times are medians. Bytes are those of the optimizer's state.",
            "",
            *lines,
            "",
            *verdict(runs),
        ]
    )


def verdict(runs):
    """A line for each pair of runs that differ in the lookahead alone, and one for the best two."""
    plain = [run for run in runs if run.lookahead is None]
    ahead = [run for run in runs if run.lookahead is not None]
    pairs = [("Same lr", a, p) for a in ahead for p in plain if a.lr == p.lr]
    if pairs:
        pairs.append(("Best of each", min(ahead, key=rank), min(plain, key=rank)))
    return [f"{what}: {difference(a, p)}" for what, a, p in pairs]


def rank(run):
    """The final loss; a diverged run comes last."""
    return math.inf if math.isnan(run.at_x[-1]) else run.at_x[-1]


def difference(run, other):
    """How the final losses of two runs differ, in words."""
    gap = run.at_x[-1] - other.at_x[-1]
    if math.isnan(gap):
        gone = [r.label for r in (run, other) if math.isnan(r.at_x[-1])]
        return f"{' and '.join(gone)} diverged."
    return f"{run.label} ends {abs(gap):.4f} {'below' if gap < 0 else 'above'} {other.label}."


def record(args, runs, seconds):
    """Everything: settings, versions, machine, curves, final numbers."""
    settings = {key: value for key, value in vars(args).items() if key not in ("plan", "text")}
    return {
        "plan": args.plan.__name__,
        "settings": settings,
        "corpus": {
            "name": args.text.name,
            "digest": args.text.digest,
            "files": args.text.files,
            "bytes": [len(args.text.train), len(args.text.validation)],
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "emanest": emanest.__version__,
        },
        "host": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "seconds": seconds,
        "runs": [
            {
                "name": run.name,
                "lr": run.lr,
                "lookahead": run.lookahead and repr(run.lookahead),
                "options": {
                    k: v for k, v in run.optimizer.param_groups[0].items() if k != "params"
                },
                "diverged_at_step": run.diverged,
                "final": run.final(),
                "curves": {
                    "step": run.steps,
                    "validation_at_x": run.at_x,
                    "validation_at_y": run.at_y,
                    "train": run.train,
                    "step_ms": run.step_ms,
                    "optimizer_ms": run.optimizer_ms,
                },
            }
            for run in runs
        ],
    }


def strict(value):
    """``value`` as JSON can hold it: null for a number that is not finite, text for the unknown."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (int, str)) else str(value)


def write(args, runs, seconds):
    """Print the table; write it, the figure and the JSON into ``args.out``."""
    # the rest of this file is of use where there is nothing to draw with
    import matplotlib.pyplot as plt

    from lm_figure import figure

    text = table(args, runs)
    print(f"\n{text}\n")
    (args.out / "lm.md").write_text(f"{heading(args, runs)}\n\n{text}\n")
    everything = strict(record(args, runs, seconds))
    (args.out / "lm.json").write_text(json.dumps(everything, allow_nan=False))
    fig = figure(args, runs)
    fig.savefig(args.out / "lm.png", dpi=120)
    plt.close(fig)
    print(f"{seconds:.0f} s; wrote lm.md, lm.png and lm.json in {args.out}")
