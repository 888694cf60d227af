"""The GPU cases, without pytest-benchmark: ``make gpu-bench``.

    python3 -m bench.gpu [--out FOLDER] [--only WORD] [--minutes 8]

Needs torch alone, on a machine where nothing can be installed. Writes
``bench/results/<device>-<date>.json`` in the form that ``bench/report.py`` reads, after every case,
and prints the table. A case that fails is reported, and the others run; the exit status is then 1.
"""

import argparse
import gc
import json
import re
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch

from . import source_tree  # noqa: F401  where emanest is not installed
from .cases import CASES
from .check import Skipped
from .core import measure, quick
from .devices import surroundings
from .report import report


def as_benchmarks(results):
    """Entries as in pytest-benchmark's JSON: the part of it that is of use here."""
    for name, entry in results.items():
        if not isinstance(entry, Skipped):
            samples = entry.samples
            q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
            yield {
                "group": f"{entry.info['case']}: {entry.info['model']}",
                "name": name,
                "extra_info": entry.info,
                "stats": {"median": median, "q1": q1, "q3": q3, "data": samples},
            }


def run(cases, path, minutes, tiny=False):
    """Measure the cases, writing all results so far after each; return them."""
    start, failed, benchmarks = time.monotonic(), [], []
    about = surroundings(cases[0].device)
    for case in cases:
        spent = time.monotonic() - start
        if spent > 60 * minutes:
            failed.append(f"{case.name}: no time left after {spent / 60:.1f} minutes")
            continue
        print(f"{spent:4.0f} s: {case.name}, {case.model}", flush=True)
        try:
            benchmarks += as_benchmarks(quick(case) if tiny else measure(case))
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{case.name}: {type(error).__name__}: {error}")
        release(case.device)
        data = {"machine_info": about, "benchmarks": benchmarks, "failed": failed}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1) + "\n")
    return data


def release(device):
    """Give the memory of a case back; compiled functions hold on to theirs."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main(arguments=None):
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--minutes", type=float, default=8, help="after which no case is started")
    parser.add_argument("--device", default="cuda", choices=sorted({c.device for c in CASES}))
    parser.add_argument("--quick", action="store_true", help="tiny models: does it all still work?")
    args = parser.parse_args(arguments)
    cases = [c for c in CASES if c.device == args.device and args.only in c.name]
    if not cases:
        parser.error(f"no case for {args.device} has a name with {args.only!r}")
    about = surroundings(args.device)
    device = re.sub(r"\W+", "-", about["machine"]).strip("-").lower()
    path = args.out / f"{device}-{about['date']}.json"
    data = run(cases, path, args.minutes, args.quick)
    print(report(data), "", f"written to {path}", sep="\n")
    return 1 if data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
