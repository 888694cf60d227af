# SPDX-License-Identifier: MIT
"""Texts of bytes that a machine may have: Python's sources, a folder, prose, documentation."""

import gzip
import hashlib
import pathlib
import platform
import re
import sysconfig
import zlib

import torch

from .errors import DataError, existing, whole
from .text import from_texts

# not part of the library itself, or (tests) too repetitive to be a fair sample of its text
SKIPPED = {"__pycache__", "dist-packages", "lib-dynload", "site-packages", "test", "tests"}
DOCS = pathlib.Path("/usr/share/doc")
PACKED = {".rst", ".txt", ".gz"}


def python():
    """The running Python's standard library: its ``.py`` files, without tests."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    name = f"Python {platform.python_version()} standard library"
    return from_texts(_read(_python_files(folder), folder), name, folder)


def installed_python(limit, folders=None):
    """``.py`` files of the standard library and of installed packages, without tests.

    Args:
        limit: bytes to stay within, training and validation together. Files are taken in the
            order of the hashes of their paths, and left out where they no longer fit.
        folders: of packages; None: those of the running Python.
    """
    whole("limit", limit)
    if folders is None:
        names = ("stdlib", "purelib", "platlib")
        # where a distribution keeps packages elsewhere, torch is one of them
        folders = [*map(sysconfig.get_path, names), pathlib.Path(torch.__file__).parents[1]]
    folders = dict.fromkeys(pathlib.Path(folder).resolve() for folder in folders)
    ordered, left = {}, limit
    for folder in folders:
        for path in _python_files(folder):
            key = hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest()
            ordered.setdefault((key, path), path.stat().st_size)
    chosen = []
    for (_, path), size in sorted(ordered.items()):
        if size <= left:
            chosen.append(path)
            left -= size
    name = f"Python {platform.python_version()} and installed packages"
    place = " and ".join(map(str, folders))
    return from_texts(_read(chosen, place), name, place)


def folder(path):
    """Every text file below a folder; hidden files and files with zero bytes are left out."""
    path = pathlib.Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; give the path of a folder of text files")
    found = (
        file
        for file in path.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    return from_texts(_read(found, path), str(path), path)


def linux_docs(path=None):
    """The documentation of the Linux kernel: its ``.rst`` and ``.txt`` files, packed or not.

    Args:
        path: folder of the documentation; None: Debian's package linux-doc, of the newest kernel
            where there are several, since their texts are nearly the same.
    """
    remedy = "apt install linux-doc, or give the path of the folder Documentation of its sources"
    newest = sorted(DOCS.glob("linux-doc-*/Documentation"), key=_numbers)[-1:]
    places = newest or [DOCS / "linux-doc-*" / "Documentation"]
    place = existing(path, places, "the documentation of Linux", remedy)
    found = (file for end in ("rst", "txt") for file in place.rglob(f"*.{end}*"))
    # Debian has them once more as pages for a browser, with their sources
    wanted = (
        file
        for file in found
        if file.suffix in PACKED and "html" not in file.relative_to(place).parts
    )
    return from_texts(_read(wanted, place), f"Linux documentation ({place.parent.name})", place)


def _numbers(path):
    """The numbers in a path, so that 6.12 comes after 6.1."""
    return [int(each) for each in re.findall(r"\d+", str(path))]


def _python_files(folder):
    return (p for p in folder.rglob("*.py") if not SKIPPED & set(p.relative_to(folder).parts))


def _read(paths, place):
    try:
        return [_content(path) for path in paths if path.is_file()]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{place} has a file that cannot be read: {error}; remove it") from error


def _content(path):
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content
