# SPDX-License-Identifier: MIT
"""Where the extension lies: in the package if it was installed with it, else in a cache."""

import contextlib
import os
from pathlib import Path

from . import sources

NAME = f"_C{sources.SUFFIX}"
LOCK = "lock"


def installed():
    """Path of the extension in the package; it need not exist."""
    return sources.PACKAGE / NAME


def cached(fitting):
    """Path of the extension in the cache, in a folder named by its hash; it need not exist.

    None where there is no cache: XDG_CACHE_HOME says none, and the user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    # as the specification has it: one that is not absolute does not count
    home = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    # code must not be taken from wherever Python was started
    return Path(home, "emanest", fitting, NAME) if os.path.isabs(home) else None


# ---- why there is none, beside where it would be ------------------------------------------------


def failure(path):
    """Why the last build of a file failed; None if it did not."""
    try:
        return " ".join(_record(path).read_text().split()) or None
    except OSError:
        return None


def note_failure(path, reason):
    """Leave beside a file why its build failed; None: it did not."""
    if reason is None:
        _record(path).unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        _record(path).write_text(f"{reason}\n")


def _record(path):
    return path.parent / "_C.failed"


# ---- one builder at a time ----------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder, say):
    """Hold the lock of a folder, which its holder's death frees; a line says if another has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOCK, "w") as file:
            if not _taken(file):
                say("another process is building it: waiting")
                _taken(file, wait=True)
            # whoever had it may have removed the folder, and this file with it
            if _is_there(file, folder / LOCK):
                yield
                return


@contextlib.contextmanager
def lock_if_free(folder):
    """Hold the lock of a folder that exists; what comes is whether it could be had."""
    with open(folder / LOCK, "w") as file:
        yield _taken(file) and _is_there(file, folder / LOCK)


def _taken(file, wait=False):
    """Take the lock of an open file; whether it could be had, which it can for whoever waits."""
    try:
        import fcntl
    except ImportError:
        # of Windows, where nothing is built
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is_there(file, path):
    """Whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
