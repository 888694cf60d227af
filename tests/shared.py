# SPDX-License-Identifier: MIT
"""What takes long to make is made once in a session of tests, however many processes it has."""

import os

import filelock


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
