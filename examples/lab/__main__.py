"""The command line of the lab: ``python -m examples.lab run NAME``."""

import argparse
import os
import sys
from pathlib import Path

from .experiments import EXPERIMENTS
from .runner import side_by_side
from .store import RESULTS, Store


def parse(argv):
    parser = argparse.ArgumentParser(prog="examples.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do the runs of experiments that are not stored yet")
    run.add_argument("names", nargs="+", choices=EXPERIMENTS, metavar="NAME")
    run.add_argument("--workers", type=int, default=os.cpu_count(), help="processes side by side")
    run.add_argument("--minutes", type=float, help="stop after so long; a later call goes on")
    for each in (run,):
        each.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    store = Store(args.results)
    seconds = None if args.minutes is None else 60 * args.minutes
    whole = [side_by_side(EXPERIMENTS[name], store, args.workers, seconds) for name in args.names]
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
