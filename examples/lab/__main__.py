"""Training runs that say whether looking ahead helps, when, and by how much.

python -m examples.lab list
python -m examples.lab run byte_lm fashion_mnist --minutes 30
python -m examples.lab report byte_lm
python -m examples.lab page
torchrun --nproc-per-node 8 -m examples.lab run figure_4 --device cuda --how ddp
"""

import argparse
import os
import sys
from pathlib import Path

from . import report
from .experiments import EXPERIMENTS
from .parallel import WAYS, processes
from .runner import Stop, side_by_side, work
from .store import RESULTS, ROOT, Store, commit


def parse(argv):
    """The settings of a command line; exits with status 2 on one that cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
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
        each.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    return parser.parse_args(argv)


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
    seconds = None if args.minutes is None else 60 * args.minutes
    experiments = [EXPERIMENTS[name] for name in args.names]
    if args.device == "cpu" and args.how == "none":
        whole = [side_by_side(each, store, args.workers, seconds) for each in experiments]
        return 0 if all(whole) else 1
    with processes(args.device) as world:
        stop = Stop(seconds).listen()
        for each in experiments:
            work(each, store, stop, world, how=args.how, compiled=args.compile)
    return 0


def tell(args, store):
    for name in args.names:
        print(report.text(EXPERIMENTS[name], store.lines()), end="\n\n")
    return 0


def write(args, store):
    print(report.write_page(EXPERIMENTS, store, args.out))
    return 0


def main(argv=None):
    args = parse(argv)
    return args.do(args, Store(args.results, commit=commit() if args.fresh else None))


if __name__ == "__main__":
    sys.exit(main())
