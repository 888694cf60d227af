# SPDX-License-Identifier: MIT
"""The tests that need a GPU, and what failed in few lines: ``make gpu-test`` runs all of them.

    python3 -m bench.stages.tests [all | first | rest] [ARGUMENTS OF PYTEST ...]

A test that is skipped for another reason than those of ``EXCUSES`` has failed: nothing would be
known of what it claims. Kernels of both GPU back ends are asked for by the tests themselves.
"""

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from .. import no_gpu
from . import ROOT, Found
from .set_up import extension

# reasons for which a test may be skipped on a machine with one GPU
EXCUSES = ("needs 24 GiB", "torch.cuda.device_count() < 2")
# where such tests are
FILES = (
    *("device_steps", "muon_updates", "products", "doctor", "bad_input", "captures"),
    *("compare", "training_stage", "unequal_split", "cuda"),
)
PATHS = [f"tests/test_{name}.py" for name in FILES]
# a sample that shows most faults within half a minute
FIRST = "not test_cuda or (triton and not test_a_step) or (triton and float32 and adamw)"
SETS = {
    "all": (PATHS, None),
    "first": (PATHS, FIRST),
    "rest": (PATHS, f"not ({FIRST})"),
}
# what a GPU that is not there cannot show: a tensor's device, what the host would wait for, graphs
# of C++ kernels, and numbers that a device draws
UNREAL = (
    "test_under_a_gpu_scaler_the_host_never_waits or (test_bad_input and another) or "
    "test_every_device_that_is_present or (test_captures or test_a_graph) and cpp or "
    "test_runs_on_a_device_have_the_same_dropout"
)
# one
BRIEF = "test_a_captured_graph_replays_steps and adamw-ema and not window"
LONGEST = 100  # characters of a message


class Group(collections.namedtuple("Group", "where kind message")):
    """Failures that are alike."""


def run(settings, which):
    start = time.monotonic()
    if which == "rest":
        # tests of C++ kernels are there
        extension(settings, 60)
    paths, words = SETS[which]
    if settings.brief:
        paths, words = PATHS[:1], BRIEF
    limits = {"inside": settings.brief, "seconds": settings.seconds - (time.monotonic() - start)}
    counts, groups, skips, lines = run_tests(paths, words, [], **limits)
    return found(counts, groups, skips, lines)


def found(counts, groups, skips, lines):
    """What came of ``run_tests``; it is not ok if a test was skipped that could have run."""
    # without a GPU there may be a build without CUDA
    wrong = [
        reason
        for reason in skips
        if not no_gpu.INSTALLED and not any(excuse in reason for excuse in EXCUSES)
    ]
    lines = [
        ", ".join(f"{n} {name}" for name, n in counts.items()),
        *lines,
        *(f"{n} x {' '.join(group)}" for group, n in groups.most_common()),
        *(f"{skips[reason]} wrongly skipped: {reason}" for reason in wrong),
        *(f"{n} skipped: {reason}" for reason, n in skips.items() if reason not in wrong),
    ]
    good = counts["passed"] and not counts["failed"] and not wrong
    return Found(lines, {"counts": dict(counts), "skips": dict(skips)}, bool(good))


def run_tests(paths, words, arguments, inside=False, without_gpu=None, seconds=None):
    """Run tests that need a GPU; what came of them.

    Args:
        paths, words: which, as pytest takes them.
        arguments: further ones of pytest.
        inside: in this process.
        without_gpu: on a GPU that is not there; None: if the caller is.
        seconds: after which they are interrupted, if not inside; those that ended count.

    Returns:
        Counts, groups of failures, reasons of skips, and what else is to be said.
    """
    if without_gpu is None:
        without_gpu = no_gpu.INSTALLED
    plugin = "bench.no_gpu.installed" if without_gpu else "bench.source_tree"
    if without_gpu:
        words = f"({words or 'test'}) and not ({UNREAL})"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.xml")
        options = [
            *("-p", plugin, "-m", "gpu", "-q", "--tb=short", f"--junitxml={path}"),
            *("--timeout=60", "--maxfail=60", "-p", "no:cacheprovider"),
            *(["-k", words] if words else []),
            *([] if inside else ["-n", str(min(8, os.cpu_count())), "--dist=worksteal"]),
        ]
        command = [*options, *paths, *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "EMANEST_BACKEND"}
        if inside:
            import pytest

            os.environ.pop("EMANEST_BACKEND", None)
            with contextlib.chdir(ROOT):
                status = int(pytest.main(command))
        else:
            environment["EMANEST_REQUIRE_EXTENSION"] = "1"
            pytest = [sys.executable, "-m", "pytest", *command]
            status = interrupted(pytest, seconds, cwd=ROOT, env=environment)
        cases = list(ElementTree.parse(path).iter("testcase")) if path.exists() else []
    counts = collections.Counter(passed=0, failed=0, skipped=0)
    groups, skips = collections.Counter(), collections.Counter()
    for case in cases:
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        for child in bad[:1]:
            groups[group(case, child)] += 1
        if skipped is not None:
            skips[skipped.get("message", "")] += 1
        counts["failed" if bad else "passed" if skipped is None else "skipped"] += 1
    # 1: some failed. Anything else is no result of all
    lines = [] if status in (0, 1) else [f"pytest ended with status {status}"]
    if status not in (0, 1):
        counts["failed"] += 1
    return counts, groups, skips, lines


def interrupted(command, seconds, **options):
    """Run a command, which is interrupted when it takes longer; its status."""
    process = subprocess.Popen(command, **options)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        # pytest then writes what it has
        process.send_signal(signal.SIGINT)
        return process.wait()


def group(case, failure):
    """Where, what kind and what it says, but for numbers and what a test was given."""
    message = (failure.get("message") or "-").splitlines()[0]
    kind, _, rest = message.partition(": ")
    where = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name').partition('[')[0]}"
    return Group(where, kind, re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", rest)[:LONGEST])


def main(arguments):
    which = arguments.pop(0) if arguments and arguments[0] in SETS else "all"
    came = found(*run_tests(*SETS[which], arguments))
    print(*came.lines, sep="\n")
    return int(not came.ok)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
