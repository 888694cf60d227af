# SPDX-License-Identifier: MIT
"""Sets of images that a machine may have: Fashion-MNIST and other IDX files, and digits."""

import gzip
import math
import pathlib
import zlib

import numpy as np

from .errors import DataError, existing
from .images import from_arrays

# where Debian's package dataset-fashion-mnist puts them
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
# below where torchvision keeps the data sets of a program
TORCHVISION = pathlib.Path("FashionMNIST", "raw")
CACHES = [pathlib.Path("build", "data"), pathlib.Path("data"), pathlib.Path("~/data").expanduser()]
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "validation": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def fashion_mnist(path=None):
    """Fashion-MNIST: 70,000 pictures of clothes, 28 x 28.

    Args:
        path: folder of the four files, or the folder that was torchvision's ``root``; None:
            Debian's, or torchvision's below ``build/data``, ``data`` or ``~/data``.
    """
    remedy = "apt install dataset-fashion-mnist, or give the path of the folder of its IDX files"
    places = [DEBIAN, *(cache / TORCHVISION for cache in CACHES)]
    folder = existing(path, places, "Fashion-MNIST", remedy)
    if (folder / TORCHVISION).is_dir():
        folder /= TORCHVISION
    return _from_idx(folder, "Fashion-MNIST", remedy)


def idx(path):
    """Any set in the four files of MNIST, as MNIST and KMNIST are."""
    remedy = "give the path of a folder of MNIST's four files"
    return _from_idx(existing(path, (), "the folder of IDX files", remedy), str(path), remedy)


def digits():
    """scikit-learn's digits: 1,797 of 8 x 8 pixels from 0 to 16, the last fifth to validate on."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("scikit-learn is not installed; pip install scikit-learn") from error
    found = load_digits()
    images, labels = found.images[:, None], found.target
    cut = len(images) * 4 // 5
    sides = ((images[part], labels[part]) for part in (slice(cut), slice(cut, None)))
    return from_arrays("digits", 10, *sides)


def _from_idx(folder, name, remedy):
    sides = []
    for files in FILES.values():
        images, labels = (read_idx(_file(folder, file, remedy)) for file in files)
        if images.ndim != 3 or labels.ndim != 1:
            raise DataError(
                f"{folder} has images of shape {images.shape} and labels of shape {labels.shape}; "
                "MNIST's are (n, height, width) and (n,)"
            )
        sides.append((images[:, None], labels))
    classes = 1 + max(int(labels.max(initial=0)) for _, labels in sides)
    return from_arrays(name, classes, *sides, place=folder)


def _file(folder, name, remedy):
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataError(f"{folder} has no {name} and no {name}.gz; {remedy}")


def read_idx(path):
    """The array of bytes of an IDX file, as it is or packed with gzip."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; get it again") from error
    # two zero bytes, the type (8: bytes), the number of dimensions; each dimension in 4 bytes
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} begins with {content[:4]!r}; an IDX file of bytes with 00 00 08")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} ends within its header; get it again")
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    values = np.frombuffer(content[start:], np.uint8)
    if values.size != math.prod(shape):
        raise DataError(f"{path} says shape {shape} and has {values.size} bytes; get it again")
    return values.reshape(shape)
