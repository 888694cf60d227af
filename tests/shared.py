# SPDX-License-Identifier: MIT
"""What takes long to make is made once in a session of tests, however many processes it has."""

import os
import shutil
from pathlib import Path

import filelock

KERNELS = Path(__file__).parents[1] / "build" / "kernels"
# kernels of a cache, ten times those of today: the others are of sources that are no more
MOST = 1000


def once(tmp_path_factory, name, make):
    """A file under a name, which ``make(path)`` writes if no process has done so yet."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # that of the session: each worker has one of its own below it
        folder = folder.parent
    path = folder / name
    with filelock.FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path


def kernel_cache(name):
    """A cache of Triton's that stays: a kernel is compiled anew once its source or Triton changes.

    For ``once``, since processes that share it must not empty it at the same time.
    """
    folder = KERNELS / name
    if folder.exists() and len(os.listdir(folder)) > MOST:
        shutil.rmtree(folder)
    return str(folder)
