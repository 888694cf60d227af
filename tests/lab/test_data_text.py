# SPDX-License-Identifier: MIT
"""Texts of bytes: what is found, how it is split, and the windows that are drawn from it."""

import random

import pytest
import torch

from examples.lab.data import DATA, DataError, Text, load
from examples.lab.data.text import split


@pytest.fixture
def texts():
    words = ["def", "return", "self", "for", "in", "if", "None", "True", "x", "y", "z", "m", "u"]
    draw = random.Random(0)
    return [" ".join(draw.choices(words, k=draw.randrange(50, 400))).encode() for _ in range(40)]


@pytest.fixture
def folder(tmp_path, texts):
    for k, text in enumerate(texts):
        path = tmp_path / "text" / f"part{k % 3}" / f"{k}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return tmp_path / "text"


def counting(train, validation=20):
    """A text whose values are their places."""
    rows = (torch.arange(count, dtype=torch.uint8) for count in (train, validation))
    return Text("counting", "0", 256, "byte", (1, 1), *rows)


def written(text):
    """All bytes of a text."""
    return torch.cat([text.train, text.validation]).numpy().tobytes()


def test_split_has_no_text_on_both_sides(texts):
    # copies must land together, or validation text would have been trained on
    sides = [{text for _, text in side} for side in split(texts + texts[:20])]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(texts)
    share = sum(map(len, sides[1])) / sum(map(len, texts))
    assert 0.1 <= share < 0.2


def test_split_depends_on_contents_alone(texts, folder):
    assert split(texts) == split(texts[::-1])
    before = load({"name": "folder", "path": folder})
    for path in sorted(folder.rglob("*.txt")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    (folder / ".hidden").write_text("left out")
    (folder / "binary").write_bytes(b"a\0b")
    after = load({"name": "folder", "path": str(folder)})
    assert after.digest == before.digest
    assert torch.equal(after.train, before.train)
    assert torch.equal(after.validation, before.validation)


def test_digest_changes_with_the_text(folder):
    before = load({"name": "folder", "path": folder})
    (folder / "more.txt").write_text("more")
    assert load({"name": "folder", "path": folder}).digest != before.digest


def test_standard_library_is_found():
    library = load({"name": "python"})
    assert min(library.files) > 20
    assert 5 < len(library.train) / len(library.validation) < 10
    assert b"class ArgumentParser" in written(library)
    assert (library.vocabulary, library.unit) == (256, "byte")


def test_installed_python_stays_within_its_limit(tmp_path):
    places = [tmp_path / name for name in ("library", "packages")]
    for k in range(60):
        folder = places[k % 2] / ("tests" if k < 4 else f"part{k % 3}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.py").write_text(f"x{k} = 1\n" * 20)
        (folder / f"{k}.txt").write_text("no Python")
    settings = {"name": "installed_python", "folders": places}
    small, large = (load({**settings, "limit": limit}) for limit in (3000, 10**6))
    sizes = [len(text.train) + len(text.validation) for text in (small, large)]
    # 56 files of 120 bytes and more, and a zero byte between two
    assert 3000 - 160 < sizes[0] - sum(small.files) + 2 <= 3000
    assert sum(large.files) == 56
    texts = [set(written(text).split(b"\n")) for text in (small, large)]
    assert b"x0 = 1" not in texts[1]
    assert {t.strip(b"\0") for t in texts[0]} <= {t.strip(b"\0") for t in texts[1]}
    assert load({**settings, "limit": 3000}).digest == small.digest


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_targets_are_the_bytes_that_follow(order):
    inputs, targets = counting(100).batches(11, 0, context=8, order=order)(0)
    assert inputs.shape == targets.shape == (11, 8)
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert torch.equal(targets, inputs + 1)


def test_random_windows_reach_both_ends():
    inputs, targets = counting(10).batches(200, 0, context=8)(0)
    assert inputs.min() == 0
    assert targets.max() == 9


def test_a_batch_depends_on_seed_and_step_alone():
    text = counting(200)
    feed = text.batches(8, 3, context=4)
    first = [feed(step)[0] for step in range(4)]
    again = text.batches(8, 3, context=4)
    # backwards, from another feed
    assert all(torch.equal(again(step)[0], first[step]) for step in (3, 2, 1, 0))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(text.batches(8, 4, context=4)(0)[0], first[0])
    # seed and step do not merely add up
    assert not torch.equal(text.batches(8, 2, context=4)(1)[0], first[0])


def test_sequential_windows_follow_each_other_and_wrap():
    # 4 windows of 5 with their targets in 22 values; the last value is never reached
    feed = counting(22).batches(3, 0, context=5, order="sequential")
    starts = [feed(step)[0][:, 0].tolist() for step in range(3)]
    assert starts == [[0, 5, 10], [15, 0, 5], [10, 15, 0]]
    assert feed(1)[1][0].tolist() == [16, 17, 18, 19, 20]
    other = counting(22).batches(3, 7, context=5, order="sequential")
    assert torch.equal(other(1)[0], feed(1)[0])


def test_a_last_window_whose_target_just_fits_is_used():
    feed = counting(11).batches(2, 0, context=5, order="sequential")
    assert feed(0)[1][1].tolist() == [6, 7, 8, 9, 10]


def test_validation_windows_are_spread_from_end_to_end():
    batches = counting(20, validation=40).validation_batches(2, 3, context=4)
    assert [inputs.shape for inputs, _ in batches] == [(3, 4), (3, 4)]
    assert torch.cat([inputs[:, 0] for inputs, _ in batches]).tolist() == [0, 7, 14, 21, 28, 35]
    assert batches[1][1][2].tolist() == [36, 37, 38, 39]


def test_validation_windows_in_order_begin_at_the_front():
    text = counting(20, validation=40)
    batches = text.validation_batches(2, 3, context=4, order="sequential")
    assert torch.cat([inputs[:, 0] for inputs, _ in batches]).tolist() == [0, 4, 8, 12, 16, 20]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "shakespeare"}, ["'shakespeare'", *DATA]),
        ({}, ["None", "choose from", "python"]),
        ({"name": "python", "limit": 3}, ["'python'", "'limit'", "options are: none"]),
        ({"name": "folder"}, ["'folder'", "path (required)"]),
        ({"name": "folder", "path": "/nowhere"}, ["/nowhere", "give the path of a folder"]),
        ({"name": "folder", "path": "EMPTY"}, ["EMPTY", "0 different text files", "at least 2"]),
        ({"name": "installed_python", "limit": 0}, ["limit", "0", "at least 1"]),
        ({"name": "installed_python", "limit": 1.5}, ["limit", "1.5", "whole number"]),
    ],
)
def test_bad_settings_are_named(settings, words, tmp_path):
    if settings.get("path") == "EMPTY":
        words = [str(tmp_path), *words[1:]]
        settings = {**settings, "path": tmp_path}
    with pytest.raises(DataError) as caught:
        load(settings)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.batches(0, 0, context=4), ["batch", "0", "at least 1"]),
        (lambda t: t.batches(2, -1, context=4), ["seed", "-1", "at least 0"]),
        (lambda t: t.batches(2, 0, context=0), ["context", "0", "at least 1"]),
        (lambda t: t.batches(2, 0, context=30), ["30 bytes for train", "context of 30", "31"]),
        (lambda t: t.batches(2, 0, context=4, order="back"), ["order", "'back'", "'sequential'"]),
        (lambda t: t.validation_batches(0, 2, context=4), ["count", "0", "at least 1"]),
        (lambda t: t.validation_batches(1, 2, context=20), ["20 bytes for validation", "21"]),
        (lambda t: t.validation_batches(1, 2, context=4, order="random"), ["order", "'spread'"]),
    ],
)
def test_bad_batches_are_named(call, words):
    with pytest.raises(DataError) as caught:
        call(counting(30))
    for word in words:
        assert word in str(caught.value)
