# SPDX-License-Identifier: MIT
"""What comes of the training of a run on a GPU: ``python3 -m bench.train_report FILE [FIGURE]``.

Prints a table of the runs in ``train.jsonl``, one a line, and what they say; draws the long ones.
"""

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from emanest.tools.statistics import steps_earlier
from examples.lab.store import read

from . import source_tree  # noqa: F401  where emanest is not installed
from .report import markdown
from .train_settings import METHODS

COLUMNS = (
    *("run", "steps", "lr", "loss at x", "loss at y", "ms per step", "optimizer ms"),
    *("optimizer's share", "bytes per parameter"),
)


class Lines:
    """The results of runs, one a line of a file.

    Args:
        path: of the file; runs that end are added to it.
        others: files whose lines are added to it as well.
        commit: whose lines count.
    """

    def __init__(self, path, others, commit):
        self.path, self.commit = path, commit
        every = [line for each in (*others, path) if each.exists() for line in read(each)]
        text = "".join(dict.fromkeys(json.dumps(line) + "\n" for line in every))
        # in place of what may end in half a line
        new = path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, path)
        self.lines = [line for line in every if line["commit"] == commit]

    def find(self, key):
        """The result of a run of these settings, or None."""
        return next((line for line in self.lines if line["key"] == key), None)

    def add(self, line):
        """Keep a result."""
        self.lines.append(line)
        with open(self.path, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def number(value):
    """A loss: JSON has none for one that is not finite."""
    return math.nan if value is None else value


def run_of(line):
    """A run with its curves as numbers, and the settings of its lookahead."""
    key = line["key"]
    lookahead = METHODS[key["method"]](key["steps"])
    curves = {name: list(map(number, line[name])) for name in ("train", "at_x", "at_y")}
    about = {"name": line["name"], "lr": key["lr"], "label": f"{line['name']}, lr {key['lr']:g}"}
    return SimpleNamespace(**about, **curves, lookahead=lookahead, steps=line["steps"], line=line)


def long(lines):
    """Runs of the most steps, in the order of their lines."""
    most = max((line["key"]["steps"] for line in lines), default=0)
    return [run_of(line) for line in lines if line["key"]["steps"] == most]


def table(lines):
    """All runs."""
    cells = []
    for line in lines:
        key, final = line["key"], line["final"]
        losses = (f"{number(final[loss]):.4f}" for loss in ("loss_x", "loss_y"))
        times = (f"{final[time]:.2f}" for time in ("step_ms", "optimizer_ms"))
        share, size = f"{100 * line['share']:.1f} %", final["optimizer_bytes_per_parameter"]
        about = (line["name"], str(key["steps"]), f"{key['lr']:g}")
        cells.append((*about, *losses, *times, share, f"{size:.2f}"))
    return markdown(COLUMNS, cells)


def difference(run, other):
    """How the final losses of two runs differ, in words."""
    gap = run.at_x[-1] - other.at_x[-1]
    if math.isnan(gap):
        gone = [r.label for r in (run, other) if math.isnan(r.at_x[-1])]
        return f"{' and '.join(gone)} diverged."
    return f"{run.label} ends {abs(gap):.4f} {'below' if gap < 0 else 'above'} {other.label}."


def summary(lines):
    """What the runs say, in few lines."""
    said = []
    runs = long(lines)
    plain = {run.line["key"]["base"]: run for run in runs if run.lookahead is None}
    for run in runs:
        other = plain.get(run.line["key"]["base"])
        if run.lookahead is None or other is None or run.lr != other.lr:
            continue
        steps = steps_earlier(run.steps, run.at_x, other.at_x[-1])
        sooner = "" if steps is None else f" Same loss {steps:.0f} steps earlier."
        said.append(f"{difference(run, other)}{sooner}")
    for run in runs:
        final, share = run.line["final"], 100 * run.line["share"]
        said.append(
            f"{run.label}: {run.at_x[-1]:.4f}; {final['step_ms']:.1f} ms a step, of which the "
            f"optimizer {final['optimizer_ms']:.2f} ({share:.1f} %)"
        )
    for base in dict.fromkeys(line["key"]["base"] for line in lines):
        losses = [
            f"{line['key']['lr']:g} {number(line['final']['loss_x']):.4f}"
            for line in lines
            if line["key"]["base"] == base and line["key"]["steps"] < runs[0].line["key"]["steps"]
        ]
        said += [f"{base}, short runs by lr: {', '.join(losses)}"] * bool(losses)
    return said


def draw(lines, path):
    """Curves of the long runs."""
    # the rest of this file is of use where there is nothing to draw with
    from .train_figure import figure

    key = lines[-1]["key"]
    title = (
        f"Byte transformer ({key['layers']} layers, width {key['width']}) on "
        f"{lines[-1]['corpus']}; batch {key['batch']} x {key['context']}, seed {key['seed']}"
    )
    runs = long(lines)
    figure(title, runs[0].line["key"]["steps"], runs).savefig(path, dpi=120)


def main(arguments):
    lines = read(Path(arguments[0]))
    devices = dict.fromkeys(f"{line['device']}, torch {line['torch']}" for line in lines)
    print(*devices, "", *table(lines), "", *summary(lines), sep="\n")
    if arguments[1:]:
        draw(lines, arguments[1])


if __name__ == "__main__":
    main(sys.argv[1:])
