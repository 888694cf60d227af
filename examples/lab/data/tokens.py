# SPDX-License-Identifier: MIT
"""Text as tokens: shards in the ``.bin`` format of llm.c and modded-nanogpt, read and written.

A shard begins with 256 numbers of 32 bits: what marks the format, its version, and how many tokens
follow; the others are zero. Everything is little-endian.
"""

import glob
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np
import torch

from .errors import DataError, whole
from .text import Text

HEADER = 256 * 4  # bytes
GPT2_VOCABULARY = 50257
# of a digest: so many places of a shard, and so many tokens at each
SAMPLES, SAMPLE = 16, 1024


class Format(NamedTuple):
    """How tokens are stored, and the tensors that they become."""

    magic: int
    version: int
    stored: type
    read: type


FORMATS = {
    # of GPT-2's tokens
    "uint16": Format(20240520, 1, np.uint16, np.uint16),
    # of llama 3's; torch does little with uint32, and no token is that large
    "uint32": Format(20240801, 7, np.uint32, np.int32),
}


def read_shard(path):
    """The tokens of a shard: a 1-d tensor that lies in the file, uint16 or int32.

    What is written into the tensor does not reach the file.
    """
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give shards (.bin)") from error
    if len(head) < HEADER:
        raise DataError(f"{path} has {size} bytes, less than a header; it is no shard")
    magic, version, count = np.frombuffer(head, "<i4")[:3].tolist()
    found = [f for f in FORMATS.values() if (f.magic, f.version) == (magic, version)]
    if not found:
        known = " or ".join(f"{f.magic} {f.version}" for f in FORMATS.values())
        raise DataError(
            f"{path} begins with {magic} {version}, and a shard of tokens with {known}; "
            "give shards of llm.c or modded-nanogpt"
        )
    needed = HEADER + count * np.dtype(found[0].stored).itemsize
    if count < 1 or size != needed:
        raise DataError(
            f"{path} says that it holds {count} tokens, which take {needed} bytes, and has {size}; "
            "it was cut off or is empty: make it again"
        )
    stored = np.memmap(path, found[0].stored, mode="c", offset=HEADER, shape=(count,))
    return torch.from_numpy(stored.view(found[0].read))


def write_shard(path, tokens):
    """Write a shard; under its name there is never half of one.

    Args:
        tokens: an array of uint16 or uint32, which decides the format.
    """
    path, tokens = pathlib.Path(path), np.ascontiguousarray(tokens)
    if tokens.dtype.name not in FORMATS or tokens.ndim != 1 or not 0 < tokens.size < 2**31:
        raise DataError(
            f"tokens of {path} are {tokens.dtype.name} of shape {tokens.shape}; "
            f"give a row of {' or '.join(FORMATS)}, from 1 to 2**31 - 1 of them"
        )
    form = FORMATS[tokens.dtype.name]
    header = np.zeros(256, "<i4")
    header[:3] = form.magic, form.version, len(tokens)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(header.tobytes())
        tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).tofile(file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class Row:
    """Several tensors as one row that is never joined: it has a length, and slices of it."""

    def __init__(self, pieces):
        self.pieces = list(pieces)
        self.ends = np.cumsum([len(piece) for piece in self.pieces])

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, places):
        start, stop, step = places.indices(len(self))
        if step != 1:
            raise ValueError(f"a row has no slices of step {step}; take one of step 1")
        parts = []
        k = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            begin = int(self.ends[k]) - len(self.pieces[k])
            parts.append(self.pieces[k][start - begin : stop - begin])
            start, k = int(self.ends[k]), k + 1
        if not parts:
            return self.pieces[0][:0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def shards(train, validation, vocabulary=GPT2_VOCABULARY):
    """Text of shards, which stay in their files; a window may begin in one and end in the next.

    Args:
        train: names of the shards to train on: a pattern such as "data/fineweb_train_*.bin", or a
            list of patterns. Those of a pattern follow each other by name.
        validation: names of those to validate on.
        vocabulary: every token is below it.
    """
    named = " and ".join(str(each) for each in (train, validation))
    sides = _matching("train", train), _matching("validation", validation)
    return from_shards(*sides, name=f"shards {named}", vocabulary=vocabulary)


def from_shards(train, validation, *, name, vocabulary):
    """Text of shards whose paths are given."""
    whole("vocabulary", vocabulary)
    paths = [[pathlib.Path(path).resolve() for path in side] for side in (train, validation)]
    both = set(paths[0]) & set(paths[1])
    if both:
        raise DataError(f"{min(both)} is a shard of train and of validation; name it in one only")
    digest = hashlib.sha256()
    rows = []
    for side in paths:
        pieces = [read_shard(path) for path in side]
        digest.update(repr([(len(piece), str(piece.dtype)) for piece in pieces]).encode())
        for path, piece in zip(side, pieces, strict=True):
            digest.update(_sample(path, piece, vocabulary))
        rows.append(pieces[0] if len(pieces) == 1 else Row(pieces))
    if len({row[:1].dtype for row in rows} | {piece.dtype for piece in _pieces(rows)}) > 1:
        raise DataError(f"{name} has shards of two formats; give those of one tokenizer")
    files = len(paths[0]), len(paths[1])
    return Text(name, digest.hexdigest()[:16], vocabulary, "token", files, *rows)


def _pieces(rows):
    return [piece for row in rows for piece in (row.pieces if isinstance(row, Row) else [row])]


def _sample(path, piece, vocabulary):
    """Some tokens of a shard as bytes; all of it would take minutes to read."""
    starts = np.linspace(0, max(0, len(piece) - SAMPLE), SAMPLES, dtype=np.int64)
    taken = np.concatenate([piece.numpy()[k : k + SAMPLE] for k in starts])
    if not 0 <= int(taken.min()) <= int(taken.max()) < vocabulary:
        raise DataError(
            f"{path} holds token {taken.max()}, and vocabulary is {vocabulary}; "
            "give the vocabulary of the tokenizer that made the shards"
        )
    return taken.tobytes()


def _matching(side, patterns):
    patterns = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
    found = [
        path
        for pattern in patterns
        for path in sorted(glob.glob(str(pathlib.Path(pattern).expanduser())))
    ]
    if not found:
        raise DataError(
            f"{side} is {', '.join(map(repr, map(str, patterns)))}, which no file matches; give "
            "shards such as 'fineweb_train_*.bin', or make some: python -m examples.lab.data --help"
        )
    return found
