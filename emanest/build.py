# SPDX-License-Identifier: MIT
"""``python -m emanest.build``: build the extension for the torch that is installed.

It goes to a cache of the user, $XDG_CACHE_HOME/emanest/HASH/ (by default ~/.cache/emanest/HASH/),
where emanest finds it: the package itself may be anywhere, and need not be writable. It takes one
to two minutes of all cores, and a C++ compiler. Exit status 0: there is an extension; 1: there is
none, for the reason given. EMANEST_CUDA: 1 demands CUDA, 0 leaves it out; else it is in where torch
has it and nvcc is there. What is built for another torch or Python, or of other sources, lies
beside it, for environments that use it, until --clean removes it.
"""

import argparse
import os
import shutil
import subprocess
import sys

import torch

from .extension import cleaning, compiling, cuda, places, sources
from .extension.running import BuildError

LOG, OBJECTS, NEW = "build.log", "objects", "new"

# in a process of its own: here another one may be loaded
_LOAD = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("emanest._C", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


def main(arguments=None):
    """Build the extension if there is none that fits; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m emanest.build", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--force", action="store_true", help="build it even if there is one")
    what.add_argument(
        "--clean", action="store_true", help="build nothing; remove all others from the cache"
    )
    given = parser.parse_args(arguments)
    try:
        return _clean() if given.clean else _provide(given.force)
    except BuildError as error:
        print(f"emanest: {error}", file=sys.stderr)
        return 1


def _provide(force):
    """Build the extension if there is none that fits, or by force; return the exit status."""
    there, reason = _loaded()
    if there and cuda.required() and not _has_cuda():
        reason = f"EMANEST_CUDA is 1, and {there} has no CUDA"
    if reason:
        _say(reason)
    elif not force:
        _say(f"already built: {there}")
        return 0
    path = build(_say)
    if there and there != str(path):
        _say(f"as long as {there} fits, that is used, not this one")
    if left := cleaning.others(path):
        _say(
            f"{len(left)} of other sources, or for another torch or Python, take "
            f"{cleaning.megabytes(left)} beside it: `python -m emanest.build --clean` removes them"
        )
    return 0


def _clean():
    """Remove from the cache all builds but the one that is wanted here; return the exit status."""
    current = _target()
    left = cleaning.others(current)
    if not left:
        _say(f"nothing to remove in {current.parents[1]}")
    for each in left:
        try:
            # once it is gone nothing is known of it
            what, removed = str(each), cleaning.remove(each)
        except OSError as error:
            raise BuildError(
                f"cannot remove {each.folder} ({error.strerror or error}): remove it by hand"
            ) from error
        _say(f"removed {what}" if removed else f"left {what}: another process is building it")
    return 0


def build(say):
    """Build the extension into the cache, unless another process does so meanwhile; its path.

    Raises:
        BuildError: it cannot be built, or what was built cannot be loaded.
    """
    target = _target()
    before = _state(target)
    try:
        with places.locked(target.parent, say):
            # none, where there was one: it was removed
            if _state(target) not in (None, before):
                say(f"another process has built it: {target}")
            else:
                _build(target, say)
    except OSError as error:
        raise BuildError(
            f"cannot write to {target.parent} ({error.strerror or error}): set XDG_CACHE_HOME to a "
            "folder that can be written, here and wherever emanest is used"
        ) from error
    return target


def _target():
    """Path in the cache of the extension that is wanted here; it need not exist."""
    fitting = sources.wanted(str(torch.__version__))
    if fitting is None:
        raise BuildError(sources.MISSING)
    target = places.cached(fitting)
    if target is None:
        raise BuildError("this user has no home: set XDG_CACHE_HOME to the path of a folder")
    return target


def _build(target, say):
    log = target.parent / LOG
    places.note_failure(target, None)
    try:
        with open(log, "w") as lines:

            def told(line):
                say(line)
                print(line, file=lines, flush=True)

            say(f"building for torch {torch.__version__}, in {target.parent}")
            # what does not load must not replace what does
            new = target.parent / NEW / target.name
            seconds = compiling.build(new, target.parent / OBJECTS, told)
        _try(new)
        os.replace(new, target)
    except BuildError as error:
        if error.output:
            log.write_text(error.output)
        places.note_failure(target, f"{error}; {log} has all of it" if error.output else str(error))
        raise BuildError(places.failure(target)) from error
    for left in (OBJECTS, NEW):
        shutil.rmtree(target.parent / left, ignore_errors=True)
    say(f"built in {seconds:.0f} s: {target}")


def _loaded():
    """Path of the extension that emanest uses, and None; or None and why there is none."""
    try:
        from .extension.loaded import _C
    except ImportError as error:
        return None, str(error)
    return str(_C.__file__), None


def _has_cuda():
    from .extension.loaded import _C

    return _C.build_info()["cuda"]


def _try(path):
    """Raise BuildError unless a built extension can be loaded."""
    command = [sys.executable, "-c", _LOAD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BuildError(f"it was built, and cannot be loaded: {lines[-1]}", done.stderr)


def _state(path):
    """What tells a file from another in its place; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _say(line):
    print(f"emanest: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
