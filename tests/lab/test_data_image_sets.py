# SPDX-License-Identifier: MIT
"""Sets of images where a machine has them: IDX files, digits."""

import gzip
import struct

import numpy as np
import pytest
import torch

from examples.lab.data import DataError, image_sets, load

DRAW = np.random.default_rng(0)


def idx(array):
    """The bytes of an IDX file."""
    dimensions = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + dimensions + array.astype(np.uint8).tobytes()


SIDES = {
    prefix: (DRAW.integers(256, size=(count, 3, 4)), np.arange(count) % 10)
    for prefix, count in (("train", 12), ("t10k", 5))
}


@pytest.fixture(params=["packed", "plain"])
def mnist(request, tmp_path):
    """The four files of MNIST, with smaller images."""
    for prefix, arrays in SIDES.items():
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays, strict=True):
            content, name = idx(array), f"{prefix}-{kind}-ubyte"
            if request.param == "packed":
                content, name = gzip.compress(content, mtime=0), f"{name}.gz"
            (tmp_path / name).write_bytes(content)
    return tmp_path


def check(found, sides, classes):
    """Images and labels of both sides."""
    assert found.classes == classes
    for side, (images, labels) in zip((found.train, found.validation), sides, strict=True):
        assert side[0].dtype == torch.uint8
        assert torch.equal(side[0].long(), torch.from_numpy(images))
        assert side[1].tolist() == list(labels)


def test_idx_files_are_read(mnist):
    found = load({"name": "idx", "path": mnist})
    check(found, [(images[:, None], labels) for images, labels in SIDES.values()], 10)
    assert found.shape == (1, 3, 4)


def test_fashion_mnist_is_found_where_torchvision_keeps_it(mnist, tmp_path, monkeypatch):
    given = load({"name": "fashion_mnist", "path": mnist})
    raw = tmp_path / "work" / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in mnist.glob("*ubyte*"):
        file.rename(raw / file.name)
    root = tmp_path / "work" / "data"
    assert load({"name": "fashion_mnist", "path": root}).digest == given.digest
    monkeypatch.setattr(image_sets, "DEBIAN", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path / "work")
    assert load({"name": "fashion_mnist"}).digest == given.digest


def test_debians_fashion_mnist_is_the_known_one():
    if not image_sets.DEBIAN.is_dir():
        pytest.skip(f"{image_sets.DEBIAN} is not there: apt install dataset-fashion-mnist")
    found = load({"name": "fashion_mnist"})
    assert [len(found.train[0]), len(found.validation[0])] == [60000, 10000]
    assert (found.shape, found.classes) == ((1, 28, 28), 10)
    assert found.train[1].bincount().tolist() == [6000] * 10
    mean, deviation = found.statistics.flatten().tolist()
    # .2860 and .3530 of 255, as others normalise it
    assert mean == pytest.approx(72.94, abs=0.005)
    assert deviation == pytest.approx(0.3530 * 255, abs=0.02)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\x0d\x01\0\0\0\x01aaaa", ["begins with", "00 00 08"]),
        (b"PK", ["begins with b'PK'"]),
        (idx(np.zeros((2, 3)))[:-1], ["says shape [2, 3]", "5 bytes"]),
        (idx(np.zeros((2, 3)))[:9], ["ends within its header", "get it again"]),
        (gzip.compress(idx(np.zeros((2, 3))), mtime=0)[:-9], ["cannot be read", "get it again"]),
        (idx(np.zeros(12)), ["images of shape (12,)", "(n, height, width)"]),
        (idx(np.zeros((0, 3, 4))), ["0 train images", "12 labels"]),
        (None, ["has no train-images-idx3-ubyte", "apt install dataset-fashion-mnist"]),
    ],
)
@pytest.mark.parametrize("mnist", ["plain"], indirect=True)
def test_bad_idx_files_are_named(content, words, mnist):
    path = mnist / "train-images-idx3-ubyte"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load({"name": "fashion_mnist", "path": mnist})
    for word in [str(mnist), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", ["cifar-10-python.tar.gz or cifar-10-binary.tar.gz", "kriz/cifar.html"]),
        ("cifar100", ["cifar-100-python.tar.gz or cifar-100-binary.tar.gz", "kriz/cifar.html"]),
        ("fashion_mnist", ["apt install dataset-fashion-mnist"]),
        ("idx", ["MNIST's four files"]),
    ],
)
def test_images_that_are_not_there_say_how_to_get_them(name, words):
    with pytest.raises(DataError) as caught:
        load({"name": name, "path": "/nowhere"})
    for word in ["/nowhere", *words]:
        assert word in str(caught.value)


def test_digits_are_found():
    pytest.importorskip("sklearn")
    found = load({"name": "digits"})
    assert (len(found.train[0]), len(found.validation[0])) == (1437, 360)
    assert (found.shape, found.classes) == ((1, 8, 8), 10)
    assert found.train[0].max() == 16
    assert min(found.validation[1].bincount()) > 25
