# SPDX-License-Identifier: MIT
"""What lies in the cache for other torches, Pythons and sources, and its removal when asked for.

Nothing is removed unasked: other environments may still use it, one may come back to it after
years, and a process of another machine that has it loaded from a network file system may crash.
"""

import contextlib
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from . import places, sources

_HASH = re.compile(r"[0-9a-f]{16}")


class Build(NamedTuple):
    """A folder of the cache, with what was built for another torch or Python, or of other sources.

    Attributes:
        folder: its path.
        size: bytes in it.
    """

    folder: Path
    size: int

    def __str__(self):
        # another Python's has another name
        built = [path for path in self.folder.glob("_C.*") if path.suffix != ".failed"]
        its = [f"torch {sources.marked(path)[1]}, {path.name}" for path in built]
        return f"{self.folder} ({', '.join(its) or 'no extension'}, {megabytes([self])})"


def others(current):
    """The builds in the cache beside the current one, by their names.

    Args:
        current: the path of the extension that is wanted here, from ``places.cached``.
    """
    kept, cache = current.parent, current.parents[1]
    folders = sorted(cache.iterdir()) if cache.exists() else []
    return [
        Build(folder, _size(folder))
        for folder in folders
        if _HASH.fullmatch(folder.name) and folder != kept and not folder.is_symlink()
    ]


def remove(build):
    """Remove a build, unless a process is building it.

    Returns:
        Whether it was removed.

    Raises:
        OSError: it could not be, or not all of it.
    """
    with places.lock_if_free(build.folder) as free:
        if not free:
            return False
        lock = build.folder / places.LOCK
        for path in build.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != lock:
                path.unlink()
        # last, and while it is held: who waits for it then sees that it is nobody's
        lock.unlink()
    # not if a builder has come meanwhile
    with contextlib.suppress(OSError):
        build.folder.rmdir()
    return True


def megabytes(builds):
    """The size of builds together, in words."""
    return f"{sum(build.size for build in builds) / 1e6:.1f} MB"


def _size(folder):
    total = 0
    for path in folder.rglob("*"):
        # a builder moves and removes files
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total
