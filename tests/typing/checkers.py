# SPDX-License-Identifier: MIT
"""Runs of mypy and pyright over files of users' code, as a user of the installed package has them.

Both find emanest on PYTHONPATH, as in site-packages: by its annotations alone, since it has a
py.typed, and without errors of its own.
"""

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pages import ROOT

CACHE = ROOT / "build" / "mypy"  # of all runs: without it mypy takes three times as long
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
}

# strict, but for what is not ours: functions of the user's own; torch's, which are partly without
# annotations, and in packages that do not list what they export; classes of untyped frameworks
MYPY = """\
[mypy]
strict = True
allow_untyped_defs = True
allow_incomplete_defs = True
allow_redefinition = True
disallow_subclassing_any = False
cache_dir = {cache}
untyped_calls_exclude = {modules}
[mypy-torch.*]
implicit_reexport = True
# they have no annotations for others: no py.typed
[mypy-accelerate.*,torchtitan.*]
ignore_missing_imports = True
"""
# likewise; that nothing of emanest's is unknown, test_completeness.py says
NOT_OURS = [
    *("reportMissingParameterType", "reportUnknownParameterType", "reportUnknownLambdaType"),
    *("reportUnknownArgumentType", "reportUnknownVariableType", "reportUnknownMemberType"),
    *("reportMissingTypeStubs", "reportMissingTypeArgument", "reportPrivateImportUsage"),
    # of preambles
    *("reportUnusedImport", "reportDuplicateImport", "reportPrivateUsage"),
]
PYRIGHT = {"include": ["."], "typeCheckingMode": "strict", **dict.fromkeys(NOT_OURS, False)}
SAID = re.compile(r"(?P<file>\w+)\.py:(?P<line>\d+): error: (?P<text>.*)  \[(?P<code>[\w-]+)\]$")


class Finding(NamedTuple):
    """An error that a checker reports."""

    module: str
    line: int
    code: str
    text: str


def write(folder, files):
    """Write modules, name -> text, and the checkers' configurations, to a folder of this run."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    modules = ", ".join(["torch", *files])
    (folder / "mypy.ini").write_text(MYPY.format(cache=CACHE, modules=modules))
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))


@contextlib.contextmanager
def cache_of_ones_own():
    """Hold mypy's cache, a database which two that write it at once may spoil, or wait for it."""
    CACHE.parent.mkdir(exist_ok=True)
    with open(CACHE.with_name("mypy.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _output(folder, *command):
    """What a checker writes; 0 is no error, 1 is errors in the files, others are its own."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def mypy(folder):
    """What mypy reports of the files that ``write`` wrote to a folder."""
    # by their names alone: where the folder is, is nothing to the cache
    files = [path.name for path in folder.glob("*.py")]
    with cache_of_ones_own():
        output = _output(folder, "mypy", *files)
    lines = [line for line in output.splitlines() if ": error: " in line]
    matches = [SAID.match(line) for line in lines]
    if None in matches:
        raise RuntimeError("mypy reports an error elsewhere:\n" + "\n".join(lines))
    return [Finding(m["file"], int(m["line"]), m["code"], m["text"]) for m in matches if m]


def pyright(folder):
    """What pyright reports of them."""
    found = json.loads(_output(folder, "pyright", "--outputjson"))["generalDiagnostics"]
    return [
        Finding(
            Path(each["file"]).stem,
            each["range"]["start"]["line"] + 1,
            each.get("rule", "syntax"),
            each["message"].splitlines()[0],
        )
        for each in found
        if each["severity"] == "error"
    ]


def completeness(folder):
    """How much of emanest has annotations, as pyright finds it from a folder."""
    command = ("pyright", "--verifytypes", "emanest", "--ignoreexternal", "--outputjson")
    return json.loads(_output(folder, *command))["typeCompleteness"]


CHECKERS = {"mypy": mypy, "pyright": pyright}
