"""What comes of the training of a run on a GPU: ``python3 -m bench.train_report FILE [FIGURE]``.

Prints a table of the runs in ``train.jsonl``, one a line, and what they say; draws the long ones.
"""

import itertools
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from . import source_tree  # noqa: F401  where emanest is not installed
from .report import markdown

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import lm_report
from methods import LOOKAHEADS

COLUMNS = (
    *("run", "steps", "lr", "loss at x", "loss at y", "ms per step", "optimizer ms"),
    *("optimizer's share", "bytes per parameter"),
)


def read(path):
    """The lines of a file but for one that was cut off; none where there is no file."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


class Lines:
    """The results of runs, one a line of a file.

    Args:
        path: of the file; runs that end are added to it.
        others: files whose lines are added to it as well.
        commit: whose lines count.
    """

    def __init__(self, path, others, commit):
        self.path, self.commit = path, commit
        every = [line for each in (*others, path) for line in read(each)]
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
    """A run as ``examples/training.py`` has it, but without its model."""
    key = line["key"]
    lookahead = LOOKAHEADS[key["method"]].make(key["steps"])
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


def earlier(run, other):
    """By how many steps ``run`` had the loss that ``other`` ends with; None if it never had.

    On the line between two evaluations.
    """
    goal = other.at_x[-1]
    points = itertools.pairwise(zip(run.steps, run.at_x, strict=True))
    for (start, before), (stop, after) in points:
        if after <= goal:
            # from a loss above, but for the first of all
            way = (before - goal) / (before - after) if before > goal else 0
            return run.steps[-1] - (start + way * (stop - start))
    return None


def summary(lines):
    """What the runs say, in few lines."""
    said = []
    runs = long(lines)
    plain = {run.line["key"]["base"]: run for run in runs if run.lookahead is None}
    for run in runs:
        other = plain.get(run.line["key"]["base"])
        if run.lookahead is None or other is None or run.lr != other.lr:
            continue
        steps = earlier(run, other)
        sooner = "" if steps is None else f" Same loss {steps:.0f} steps earlier."
        said.append(f"{lm_report.difference(run, other)}{sooner}")
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
    """Curves of the long runs, as ``examples/lm.py --compare`` draws them."""
    from lm_figure import figure

    runs, key = long(lines), lines[-1]["key"]
    text = SimpleNamespace(name=lines[-1]["corpus"])
    about = {name: key[name] for name in ("layers", "width", "batch", "context", "seed")}
    plan = SimpleNamespace(__name__="compare")
    args = SimpleNamespace(**about, steps=runs[0].line["key"]["steps"], text=text, plan=plan)
    figure(args, runs).savefig(path, dpi=120)


def main(arguments):
    lines = read(Path(arguments[0]))
    devices = dict.fromkeys(f"{line['device']}, torch {line['torch']}" for line in lines)
    print(*devices, "", *table(lines), "", *summary(lines), sep="\n")
    if arguments[1:]:
        draw(lines, arguments[1])


if __name__ == "__main__":
    main(sys.argv[1:])
