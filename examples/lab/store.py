# SPDX-License-Identifier: MIT
"""Stored runs: one line of JSON each, in one file for each experiment."""

import contextlib
import fcntl
import functools
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

from .settings import key

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / "build" / "lab"  # locks, and runs that are not done
CPU = torch.device("cpu")
# what a run does not depend on
OUTSIDE = [":!examples/lab/results", ":!docs", ":!README.md", ":!CHANGELOG.md", ":!tests"]


class Store:
    """The lines of all experiments in a folder.

    A run is done once, whatever experiments ask for it: its line is found in any file.

    Args:
        folder: of the files, ``<experiment>.jsonl``.
        work: a folder for what is in progress.
        commit, data: whose lines count, those of a commit and of data with a digest; None: of any,
            the last of a run that has several.
    """

    def __init__(self, folder=RESULTS, work=WORK, commit=None, data=None):
        self.folder, self.work = Path(folder), Path(work)
        self.wanted = {"commit": commit, "data": data}
        for each in (self.folder, self.work):
            each.mkdir(parents=True, exist_ok=True)
        self._read = {}  # path -> its size when read, lines by key

    def lines(self):
        """Every line by the key of its settings; of several, the last."""
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            size = path.stat().st_size
            if self._read.get(path, (None,))[0] != size:
                counting = (line for line in read(path) if self.counts(line))
                self._read[path] = size, {line["key"]: line for line in counting}
            found.update(self._read[path][1])
        return found

    def counts(self, line):
        return all(value in (None, line["where"][name]) for name, value in self.wanted.items())

    def of_data(self, digest):
        """The same store, but only lines of data with this digest count."""
        return Store(self.folder, self.work, self.wanted["commit"], digest)

    def find(self, settings):
        """The line of a run, or None."""
        return self.lines().get(key(settings))

    def add(self, experiment, settings, result, data, device=CPU, **how):
        """Write a line, whole or not at all as seen by every reader.

        Args:
            data: digest of what was trained on.
            device: that it was done on.
            how: if not by one process that compiled nothing.
        """
        where = {**machine(device), "data": data, **how}
        line = {"key": key(settings), "settings": settings, "where": where, "result": result}
        path = self.folder / f"{experiment}.jsonl"
        text = json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n"
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # after a writer that was killed in the middle of a line
            if file.tell() and _last_byte(file) != b"\n":
                text = "\n" + text
            file.write(text.encode())

    @contextlib.contextmanager
    def claimed(self, settings):
        """Whether this process alone has the run, for the time of the block.

        The claim goes with the process, however it ends.
        """
        with open(self.work / f"{key(settings)}.lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            # another may have done it before it let go
            yield self.find(settings) is None

    def unfinished(self, settings):
        """Where a run that is interrupted is kept; another commit begins it anew."""
        return self.work / f"{key(settings)}-{commit()}.pt"


def read(path):
    """The lines of a file but for one that was cut off."""
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _last_byte(file):
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def machine(device):
    """What a result depends on beside its settings."""
    return {
        "commit": commit(),
        "processor": processor(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@functools.cache  # what is loaded does not change with the tree
def commit():
    """The commit that is checked out, with a plus if files that matter differ from it."""

    def git(*arguments):
        command = ["git", *arguments]
        try:
            found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        except OSError:  # there is no git
            return ""
        return found.stdout.strip()

    if git("rev-parse", "--show-prefix"):
        return "unknown"  # unpacked in a folder of another repository
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *OUTSIDE)
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + "+" * bool(changed)


def processor(device):
    """The name of the GPU that the device is, else of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                capability = torch.backends.cpu.get_cpu_capability()
                return f"{line.split(':')[1].strip()}, {capability}"
    return platform.processor() or platform.machine()
