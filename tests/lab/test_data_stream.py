# SPDX-License-Identifier: MIT
"""Documents become shards, also where the making is interrupted."""

import hashlib
import itertools
import json

import pytest
import torch

from examples.lab.data import DataError, bpe, load, stream
from examples.lab.data.__main__ import main, number
from examples.lab.data.tokens import read_shard


def letters(vocabulary=257):
    """A tokenizer whose tokens are bytes, and which counts the texts that it was given."""
    seen = []

    def encode(texts):
        seen.extend(texts)
        return [list(text.encode()) for text in texts]

    return bpe.Tokenizer("letters", "0", vocabulary, 256, encode), seen


DOCUMENTS = [chr(ord("a") + k) * (3 + k % 5) for k in range(20)]
OPTIONS = {"name": "letters", "tokens": 40, "shard": 16, "validation": 6, "report": lambda line: 0}


def made(folder):
    """The tokens of all shards of a folder, by side."""
    text = load({"name": "prepared", "path": folder})
    return [row[0 : len(row)].long().tolist() for row in (text.validation, text.train)]


def test_documents_become_shards(tmp_path):
    state = stream.prepare(DOCUMENTS, letters()[0], tmp_path, **OPTIONS)
    train = [f"letters_train_{k:06d}.bin" for k in range(3)]
    assert (state["val"], state["train"]) == (["letters_val_000000.bin"], train)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*train, *state["val"], stream.STATE]
    assert [len(read_shard(tmp_path / name)) for name in train] == [16, 16, 8]
    validation, trained = made(tmp_path)
    assert validation == [256, *b"aaa", 256, *b"b"]
    # what is left of b is for nobody
    expected = b"\xff".join([b"", *(text.encode() for text in DOCUMENTS[2:])])
    assert trained == [256 if value == 255 else value for value in expected][:40]


@pytest.mark.parametrize("failing", range(4))
def test_an_interrupted_preparation_goes_on(failing, tmp_path, monkeypatch):
    stream.prepare(DOCUMENTS, letters()[0], tmp_path / "whole", **OPTIONS)
    count = itertools.count()
    write = stream.write_shard

    def interrupted(path, tokens):
        if next(count) == failing:
            # as a process that is killed while it writes leaves it
            path.with_name(path.name + ".part").write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, tokens)

    monkeypatch.setattr(stream, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.prepare(DOCUMENTS, letters()[0], tmp_path / "cut", **OPTIONS)
    if failing:
        with pytest.raises(DataError, match="not finished"):
            load({"name": "prepared", "path": tmp_path / "cut"})
    monkeypatch.setattr(stream, "write_shard", write)
    tokenizer, seen = letters()
    stream.prepare(DOCUMENTS, tokenizer, tmp_path / "cut", **OPTIONS)
    assert made(tmp_path / "cut") == made(tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()
    # documents of whole shards are not tokenized again
    assert len(seen) == (20, 18, 16, 13)[failing]


def test_a_shard_that_was_not_noted_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_save", lambda folder, state: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream.prepare(DOCUMENTS, letters()[0], tmp_path, **OPTIONS)
    monkeypatch.undo()
    stream.prepare(DOCUMENTS, letters()[0], tmp_path, **OPTIONS)
    assert made(tmp_path)[0] == [256, *b"aaa", 256, *b"b"]


def test_what_is_made_is_not_made_again(tmp_path):
    stream.prepare(DOCUMENTS, letters()[0], tmp_path, **OPTIONS)
    tokenizer, seen = letters()
    stream.prepare(DOCUMENTS, tokenizer, tmp_path, **OPTIONS)
    assert seen == []


def test_shards_of_other_settings_are_left_alone(tmp_path):
    stream.prepare(DOCUMENTS, letters()[0], tmp_path, **OPTIONS)
    with pytest.raises(DataError, match=r"'tokens': 40.*'tokens': 50.*another folder"):
        stream.prepare(DOCUMENTS, letters()[0], tmp_path, **{**OPTIONS, "tokens": 50})
    with pytest.raises(DataError, match="shards of letters, not of fineweb"):
        load({"name": "fineweb", "path": tmp_path})


def test_documents_that_end_early_make_fewer_tokens(tmp_path):
    lines = []
    options = {**OPTIONS, "report": lines.append}
    stream.prepare(DOCUMENTS[:6], letters()[0], tmp_path, **options)
    # those of c to f, each after what parts documents
    assert len(made(tmp_path)[1]) == sum(1 + len(text) for text in DOCUMENTS[2:6])
    assert lines[-1] == "letters ended before the 40 tokens that were asked for"


def test_documents_that_end_within_validation_are_too_few(tmp_path):
    with pytest.raises(DataError, match="within the 6 tokens of validation"):
        stream.prepare(DOCUMENTS[:1], letters()[0], tmp_path, **OPTIONS)


def test_many_tokens_are_of_32_bits(tmp_path):
    stream.prepare(DOCUMENTS, letters(2**17)[0], tmp_path, **OPTIONS)
    text = load({"name": "prepared", "path": tmp_path})
    assert (text.validation.dtype, text.vocabulary) == (torch.int32, 2**17)


def test_documents_of_a_folder_come_once_whatever_their_names(tmp_path):
    for k, text in enumerate([*DOCUMENTS, *DOCUMENTS[:5], "", "zero\0byte"]):
        (tmp_path / f"part{k % 3}").mkdir(exist_ok=True)
        (tmp_path / f"part{k % 3}" / f"{k}.txt").write_text(text)
    before = [*stream.documents("folder", tmp_path)]
    assert sorted(before) == sorted(DOCUMENTS)
    for k, path in enumerate(sorted(tmp_path.rglob("*.txt"))):
        path.rename(path.with_name(f"{k * 7 % 10}-{path.name}"))
    assert [*stream.documents("folder", tmp_path)] == before


@pytest.mark.parametrize(
    ("text", "value"), [("5000", 5000), ("100M", 10**8), ("1.5b", 1_500_000_000), ("2k", 2000)]
)
def test_numbers_of_tokens_are_understood(text, value):
    assert number(text) == value


def test_the_command_makes_shards_of_a_folder(ranks, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tiktoken")
    texts = tmp_path / "texts"
    texts.mkdir()
    for k in range(12):
        (texts / f"{k}").write_text(f"hello {k // 2} " * 9)
    digest = hashlib.sha256(ranks.read_bytes()).hexdigest()
    monkeypatch.setitem(bpe.KINDS, ".tiktoken", lambda path: bpe.gpt2(path, digest))
    command = ["folder", "--from", str(texts), "--to", str(tmp_path / "out"), "--tokens", "0.1k"]
    command += ["--validation", "30", "--tokenizer", str(ranks)]
    assert main(command) == 0
    assert "1 shards to train on, 1 to validate on" in capsys.readouterr().out
    state = json.loads((tmp_path / "out" / stream.STATE).read_text())
    assert (state["name"], state["documents"] <= 6) == ("texts", True)
    validation, train = made(tmp_path / "out")
    assert (len(validation), len(train)) == (30, 100)
    # the number in a document tells which it is
    numbers = [{token for token in side if 48 <= token < 58} for side in (validation, train)]
    assert numbers[0]
    assert not numbers[0] & numbers[1]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["folder", "--tokens", "5"], ["--from", "give both or neither"]),
        (["c4", "--tokens", "5", "--from", "x"], ["--from", "give both or neither"]),
        (["c4", "--tokens", "many"], ["--tokens", "'many'", "write 5000 or 100M"]),
        (["pile", "--tokens", "5"], ["'pile'", "fineweb", "c4", "folder"]),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(command, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--to", str(tmp_path)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_the_command_names_what_is_missing(tmp_path, capsys):
    command = ["folder", "--from", "/nowhere", "--to", str(tmp_path), "--tokens", "5"]
    assert main(command) == 2
    assert capsys.readouterr().err == "error: folder is /nowhere; give a folder of text files\n"


def test_hosted_documents_are_streamed(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    asked = []

    def rows():
        yield from ({"text": text, "url": "x"} for text in DOCUMENTS)

    def local(path, **options):
        asked.append((path, options))
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", local)
    for source in stream.HOSTED:
        found = stream.documents(source)
        stream.prepare(found, letters()[0], tmp_path / source, **{**OPTIONS, "name": source})
        text = load({"name": source, "path": tmp_path / source})
        assert text.name == f"{source} (letters)"
        assert made(tmp_path / source)[0] == [256, *b"aaa", 256, *b"b"]
    streamed = {"split": "train", "streaming": True}
    assert asked == [
        ("HuggingFaceFW/fineweb", {"name": "sample-10BT", **streamed}),
        ("allenai/c4", {"name": "en", **streamed}),
    ]


def test_documents_that_cannot_be_had_are_named(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(path, **options):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"allenai/c4 \(en\) cannot be streamed: no route; see"):
        stream.documents("c4")
