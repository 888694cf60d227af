# SPDX-License-Identifier: MIT
"""Training runs that say whether looking ahead helps, when, and by how much.

python -m examples.lab demo --base Muon --lookahead SNOO --corpus ~/notes
python -m examples.lab list
python -m examples.lab run byte_lm fashion_mnist --minutes 30
python -m examples.lab report byte_lm
python -m examples.lab page
torchrun --nproc-per-node 8 -m examples.lab run figure_4 --device cuda --how ddp
"""

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path

from . import report, training
from .data import DataError
from .experiments import EXPERIMENTS, byte_lm, two_cores
from .parallel import WAYS, ParallelError, processes
from .report.drawing import svg
from .runner import Stop, side_by_side, work
from .settings import SettingsError
from .store import RESULTS, ROOT, Store, commit


def parse(argv):
    """The settings of a command line; exits with status 2 on one that cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser(
        "demo", help="train a small language model with and without lookahead"
    )
    add.set_defaults(do=demo, results=ROOT / "build" / "demo")
    lookaheads = [*byte_lm.lookaheads(100), *byte_lm.MORE]
    given = "(default: %(default)s)"
    add.add_argument("--base", choices=byte_lm.BASES, default="AdamW", help=given)
    add.add_argument("--lookahead", choices=lookaheads, default="EMA-Nesterov", help=given)
    add.add_argument("--lr", type=positive(float), help="of the base (default: a tuned one)")
    add.add_argument("--steps", type=positive(int), default=1000, help=given)
    add.add_argument("--seeds", type=positive(int), default=3, help=f"how many {given}")
    add.add_argument(
        "--corpus", type=whole_path, help="folder of text (default: Python's standard library)"
    )
    add.add_argument("--workers", type=positive(int), default=os.cpu_count(), help=given)
    add = commands.add_parser("list", help="the experiments, and how many of their runs are stored")
    add.set_defaults(do=show)
    add = commands.add_parser("run", help="do the runs of experiments that are not stored yet")
    add.set_defaults(do=run)
    add.add_argument("names", nargs="+", choices=EXPERIMENTS, metavar="NAME")
    add.add_argument("--minutes", type=float, help="stop after so long; a later call goes on")
    add.add_argument("--workers", type=int, default=os.cpu_count(), help="processes side by side")
    add.add_argument("--device", default="cpu", help="cpu or cuda")
    add.add_argument("--how", choices=WAYS, default="none", help="under torchrun")
    add.add_argument("--fresh", action="store_true", help="lines of other commits do not count")
    add.add_argument("--compile", action="store_true", help="compile the blocks of models")
    add = commands.add_parser("report", help="print what the stored runs of experiments say")
    add.set_defaults(do=tell)
    add.add_argument("names", nargs="+", choices=EXPERIMENTS, metavar="NAME")
    add = commands.add_parser("page", help="write the page of all results and its figures")
    add.set_defaults(do=write)
    add.add_argument("--out", type=Path, default=ROOT / "docs", help="folder to write into")
    parser.set_defaults(fresh=False)
    for each in commands.choices.values():
        folder = each.get_default("results") or RESULTS
        each.add_argument("--results", type=Path, default=folder, help="folder of the lines")
    return parser.parse_args(argv)


def positive(kind):
    """An argument type: a number above 0."""

    def convert(text):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    convert.__name__ = "positive number"
    return convert


def whole_path(text):
    """An argument type: a path that is the same from wherever it is named."""
    return Path(text).expanduser().resolve()


def demo(args, store):
    asked = {name: getattr(args, name) for name in ("steps", "seeds", "lr", "corpus")}
    experiment = two_cores.demo(args.base, args.lookahead, **asked)
    # of a folder whose files have changed, or another Python, the stored runs do not count
    store = store.of_data(training.loaded(experiment.arms[0].settings).digest)
    whole = side_by_side(experiment, store, args.workers)
    found = report.section(experiment, store.lines())
    text = f"{found}\n"
    print(f"\n{text}")
    (args.results / "demo.md").write_text(text)
    for number, figure in enumerate(found.figures, 1):
        (args.results / f"demo_{number}.svg").write_bytes(svg(figure))
    print(f"demo.jsonl, demo.md and {len(found.figures)} figures are in {args.results}")
    return 0 if whole else 1


def show(args, store):
    lines = store.lines()
    for name, experiment in EXPERIMENTS.items():
        found = [experiment.found(arm, lines) for arm in experiment.arms]
        runs = experiment.runs(store)
        there = sum(store.find(settings) is not None for settings in runs)
        state = "done" if all(each.complete for each in found) else f"{there} of {len(runs)} runs"
        print(f"{name:32} {state:16} {experiment.size:32} {experiment.question}")
    return 0


def run(args, store):
    seconds = math.inf if args.minutes is None else 60 * args.minutes
    end = time.monotonic() + seconds
    # an error of the data is one line here, and not one of every worker; runs on other data of the
    # same name, such as the text of another Python, do not count
    chosen = []
    for experiment in (EXPERIMENTS[name] for name in args.names):
        digest = training.loaded(experiment.arms[0].settings).digest
        chosen.append((experiment, store.of_data(digest)))
    if args.device == "cpu" and args.how == "none":
        whole = [
            side_by_side(each, its, args.workers, end - time.monotonic()) for each, its in chosen
        ]
        return 0 if all(whole) else 1
    with processes(args.device) as world:
        stop = Stop(seconds).listen()
        for each, its in chosen:
            work(each, its, stop, world, how=args.how, compiled=args.compile)
    return 0


def tell(args, store):
    for name in args.names:
        print(report.text(EXPERIMENTS[name], store.lines()), end="\n\n")
    return 0


def write(args, store):
    print(report.write_page(EXPERIMENTS, store, args.out))
    # that of the same tree, and none where the page is written elsewhere
    path = args.out.parent / "README.md"
    if path.exists():
        report.write_readme(EXPERIMENTS["demo"], store, path)
    return 0


def main(argv=None):
    args = parse(argv)
    try:
        return args.do(args, Store(args.results, commit=commit() if args.fresh else None))
    except (DataError, ParallelError, SettingsError) as error:
        print(f"python -m examples.lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("python -m examples.lab: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # workers are told, as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
