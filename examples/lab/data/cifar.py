# SPDX-License-Identifier: MIT
"""CIFAR-10 and CIFAR-100 from their archives, the one for Python or the one of bytes."""

import io
import pathlib
import pickle
import tarfile
from typing import NamedTuple

import numpy as np

from .errors import DataError
from .image_sets import CACHES
from .images import from_arrays

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


class Layout(NamedTuple):
    """An archive: its folder, the files of each side, and how they are read."""

    archive: str
    folder: str
    train: list[str]
    test: list[str]
    read: object


class Arrays(pickle.Unpickler):
    """Unpickles dictionaries of lists, texts and arrays, and nothing that could run code."""

    ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        """What the pickle names, if CIFAR's pickles name it."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"names {module}.{name}, which CIFAR's files do not")
        return self.ALLOWED[module, name]


def _from_pickle(labels):
    def read(content):
        # written by Python 2, whose texts are bytes
        found = Arrays(io.BytesIO(content), encoding="latin1").load()
        return found["data"], found[labels]

    return read


def _from_bytes(before):
    def read(content):
        rows = np.frombuffer(content, np.uint8).reshape(-1, before + PIXELS)
        # the last of the labels is the finest
        return rows[:, before:], rows[:, before - 1]

    return read


BATCHES = [f"data_batch_{k}" for k in range(1, 6)]
LAYOUTS = {
    10: [
        Layout(
            "cifar-10-python.tar.gz",
            "cifar-10-batches-py",
            BATCHES,
            ["test_batch"],
            _from_pickle("labels"),
        ),
        Layout(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            [f"{name}.bin" for name in BATCHES],
            ["test_batch.bin"],
            _from_bytes(1),
        ),
    ],
    100: [
        Layout(
            "cifar-100-python.tar.gz",
            "cifar-100-python",
            ["train"],
            ["test"],
            _from_pickle("fine_labels"),
        ),
        Layout(
            "cifar-100-binary.tar.gz",
            "cifar-100-binary",
            ["train.bin"],
            ["test.bin"],
            _from_bytes(2),
        ),
    ],
}


def cifar10(path=None):
    """CIFAR-10: 60,000 photographs of 10 kinds of things, 32 x 32.

    Args:
        path: of an archive, of the folder that it unpacks to, or of a folder with one of these,
            such as torchvision's ``root``; None: ``build/data``, ``data`` or ``~/data``.
    """
    return _load(10, path)


def cifar100(path=None):
    """CIFAR-100: 60,000 photographs of 100 kinds of things, 32 x 32; ``path`` as for CIFAR-10."""
    return _load(100, path)


def _load(classes, path):
    places = [pathlib.Path(path).expanduser()] if path is not None else CACHES
    for place in places:
        for layout in LAYOUTS[classes]:
            for found in (place, place / layout.folder, place / layout.archive):
                opened = _open(found, layout)
                if opened is not None:
                    return _images(classes, layout, opened, found)
    names = " or ".join(layout.archive for layout in LAYOUTS[classes])
    raise DataError(
        f"CIFAR-{classes} is not in {' or '.join(map(str, places))}; put {names} there, from "
        "https://www.cs.toronto.edu/~kriz/cifar.html, or give the path of it"
    )


def _open(place, layout):
    """The contents of the files of a layout by name; None: they are not here."""
    wanted = [*layout.train, *layout.test]
    if place.is_dir():
        if not (place / wanted[0]).is_file():
            return None
        missing = [name for name in wanted if not (place / name).is_file()]
        if missing:
            raise DataError(f"{place} has no {missing[0]}; unpack {layout.archive} again")
        return {name: (place / name).read_bytes() for name in wanted}
    if not place.is_file():
        return None
    try:
        with tarfile.open(place) as archive:
            members = {f"{layout.folder}/{name}": name for name in wanted}
            # in the order in which they lie there: going back means unpacking again
            found = {
                members[member.name]: archive.extractfile(member).read()
                for member in archive
                if member.isfile() and member.name in members
            }
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{place} cannot be unpacked: {error}; get it again") from error
    # the archive of the other layout is asked for by the same path
    if not found:
        return None
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{place} has no {layout.folder}/{missing[0]}; get it again")
    return found


def _images(classes, layout, contents, place):
    sides = []
    for names in (layout.train, layout.test):
        pixels, labels = [], []
        for name in names:
            try:
                data, kinds = layout.read(contents[name])
                pixels.append(np.asarray(data, np.uint8).reshape(-1, *SHAPE))
                labels.append(np.asarray(kinds, np.int64))
            except (pickle.UnpicklingError, KeyError, EOFError, ValueError, TypeError) as error:
                raise DataError(f"{place} has {name}, which is not CIFAR's: {error}") from error
        sides.append((np.concatenate(pixels), np.concatenate(labels)))
    return from_arrays(f"CIFAR-{classes}", classes, *sides, place=place)
