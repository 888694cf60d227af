# SPDX-License-Identifier: MIT
"""CIFAR-10 and CIFAR-100 from small archives in their formats."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from examples.lab.data import DataError, cifar, load

DRAW = np.random.default_rng(0)


class Python2(pickle._Pickler):
    """Pickles as CIFAR's authors did: with Python 2, whose texts are bytes, and an old numpy."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_text(self, text):
        content = text if isinstance(text, bytes) else text.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_text


def pickled(found):
    """The bytes that Python 2 would have written."""
    file = io.BytesIO()
    Python2(file, protocol=2).dump(found)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def rows(count):
    return DRAW.integers(256, size=(count, 3072)).astype(np.uint8)


BATCHES = [(rows(3), [int(k) for k in DRAW.integers(10, size=3)]) for _ in range(6)]
FINE = [(rows(4), [3, 99, 0, 50]), (rows(2), [98, 1])]
JOINED = {
    10: [
        tuple(np.concatenate([batch[k] for batch in side]) for k in range(2))
        for side in (BATCHES[:5], BATCHES[5:])
    ],
    100: FINE,
}


def check(found, classes):
    """Images and labels of both sides."""
    assert found.classes == classes
    for side, (data, labels) in zip((found.train, found.validation), JOINED[classes], strict=True):
        assert side[0].dtype == torch.uint8
        assert torch.equal(side[0].long(), torch.from_numpy(data).view(-1, 3, 32, 32))
        assert side[1].tolist() == list(labels)


def cifar_files(classes, kind):
    """Folder and files of an archive."""
    if classes == 10:
        names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
        sets, before = BATCHES, []
    else:
        names, sets, before = ["train", "test"], FINE, [7]
    if kind == "python":
        key = "labels" if classes == 10 else "fine_labels"
        files = {
            name: pickled({"data": data, key: labels, "coarse_labels": [7], "filenames": ["é.png"]})
            for name, (data, labels) in zip(names, sets, strict=True)
        }
        folder = "cifar-10-batches-py" if classes == 10 else "cifar-100-python"
    else:
        files = {
            f"{name}.bin": b"".join(
                bytes([*before, label]) + row.tobytes()
                for row, label in zip(data, labels, strict=True)
            )
            for name, (data, labels) in zip(names, sets, strict=True)
        }
        folder = "cifar-10-batches-bin" if classes == 10 else "cifar-100-binary"
    return folder, {"batches.meta": b"unread", **files}


def put(place, folder, files):
    """The archive of some files, and the folder that it unpacks to."""
    kind = folder.replace("-batches-py", "-python").replace("-batches-bin", "-binary")
    archive = place / f"{kind}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (place / "unpacked" / folder).mkdir(parents=True)
    for name, content in files.items():
        (place / "unpacked" / folder / name).write_bytes(content)
    return archive


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_from_archive_and_folder(classes, kind, tmp_path, monkeypatch):
    folder, files = cifar_files(classes, kind)
    archive = put(tmp_path, folder, files)
    unpacked = tmp_path / "unpacked"
    for path in (archive, tmp_path, unpacked, unpacked / folder):
        found = load({"name": f"cifar{classes}", "path": path})
        check(found, classes)
    monkeypatch.setattr(cifar, "CACHES", [tmp_path / "nowhere", tmp_path])
    assert load({"name": f"cifar{classes}"}).digest == found.digest


def test_a_pickle_that_could_run_code_is_refused(tmp_path):
    folder, files = cifar_files(10, "python")
    files["test_batch"] = b"cos\nsystem\n(S'touch " + str(tmp_path).encode() + b"/ran'\ntR."
    with pytest.raises(DataError, match=r"test_batch, which is not CIFAR's: names os\.system"):
        load({"name": "cifar10", "path": put(tmp_path, folder, files)})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("test_batch", None, ["has no", "test_batch"]),
        ("data_batch_3", b"", ["data_batch_3", "not CIFAR's"]),
        ("data_batch_3", pickled({"labels": [1]}), ["data_batch_3", "'data'"]),
        ("data_batch_3", pickled({"data": rows(1)[:, :9], "labels": [1]}), ["data_batch_3"]),
    ],
)
@pytest.mark.parametrize("place", ["archive", "unpacked"])
def test_bad_cifar_files_are_named(name, content, words, place, tmp_path):
    folder, files = cifar_files(10, "python")
    files[name] = content
    archive = put(
        tmp_path, folder, {key: value for key, value in files.items() if value is not None}
    )
    path = archive if place == "archive" else tmp_path / "unpacked"
    with pytest.raises(DataError) as caught:
        load({"name": "cifar10", "path": path})
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_bytes_that_are_no_whole_images_are_named(tmp_path):
    folder, files = cifar_files(100, "binary")
    files["test.bin"] = files["test.bin"][:-1]
    with pytest.raises(DataError, match=r"test\.bin, which is not CIFAR's"):
        load({"name": "cifar100", "path": put(tmp_path, folder, files)})


def test_a_torn_archive_is_named(tmp_path):
    archive = put(tmp_path, *cifar_files(10, "python"))
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz cannot be unpacked.*get it again"):
        load({"name": "cifar10", "path": archive})
