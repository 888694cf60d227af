# SPDX-License-Identifier: MIT
"""Tokenizers from local files: GPT-2's BPE, and those of ``tokenizers`` and SentencePiece."""

import base64
import hashlib
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from .errors import DataError, existing

# of GPT-2's ranks: openai-whisper's gpt2.tiktoken, and tiktoken's own r50k_base.tiktoken
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
# how GPT-2 divides a text before it merges bytes: its published pattern
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END = "<|endoftext|>"
REMEDY = (
    "give the path of gpt2.tiktoken, which is whisper/assets/gpt2.tiktoken in the source "
    "distribution of openai-whisper on PyPI"
)


class Tokenizer(NamedTuple):
    """What makes tokens of texts.

    Attributes:
        name: for reports.
        digest: hash of its file.
        vocabulary: every token is below it.
        end: the token between two documents.
        encode: tokens, lists of numbers, of a list of texts; no text gives special tokens.
    """

    name: str
    digest: str
    vocabulary: int
    end: int
    encode: Callable


def load_tokenizer(path=None):
    """The tokenizer of a file, by the end of its name; None: GPT-2's, from where it is found."""
    if path is None:
        return gpt2()
    path = pathlib.Path(path).expanduser()
    if path.suffix not in KINDS:
        raise DataError(f"tokenizer is {path}; give a file that ends in {', '.join(KINDS)}")
    return KINDS[path.suffix](path)


def gpt2(path=None, sha256=RANKS_SHA256):
    """GPT-2's byte-level BPE.

    Args:
        path: of a file of ranks: on each line a token in base 64 and its number. None: the one
            that whisper has, or that tiktoken has fetched before.
        sha256: hash that the file must have, so that tokens are those of other people's shards.
    """
    tiktoken = _library("tiktoken")
    path = existing(path, _known_ranks(), "GPT-2's file of ranks", REMEDY, pathlib.Path.is_file)
    ranks = read_ranks(path, sha256)
    end = len(ranks)
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END: end},
        explicit_n_vocab=end + 1,
    )
    return Tokenizer("GPT-2 BPE", sha256[:16], end + 1, end, encoding.encode_ordinary_batch)


def read_ranks(path, sha256):
    """The numbers of tokens, from a file of ranks with that hash."""
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise DataError(f"{path} has sha256 {digest}, and not {sha256}; {REMEDY}")
    pairs = (line.split() for line in content.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def from_json(path):
    """A tokenizer of the library ``tokenizers``, from its JSON."""
    tokenizers = _library("tokenizers")
    content = _content(path)
    try:
        made = tokenizers.Tokenizer.from_buffer(content)
    except ValueError as error:
        raise DataError(f"{path} is no tokenizer's JSON: {error}") from error
    # some files ask for them, for models whose texts are short
    made.no_truncation()
    made.no_padding()
    ends = [made.token_to_id(text) for text in (END, "</s>", "<|end_of_text|>", "[SEP]")]
    end = next((end for end in ends if end is not None), None)
    if end is None:
        raise DataError(f"{path} has no token {END} or </s> to part documents; add one to it")

    def encode(texts):
        return [each.ids for each in made.encode_batch(texts, add_special_tokens=False)]

    return Tokenizer(path.name, _short(content), made.get_vocab_size(), end, encode)


def from_sentencepiece(path):
    """A tokenizer of SentencePiece, from its model."""
    sentencepiece = _library("sentencepiece")
    content = _content(path)
    try:
        made = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise DataError(f"{path} is no model of SentencePiece: {error}") from error
    if made.eos_id() < 0:
        raise DataError(f"{path} has no token that ends a text, to part documents; train one")
    return Tokenizer(path.name, _short(content), made.vocab_size(), made.eos_id(), made.encode)


KINDS = {".tiktoken": gpt2, ".json": from_json, ".model": from_sentencepiece}


def _known_ranks():
    """Where the ranks may be without having been asked for."""
    # found without being imported, which takes seconds
    whisper = importlib.util.find_spec("whisper")
    if whisper is not None and whisper.origin is not None:
        yield pathlib.Path(whisper.origin).parent / "assets" / "gpt2.tiktoken"
    default = pathlib.Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    yield pathlib.Path(cache) / hashlib.sha1(RANKS_URL.encode()).hexdigest()


def _library(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"{name} is not installed; pip install {name}") from error


def _content(path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _short(content):
    return hashlib.sha256(content).hexdigest()[:16]
