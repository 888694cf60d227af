# SPDX-License-Identifier: MIT
"""Packages, version and extension, which pyproject.toml cannot express.

``kernels/`` and ``csrc/`` install as folders of the package. ``emanest/extension/``, loaded by its
path, knows how ``emanest._C`` is built; that needs torch, so ``pip install --no-build-isolation``.
Without torch or a compiler the package is pure Python, has the reason in it, and
``python -m emanest.build`` builds the extension later.

Environment:
    EMANEST_CUDA: 0 leaves CUDA out, 1 demands it; else it is in where torch has it and nvcc is.
    EMANEST_REQUIRE_EXTENSION=1: an extension that cannot be built is an error, not a warning.
"""

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).absolute().parent


def extension_modules():
    """Modules of ``emanest.extension`` under another name, so that no torch is imported."""
    name = "emanest_extension"
    if name not in sys.modules:
        folder = ROOT / "emanest" / "extension"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return [
        importlib.import_module(f"{name}.{part}") for part in ("compiling", "places", "sources")
    ]


compiling, places, sources = extension_modules()


# ---- the version --------------------------------------------------------------------------------

FIRST = "0.1.0"
# of a tag that counts: a release, or one that is tried first; others, such as v1.2.3-beta, do not
NUMBERS = r"\d+\.\d+\.\d+(?:rc\d+)?"


def version(root=ROOT):
    """The version: of the archive that this is, else from git's tags, else of a tree without both.

    The tag v1.2.3 makes 1.2.3; what comes later, or is changed, is 1.2.4.devN+gCOMMIT.
    """
    archived = root / "PKG-INFO"
    said = archived.read_text() if archived.exists() else ""
    if found := re.search(r"^Version: (\S+)$", said, re.MULTILINE):
        return found[1]
    # that of a repository around this folder is not its own
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return f"{FIRST}.dev0"
    described = _git(root, "describe", "--tags", "--long", "--dirty", "--match", "v[0-9]*")
    found = re.fullmatch(rf"v({NUMBERS})-(\d+)-(g[0-9a-f]+)(-dirty)?", described or "")
    if found is None:
        count, commit = _git(root, "rev-list", "--count", "HEAD"), _git(root, "rev-parse", "HEAD")
        return f"{FIRST}.dev{count}+g{commit[:7]}" if count and commit else f"{FIRST}.dev0"
    tag, commits, commit, dirty = found.groups()
    if commits == "0" and not dirty:
        return tag
    following = re.sub(r"\d+$", lambda number: str(int(number[0]) + 1), tag)
    return f"{following}.dev{commits}+{commit}{'.dirty' if dirty else ''}"


def _git(root, *arguments):
    """What git says; None if it is not there or does not know."""
    # a hook of git's is told of another repository by such variables
    others = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=root, env=others, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# ---- commands -----------------------------------------------------------------------------------


class Build(build_ext):
    """Build the extension; where it cannot be, leave the reason and go on without."""

    def run(self):
        folder = ROOT / "emanest" if self.inplace else Path(self.build_lib, "emanest")
        target = folder / places.NAME
        # pip's folder for temporary things is another each time
        objects = ROOT / "build" / "objects" if self.inplace else self.build_temp
        try:
            compiling.build(target, objects, say)
        except Exception as error:
            print(getattr(error, "output", ""), file=sys.stderr)
            give_up(error)
            if not self.inplace:
                # of an earlier build
                target.unlink(missing_ok=True)
            places.note_failure(target, str(error))
            # a wheel is then tagged as pure
            self.extensions = self.distribution.ext_modules = []
        else:
            places.note_failure(target, None)


class Wheel(bdist_wheel):
    """A wheel that is pure if, when all is built, there is no extension."""

    root_is_pure = property(
        lambda self: not self.distribution.has_ext_modules(), lambda self, value: None
    )


class Sources(build_py):
    """Files of Python; of ``csrc``, whose scripts are for development, none."""

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [] if package == "emanest.csrc" else found


def say(line):
    print(f"emanest: {line}", flush=True)


def give_up(error):
    """Go on without the extension, with one warning; the error itself where it is required."""
    if os.environ.get("EMANEST_REQUIRE_EXTENSION") == "1":
        raise error
    message = f"installing the pure Python package, the extension cannot be built: {error}"
    warnings.warn(f"emanest: {message}", stacklevel=2)


# pip runs this file under that name too; the tests do not
if __name__ == "__main__":
    setup(
        version=version(),
        packages=[
            *find_packages(include=["emanest", "emanest.*"]),
            *("emanest.kernels", "emanest.csrc"),
        ],
        package_dir={"emanest": "emanest", "emanest.kernels": "kernels", "emanest.csrc": "csrc"},
        package_data={
            "emanest": ["py.typed", "*.pyi"],
            "emanest.kernels": ["tiles.json"],
            "emanest.csrc": ["*.h", "*.cpp", "*.cu"],
        },
        ext_modules=[Extension("emanest._C", [f"csrc/{name}.cpp" for name in sources.NAMES])],
        cmdclass={"build_ext": Build, "bdist_wheel": Wheel, "build_py": Sources},
    )
