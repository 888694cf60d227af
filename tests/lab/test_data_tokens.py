# SPDX-License-Identifier: MIT
"""Shards of tokens: other people's are read, and ours are as theirs."""

import glob
import itertools
import os
import pathlib
import struct

import numpy as np
import pytest
import torch

from examples.lab.data import DataError, load
from examples.lab.data.tokens import Row, read_shard, write_shard


def packed(numbers, magic=20240520, version=1, count=None, kind="H"):
    """The bytes of a shard, put together without the writer that is tested."""
    count = len(numbers) if count is None else count
    return struct.pack("<256i", magic, version, count, *[0] * 253) + struct.pack(
        f"<{len(numbers)}{kind}", *numbers
    )


@pytest.fixture
def folder(tmp_path):
    """Three shards to train on and one to validate on; a token is its place."""
    for k, (start, stop) in enumerate([(0, 10), (10, 13), (13, 40)]):
        (tmp_path / f"x_train_{k:06d}.bin").write_bytes(packed(range(start, stop)))
    (tmp_path / "x_val_000000.bin").write_bytes(packed(range(1000, 1020)))
    return tmp_path


def settings(folder, **options):
    patterns = {"train": f"{folder}/x_train_*.bin", "validation": f"{folder}/x_val_*.bin"}
    return {"name": "shards", **patterns, **options}


@pytest.mark.parametrize(
    ("form", "dtype", "largest"),
    [
        ({}, torch.uint16, 65535),
        ({"magic": 20240801, "version": 7, "kind": "I"}, torch.int32, 128255),
    ],
)
def test_a_shard_of_an_independent_writer_is_read(form, dtype, largest, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(packed([5, 0, largest, 7], **form))
    found = read_shard(path)
    assert found.dtype == dtype
    assert found.long().tolist() == [5, 0, largest, 7]


@pytest.mark.parametrize(
    ("dtype", "form"),
    [(np.uint16, {}), (np.uint32, {"magic": 20240801, "version": 7, "kind": "I"})],
)
def test_our_shards_have_the_bytes_of_the_format(dtype, form, tmp_path):
    write_shard(tmp_path / "a.bin", np.array([1, 65535, 3], dtype))
    assert (tmp_path / "a.bin").read_bytes() == packed([1, 65535, 3], **form)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_shard_is_not_read_before_it_is_needed(tmp_path):
    # a file with a hole: 1.2 GB that take no room, and no memory unless they are copied
    path = tmp_path / "large_train_0.bin"
    path.write_bytes(packed([], count=600_000_000))
    os.truncate(path, 1024 + 2 * 600_000_000)
    (tmp_path / "large_val_0.bin").write_bytes(packed([1] * 50))
    patterns = {"train": str(path), "validation": f"{tmp_path}/large_val_*"}
    before = _resident()
    text = load({"name": "shards", **patterns})
    inputs, _ = text.batches(4, 0, context=8)(0)
    assert len(text.train) == 600_000_000
    assert inputs.tolist() == [[0] * 8] * 4
    assert _resident() - before < 100e6


def _resident():
    """Bytes of memory that this process has now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_writing_into_the_tensor_leaves_the_file_alone(folder):
    path = folder / "x_train_000000.bin"
    read_shard(path)[0] = 9
    assert read_shard(path)[0] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed([1, 2])[:500], ["500 bytes", "no shard"]),
        (packed([1, 2], magic=20240522), ["20240522 1", "20240520 1", "modded-nanogpt"]),
        (packed([1, 2], version=2), ["20240520 2", "20240520 1"]),
        (packed([1, 2])[:-1], ["2 tokens", "1028 bytes", "has 1027", "make it again"]),
        (packed([1, 2], count=1), ["1 tokens", "has 1028"]),
        (packed([]), ["0 tokens", "empty"]),
        (None, ["No such file", "give shards"]),
    ],
)
def test_what_is_no_shard_is_named(content, words, tmp_path):
    path = tmp_path / "a.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_shard(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("tokens", [[1, 2], np.zeros((2, 2), np.uint16), np.zeros(0, np.uint16)])
def test_only_rows_of_tokens_are_written(tokens, tmp_path):
    with pytest.raises(DataError, match=r"give a row of uint16 or uint32"):
        write_shard(tmp_path / "a.bin", np.asarray(tokens))
    assert not [*tmp_path.iterdir()]


def test_shards_follow_each_other_by_name(folder, monkeypatch):
    # a folder lists its files in any order
    found = glob.glob
    monkeypatch.setattr(glob, "glob", lambda pattern: sorted(found(pattern), reverse=True))
    text = load(settings(folder))
    assert (len(text.train), len(text.validation), text.files) == (40, 20, (3, 1))
    assert (text.vocabulary, text.unit) == (50257, "token")
    inputs, targets = text.batches(7, 0, context=5, order="sequential")(0)
    # the second window reaches into the second shard, the third over all of it
    assert inputs.flatten().tolist() == list(range(35))
    assert torch.equal(targets, inputs + 1)


def test_random_windows_begin_in_every_shard(folder):
    inputs, targets = load(settings(folder)).batches(300, 0, context=5)(0)
    assert sorted(set(inputs[:, 0].tolist())) == list(range(35))
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(5))
    assert torch.equal(targets, inputs + 1)


def test_a_row_slices_as_if_it_were_joined():
    pieces = [torch.arange(3), torch.arange(3, 4), torch.arange(4, 9)]
    row, joined = Row(pieces), torch.arange(9)
    for start, stop in itertools.product(range(-10, 11), repeat=2):
        assert torch.equal(row[start:stop], joined[start:stop])
    with pytest.raises(ValueError, match="step 2"):
        row[::2]


def test_digest_is_of_the_tokens_and_of_the_sides(folder):
    before = load(settings(folder)).digest
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("x_", "y_")))
    patterns = {"train": f"{folder}/y_train_*", "validation": f"{folder}/y_val_*"}
    renamed = {"name": "shards", **patterns}
    assert load(renamed).digest == before
    exchanged = {**renamed, "train": patterns["validation"], "validation": patterns["train"]}
    assert load(exchanged).digest != before
    (folder / "y_train_000001.bin").write_bytes(packed([10, 11, 99]))
    assert load(renamed).digest != before


def test_digest_is_of_the_lengths(folder):
    # what is looked at is equal
    digests = set()
    for count in (5000, 6000):
        (folder / "x_val_000000.bin").write_bytes(packed([7] * count))
        digests.add(load(settings(folder)).digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": "/nowhere/*.bin"}, ["train", "'/nowhere/*.bin'", "no file matches"]),
        ({"vocabulary": 1019}, ["x_val_000000.bin", "token 1019", "vocabulary is 1019"]),
        ({"vocabulary": 0}, ["vocabulary", "0", "at least 1"]),
    ],
)
def test_bad_shards_are_named(options, words, folder):
    with pytest.raises(DataError) as caught:
        load(settings(folder, **options))
    for word in words:
        assert word in str(caught.value)


def test_no_shard_is_on_both_sides(folder):
    with pytest.raises(DataError, match=r"x_val_000000.bin is a shard of train and of validation"):
        load(settings(folder, train=[f"{folder}/x_train*", f"{folder}/x_val*"]))


def test_shards_of_two_formats_are_refused(folder):
    other = packed([1, 2], magic=20240801, version=7, kind="I")
    (folder / "x_train_000001.bin").write_bytes(other)
    with pytest.raises(DataError, match="two formats"):
        load(settings(folder))
