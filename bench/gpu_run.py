# SPDX-License-Identifier: MIT
"""One run on a GPU, in stages of falling value: ``make gpu``.

    python3 -m bench.gpu_run --out FOLDER [--stages NAME ...] [--commit HASH] [--carry FOLDER]

Each stage is a process with a time limit. When it ends, however it ends, a line is added to
``results.jsonl``, and the next one starts. Printed at the end, and in ``summary.txt``: what was
found, in at most 40 lines. ``log.txt`` has all output. FOLDER holds at most 8 files; nothing else
is written in the source tree but the extension, where it is not there yet.

``--rehearse`` runs all of it on a machine without a GPU, see ``bench/no_gpu``.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import torch

from .devices import commit
from .stages import ROOT, Found, Settings

# lines of the summary, and characters of a line
LINES, WIDTH = 40, 160
# a rehearsal computes what a GPU would on a few cores
REHEARSED = 12
# seconds of a stage's limit that are for telling what it has found
SPARE = 12


class Stage(NamedTuple):
    """A part of a run."""

    seconds: int  # after which it is stopped
    module: str  # of bench.stages
    arguments: tuple = ()
    backend: str = "triton"
    asked: bool = False  # done only where it is named


# in order of value: what comes later is worth less, or nothing if what comes before has failed
STAGES = {
    "set-up": Stage(60, "set_up"),
    "compile": Stage(90, "compile"),
    "smoke": Stage(60, "smoke"),
    "tests": Stage(100, "tests", ("first",)),
    "ceilings": Stage(30, "ceilings"),
    "elementwise": Stage(90, "cases", ("elementwise",)),
    "blocks": Stage(30, "blocks"),
    "muon": Stage(140, "cases", ("muon",)),
    "tiles": Stage(75, "tiles"),
    "more tests": Stage(100, "tests", ("rest",)),
    "tools": Stage(90, "tools"),
    # longer than any other
    "train": Stage(300 + SPARE, "train", asked=True),
    "train adamw": Stage(180 + SPARE, "train", ("adamw",), asked=True),
}


def do(stage, settings, path):
    """Do the work of a stage, in a process of its own; write what was found.

    That emanest is imported here, and not before the fork, lets stages find the extension that an
    earlier one has put in its place.
    """
    # a group of its own, so that its children can be stopped with it
    os.setpgrp()
    sys.stdout = sys.stderr = open(settings.out / "log.txt", "a", buffering=1)  # noqa: SIM115
    for descriptor in (1, 2):
        os.dup2(sys.stdout.fileno(), descriptor)
    os.environ["EMANEST_BACKEND"] = stage.backend
    # in the background a shell has it ignored, and tests are ended with it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # where emanest is not installed
        importlib.import_module("bench.source_tree")
        module = importlib.import_module(f"bench.stages.{stage.module}")
        found = module.run(settings, *stage.arguments)
    except BaseException as error:
        traceback.print_exc()
        words = (str(error) or "-").splitlines()[0]
        found = Found([f"{type(error).__name__}: {words}"], ok=False)
    path.write_text(json.dumps(found._asdict()))


def run(name, settings, factor=1):
    """Run a stage; its line of the results."""
    stage, path = STAGES[name], settings.work / "found.json"
    path.unlink(missing_ok=True)
    with open(settings.out / "log.txt", "a") as log:
        log.write(f"\n==== {name} ====\n")
    # a fork has torch, which saves seconds of each stage. CUDA, which survives no fork, is first
    # used there
    settings = settings._replace(seconds=stage.seconds * factor - SPARE)
    process = multiprocessing.get_context("fork").Process(target=do, args=(stage, settings, path))
    start = time.monotonic()
    process.start()
    over = not wait([process.sentinel], stage.seconds * factor)
    # its children as well, which would take time from the next stage
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # one that waits for the driver may not even end when it is killed
    process.join(10)
    entry = {"stage": name, "seconds": round(time.monotonic() - start, 1), "lines": []}
    if path.exists():
        entry.update(json.loads(path.read_text()))
    ended = "ok" if entry.pop("ok", False) else f"failed, status {process.exitcode}"
    return {"state": f"stopped after {stage.seconds * factor} s" if over else ended, **entry}


def summary(entries, about):
    """What was found, for a reader: every stage has a line, the rest is shared fairly."""
    left = LINES - len(about) - len(entries)
    shares, wishes = {}, {e["stage"]: len(e["lines"]) for e in entries}
    for k, name in enumerate(sorted(wishes, key=wishes.get)):
        shares[name] = min(wishes[name], left // (len(wishes) - k))
        left -= shares[name]
    lines = list(about)
    for entry in entries:
        lines.append(f"{entry['stage']}: {entry['state']}, {entry['seconds']} s")
        lines += [f"  {line}" for line in entry["lines"][: shares[entry["stage"]]]]
    return [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines]


def main(arguments=None):
    """Run the stages; the exit status is 1 if one is not ok."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument(
        "--stages", nargs="+", choices=list(STAGES), help="default: all but training"
    )
    parser.add_argument("--commit", default=None, help="where there is no git to ask")
    parser.add_argument("--carry", type=Path, default=ROOT / "build" / "carry")
    parser.add_argument("--work", type=Path, default=Path("/tmp/emanest-gpu"))
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    parser.add_argument("--brief", action="store_true", help="six kernels")
    args = parser.parse_args(arguments)
    # a rehearsal is of all of them
    stages = args.stages or [k for k, stage in STAGES.items() if args.rehearse or not stage.asked]
    for folder in (args.out, args.work):
        folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        *(args.out.resolve(), args.work.resolve(), args.carry.resolve()),
        *(args.commit or commit(), args.rehearse or args.brief, args.brief, 0.0),
    )
    os.environ["EMANEST_COMMIT"] = settings.commit
    os.environ["TRITON_CACHE_DIR"] = str(settings.work / "triton")
    # peers that were brought along, for this process and all others
    peers = str(settings.work / "site")
    before = filter(None, [os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), peers, *before])
    sys.path.append(peers)
    if args.rehearse:
        from . import no_gpu

        no_gpu.install()
    about = [f"emanest {settings.commit}, torch {torch.__version__}, {time.strftime('%F %T')}"]
    entries = []
    for name in stages:
        entries.append(run(name, settings, REHEARSED if args.rehearse else 1))
        with open(settings.out / "results.jsonl", "a") as results:
            results.write(json.dumps(entries[-1]) + "\n")
        # after each stage: a run that is cut off has left something
        text = "\n".join(summary(entries, about))
        (settings.out / "summary.txt").write_text(text + "\n")
    print(text, flush=True)
    return int(any(entry["state"] != "ok" for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
