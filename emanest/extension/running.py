# SPDX-License-Identifier: MIT
"""Commands of a build: objects in parallel, each made again only if what it is made of changed."""

import hashlib
import os
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple


class BuildError(Exception):
    """A build that failed. Its text is one line; ``output`` is all that the command said."""

    def __init__(self, reason, output=""):
        super().__init__(reason)
        self.output = output


class Job(NamedTuple):
    """The command that makes an object file, and what decides whether it is to be made again."""

    command: list[str]
    target: Path
    folder: Path  # where the command runs
    made_of: list[Path]  # the source, and all that it may include
    facts: tuple[str, ...] = ()  # whatever else a change of matters: versions


def output_of(command, folder=None):
    """All that a command says; BuildError with its first complaint if it fails."""
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{name} does not run: {error}") from error
    output = done.stdout + done.stderr
    if done.returncode:
        lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        complaint = next(iter(errors or lines[-1:]), "it says nothing")
        raise BuildError(f"{name} failed with status {done.returncode}: {complaint}", output)
    return output


def make(job):
    """Make an object file, unless it is there and made of what is there now.

    Returns:
        What the command said; None where it was not needed.
    """
    record = job.target.with_suffix(".made_of")
    # not by times: a header that is brought back, or copied with its time, is older than the object
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in job.made_of]
    paths = [os.path.relpath(path, job.folder) for path in job.made_of]
    lines = [shlex.join(job.command), *job.facts]
    text = "\n".join([*lines, *map("{} {}".format, digests, paths)])
    # written last, so that it vouches for the object
    if job.target.exists() and record.exists() and record.read_text() == text:
        return None
    job.target.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    output = output_of(job.command, job.folder)
    record.write_text(text)
    return output


def run_all(works, say):
    """Do independent work on all cores, or as many at once as MAX_JOBS says; one line for each.

    Args:
        works: name -> function of no argument, which returns what ``make`` does.
        say: takes a line of progress.

    Raises:
        BuildError: of the first that fails; those that have not begun then never do.
    """

    def timed(work):
        start = time.monotonic()
        return work(), time.monotonic() - start

    with ThreadPoolExecutor(_at_once()) as pool:
        names = {pool.submit(timed, work): name for name, work in works.items()}
        try:
            for count, future in enumerate(as_completed(names), 1):
                output, seconds = future.result()
                took = "unchanged" if output is None else f"{seconds:.1f} s"
                say(f"[{count}/{len(works)}] {names[future]}  {took}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _at_once():
    given = os.environ.get("MAX_JOBS", "")
    if given.isdigit() and int(given):
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
