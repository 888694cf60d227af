# SPDX-License-Identifier: MIT
"""Where the extension lies: in the package if it was installed with it, else in a cache."""

import contextlib
import os
from pathlib import Path

from . import sources

NAME = f"_C{sources.SUFFIX}"


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
    try:
        import fcntl
    except ImportError:
        # of Windows, where nothing is built
        yield
        return
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building it: waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
