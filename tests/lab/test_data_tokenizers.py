# SPDX-License-Identifier: MIT
"""Tokenizers from local files give the tokens that others know."""

import hashlib
import os

import pytest

from examples.lab.data import DataError, bpe

# what the tests of tiktoken and of other implementations expect
KNOWN = {
    "Hello world": [15496, 995],
    "Hello, world!": [15496, 11, 995, 0],
    "don't stop believing": [9099, 470, 2245, 14773],
    "0000000000000": [8269, 20483],
    "你好\uff0c世界": [19526, 254, 25001, 121, 171, 120, 234, 10310, 244, 45911, 234],
}


def test_gpt2_gives_the_known_ids_of_five_strings():
    pytest.importorskip("tiktoken")
    try:
        tokenizer = bpe.gpt2(os.environ.get("GPT2_RANKS"))
    except DataError as error:
        pytest.skip(f"GPT2_RANKS names no file of ranks: {error}")
    assert (tokenizer.vocabulary, tokenizer.end) == (50257, 50256)
    assert tokenizer.encode([*KNOWN]) == [*KNOWN.values()]


def test_ranks_are_read_and_are_the_file_that_is_meant(ranks):
    digest = hashlib.sha256(ranks.read_bytes()).hexdigest()
    found = bpe.read_ranks(ranks, digest)
    assert len(found) == 260
    assert (found[b"\0"], found[b"\xff"], found[b"he"], found[b" hell"]) == (0, 255, 256, 259)
    with pytest.raises(DataError, match=rf"has sha256 {digest}, and not 306cd27f.*whisper"):
        bpe.read_ranks(ranks, bpe.RANKS_SHA256)


def test_ranks_decide_the_merges(ranks):
    pytest.importorskip("tiktoken")
    digest = hashlib.sha256(ranks.read_bytes()).hexdigest()
    tokenizer = bpe.gpt2(ranks, digest)
    assert (tokenizer.vocabulary, tokenizer.end) == (261, 260)
    # the space goes with the word, and what parts documents is text where it stands in one
    texts = ["hello", "he hell", "l l", "<|endoftext|>"]
    expected = [[258, *b"o"], [256, 259], [*b"l l"], [*b"<|endoftext|>"]]
    assert tokenizer.encode(texts) == expected


def test_other_ranks_than_gpt2s_are_refused(ranks):
    pytest.importorskip("tiktoken")
    with pytest.raises(DataError, match=r"has sha256 [0-9a-f]{64}, and not 306cd27f.*whisper"):
        bpe.load_tokenizer(ranks)


def test_ranks_that_are_nowhere_are_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bpe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=rf"{tmp_path}/[0-9a-f]{{40}}; give the path.*whisper"):
        bpe.load_tokenizer()


def test_a_tokenizer_of_the_library_is_read(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"</s>": 0, "a": 1, "b": 2, "?": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(2)
    made.save(str(tmp_path / "t.json"))
    tokenizer = bpe.load_tokenizer(tmp_path / "t.json")
    assert (tokenizer.vocabulary, tokenizer.end) == (4, 0)
    # not cut off, though the file asks for it
    assert tokenizer.encode(["a b c a", "b"]) == [[1, 2, 3, 1], [2]]


def test_a_sentencepiece_model_is_read(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [f"word{k} and another word" for k in range(50)]
    with (tmp_path / "t.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, model_type="char", minloglevel=2
        )
    tokenizer = bpe.load_tokenizer(tmp_path / "t.model")
    # three have no text: what is unknown, and both ends; then a space, the letters of the words
    # above, and ten digits
    assert (tokenizer.vocabulary, tokenizer.end) == (3 + 1 + len({*"wordandanotherword"}) + 10, 2)
    rows = tokenizer.encode(["and", "another"])
    assert [len(row) for row in rows] == [4, 8]
    assert rows[0][:2] == rows[1][:2]
    assert min(map(min, rows)) > 2


@pytest.mark.parametrize(
    ("name", "content", "library", "words"),
    [
        ("t.txt", "", None, ["t.txt", ".tiktoken, .json, .model"]),
        ("t.json", "{", "tokenizers", ["t.json", "no tokenizer's JSON"]),
        ("t.model", "x", "sentencepiece", ["t.model", "no model of SentencePiece"]),
        ("t.json", None, "tokenizers", ["t.json", "cannot be read", "No such file"]),
    ],
)
def test_bad_tokenizers_are_named(name, content, library, words, tmp_path):
    if library:
        pytest.importorskip(library)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        bpe.load_tokenizer(tmp_path / name)
    for word in words:
        assert word in str(caught.value)
