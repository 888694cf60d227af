# SPDX-License-Identifier: MIT
"""The GPU cases, without pytest-benchmark: ``make gpu-bench``.

    python3 -m bench.gpu [WORD ...] --out FOLDER [--name NAME] [--minutes 8] [--case-seconds 60]

Needs torch alone, on a machine where nothing can be installed. A word picks the case of that name,
or all cases whose names contain it; they run in the order of the table, the most valuable first.
Edits ``FOLDER/NAME.json``, a new file each time, in the form that ``bench/report.py`` reads, after
every case, and prints the table. A case that fails is reported, and the others run; the exit status
is then 1. What peers need and how they are brought along is in ``bench/NOTES.md``.
"""

import argparse
import contextlib
import gc
import json
import os
import re
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch

from emanest import backends

from . import source_tree  # noqa: F401  where emanest is not installed
from .cases import CASES
from .check import Skipped
from .core import OtherBackend, measure, quick
from .devices import surroundings
from .report import report


def as_benchmarks(results):
    """Entries as in pytest-benchmark's JSON: the part of it that is of use here."""
    for label, entry in results.items():
        if not isinstance(entry, Skipped):
            samples = entry.samples
            q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
            yield {
                "group": f"{entry.info['case']}: {entry.info['model']}",
                "name": label,
                "extra_info": entry.info,
                "stats": {"median": median, "q1": q1, "q3": q3, "data": samples},
            }


class OutOfTime(BaseException):
    """A case has taken longer than it may; no ``Exception``, which a peer's failure would be."""


@contextlib.contextmanager
def at_most(limit):
    """Raise ``OutOfTime`` in the block after so many seconds."""

    def stop(*_):
        raise OutOfTime(f"more than {limit:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, handler)


def run(cases, path, minutes, case_seconds, tiny=False):
    """Measure the cases, writing all results so far after each; return them.

    Args:
        cases: of one device.
        path: of the JSON file.
        minutes: after which no case is started.
        case_seconds: that a case may take; less where less is left of the minutes.
        tiny: ``quick`` in place of ``measure``.
    """
    start, failed, benchmarks = time.monotonic(), [], []
    about = surroundings(cases[0].device)
    release(cases[0].device)
    # all cases have to be served by the same one: none may have taken over in the case before
    backend = backends.pick(cases[0].device).__name__
    data = write(path, about, benchmarks, failed)
    for case in cases:
        spent = time.monotonic() - start
        left = 60 * minutes - spent
        if left <= 0:
            failed.append(f"{case.name}: no time left after {spent / 60:.1f} minutes")
            data = write(path, about, benchmarks, failed)
            continue
        print(f"{spent:4.0f} s: {case.name}, {case.model}", flush=True)
        try:
            with at_most(min(case_seconds, left)):
                results = quick(case) if tiny else measure(case)
            served = results[case.ours].info["backend"]
            if served != backend:
                raise OtherBackend(f"{backend} was to serve it, {served} did")
            benchmarks += as_benchmarks(results)
        except (Exception, OutOfTime) as error:
            traceback.print_exc()
            failed.append(f"{case.name}: {type(error).__name__}: {error}")
        release(case.device)
        data = write(path, about, benchmarks, failed)
    return data


def write(path, about, benchmarks, failed):
    """Write the file; return what is in it."""
    data = {"machine_info": about, "benchmarks": benchmarks, "failed": failed}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return data


def release(device):
    """Give the memory of a case back; compiled functions hold on to theirs."""
    torch.compiler.reset()
    gc.collect()
    # what is left are modules: to pass over them again takes longer than a step
    gc.freeze()
    if device == "cuda":
        torch.cuda.empty_cache()


def picked(cases, words):
    """The cases that words pick, in the order of the table; all of them without words.

    Raises:
        ValueError: a word picks none.
    """
    names, chosen = {case.name for case in cases}, set()
    for word in words:
        found = {word} & names or {name for name in names if word in name}
        if not found:
            raise ValueError(f"no case has a name with {word!r}; --list prints them")
        chosen |= found
    return [case for case in cases if case.name in chosen or not words]


def new_file(folder, name):
    """A file of that name in the folder, or with a number behind it where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(path for path in (folder / f"{each}.json" for each in names) if not path.exists())


@contextlib.contextmanager
def asked(backend):
    """Ask for a back end in the block, so that no other takes over; None leaves it as it is."""
    before = os.environ.get("EMANEST_BACKEND")
    if backend is not None:
        os.environ["EMANEST_BACKEND"] = backend
    try:
        yield
    finally:
        os.environ.pop("EMANEST_BACKEND", None)
        if before is not None:
            os.environ["EMANEST_BACKEND"] = before


# automatic choice would move to another one where a kernel fails, and stay there
BACKEND = {"cuda": "triton"}


def main(arguments=None):
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="names of cases, or parts of them")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", help="of the file, without .json; the device and the date")
    parser.add_argument("--minutes", type=float, default=8, help="after which no case is started")
    parser.add_argument("--case-seconds", type=float, default=60, help="that one case may take")
    parser.add_argument("--device", default="cuda", choices=sorted({c.device for c in CASES}))
    parser.add_argument("--backend", choices=list(backends.BACKENDS), help="CUDA: triton")
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it all still work?")
    args = parser.parse_args(arguments)
    try:
        cases = picked([case for case in CASES if case.device == args.device], args.words)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        print(*(f"{case.name}: {case.model}" for case in cases), sep="\n")
        return 0
    about = surroundings(args.device)
    device = re.sub(r"\W+", "-", about["machine"]).strip("-").lower()
    path = new_file(args.out, args.name or f"{device}-{about['date']}")
    with asked(args.backend or os.environ.get("EMANEST_BACKEND") or BACKEND.get(args.device)):
        data = run(cases, path, args.minutes, args.case_seconds, args.quick)
    print("", f"written to {path}", "", report(data), sep="\n")
    return 1 if data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
