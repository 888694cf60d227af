"""The command line of the lab: ``python -m examples.lab run NAME``, ``report NAME``, ``page``."""

import argparse
import os
import sys
from pathlib import Path

from . import report
from .experiments import EXPERIMENTS
from .runner import side_by_side
from .store import RESULTS, ROOT, Store


def parse(argv):
    parser = argparse.ArgumentParser(prog="examples.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do the runs of experiments that are not stored yet")
    run.add_argument("names", nargs="+", choices=EXPERIMENTS, metavar="NAME")
    run.add_argument("--workers", type=int, default=os.cpu_count(), help="processes side by side")
    run.add_argument("--minutes", type=float, help="stop after so long; a later call goes on")
    told = commands.add_parser("report", help="print what the stored runs of experiments say")
    told.add_argument("names", nargs="+", choices=EXPERIMENTS, metavar="NAME")
    page = commands.add_parser("page", help="write docs/results.md and its figures")
    page.add_argument("--out", type=Path, default=ROOT / "docs", help="folder to write into")
    for each in (run, told, page):
        each.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    return COMMANDS[args.command](args, Store(args.results))


def _run(args, store):
    seconds = None if args.minutes is None else 60 * args.minutes
    whole = [side_by_side(EXPERIMENTS[name], store, args.workers, seconds) for name in args.names]
    return 0 if all(whole) else 1


def _report(args, store):
    for name in args.names:
        print(report.text(EXPERIMENTS[name], store.lines()), end="\n\n")
    return 0


def _page(args, store):
    print(report.write_page(EXPERIMENTS, store, args.out))
    return 0


COMMANDS = {"run": _run, "report": _report, "page": _page}


if __name__ == "__main__":
    sys.exit(main())
