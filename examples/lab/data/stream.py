# SPDX-License-Identifier: MIT
"""Documents of any size made into shards once: FineWeb and C4 as they stream in, or a folder."""

import hashlib
import itertools
import json
import pathlib
from typing import NamedTuple

import numpy as np

from .errors import DataError, choice, whole
from .tokens import from_shards, write_shard

# one file says what a folder of shards is and how far it got
STATE = "shards.json"
# documents that are tokenized at once, side by side
TOGETHER = 64
# of the speed runs: what they validate on
VALIDATION = 10_485_760


class Hosted(NamedTuple):
    """A data set of the Hugging Face hub that is read while it is fetched."""

    path: str
    part: str


HOSTED = {
    "fineweb": Hosted("HuggingFaceFW/fineweb", "sample-10BT"),
    "c4": Hosted("allenai/c4", "en"),
}


def documents(source, folder=None):
    """The documents of a source, in an order that is always the same: an iterable of texts.

    Args:
        source: "fineweb", "c4", or "folder": every text file below ``folder``.
    """
    choice("source", source, (*HOSTED, "folder"))
    if source != "folder":
        return hosted(source)
    if folder is None or not pathlib.Path(folder).is_dir():
        raise DataError(f"folder is {folder}; give a folder of text files")
    # by the hash of the content, as the split of text.py: copies are one document
    paths = (path for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file())
    found = {hashlib.sha256(path.read_bytes()).digest(): path for path in paths}
    contents = (found[key].read_bytes() for key in sorted(found))
    return (text.decode(errors="replace") for text in contents if text and 0 not in text)


def hosted(source):
    """The documents of a data set of the hub, fetched as they are asked for."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("datasets is not installed; pip install datasets") from error
    path, part = HOSTED[source]
    try:
        rows = datasets.load_dataset(path, name=part, split="train", streaming=True)
    except Exception as error:
        # of many kinds: no network, no such data set, a changed one
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} ({part}) cannot be streamed: {line}; see the network") from error
    return texts(rows)


def texts(rows):
    """The column "text" of a data set that streams."""
    return (row["text"] for row in rows.select_columns("text"))


def prepare(
    stream, tokenizer, folder, *, name, tokens, shard=100_000_000, validation=None, report=print
):
    """Make shards of documents: the first documents for validation, those after them to train on.

    Before each document is the token that parts documents, as in modded-nanogpt's shards. No
    document is on both sides. A call that was interrupted goes on where the last whole shard ends
    when it is made again, and one whose shards are all there does nothing.

    Args:
        stream: texts, in the same order at each call.
        tokenizer: of ``load_tokenizer``.
        folder: for the shards, and for a file that says what they are.
        name: of the documents; names of shards begin with it.
        tokens: to train on, in all.
        shard: tokens of a shard; the last may have fewer.
        validation: tokens to validate on; None: a tenth of ``tokens``, at most 10,485,760.
        report: called with a line for each shard.

    Returns:
        What the file in the folder says.
    """
    for option, value in {"tokens": tokens, "shard": shard}.items():
        whole(option, value)
    validation = min(VALIDATION, max(1, tokens // 10)) if validation is None else validation
    whole("validation", validation)
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "name": name,
        "tokenizer": [tokenizer.name, tokenizer.digest],
        "vocabulary": tokenizer.vocabulary,
        "tokens": tokens,
        "shard": shard,
        "validation": validation,
    }
    state = _begun(folder, settings)
    if not state["done"]:
        _make(stream, tokenizer, folder, state, report)
    return state


def _begun(folder, settings):
    """How far the shards of these settings are."""
    path = folder / STATE
    if not path.exists():
        # documents: taken before the one that is next; offset: tokens of that one that are taken
        return {**settings, "train": [], "val": [], "documents": 0, "offset": 0, "done": False}
    state = json.loads(path.read_text())
    other = {key: state.get(key) for key in settings if state.get(key) != settings[key]}
    if other:
        wanted = {key: settings[key] for key in other}
        raise DataError(
            f"{folder} has shards of {other}, and asked for are {wanted}; "
            "name another folder, or delete that one"
        )
    return state


def _make(stream, tokenizer, folder, state, report):
    kind = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
    rows = _tokenized(itertools.islice(stream, state["documents"], None), tokenizer, kind)
    left, missing = next(rows, None), 0
    for side, count in _plan(state):
        parts, missing = [], count
        while missing and left is not None:
            part = left[state["offset"] : state["offset"] + missing]
            parts.append(part)
            missing -= len(part)
            state["offset"] += len(part)
            # the rest of a document that validates is for nobody
            if state["offset"] >= len(left) or (side == "val" and not missing):
                state["documents"] += 1
                state["offset"] = 0
                left = next(rows, None)
        if not parts:
            break
        file = f"{state['name']}_{side}_{len(state[side]):06d}.bin"
        write_shard(folder / file, np.concatenate(parts))
        state[side].append(file)
        _save(folder, state)
        report(f"{folder / file}: {count - missing:,} tokens, {state['documents']:,} documents")
    if not state["train"]:
        raise DataError(
            f"{state['name']} ended within the {state['validation']} tokens of validation; "
            "give more documents, or a smaller validation"
        )
    if missing:
        report(f"{state['name']} ended before the {state['tokens']:,} tokens that were asked for")
    state["done"] = True
    _save(folder, state)


def _plan(state):
    """(side, tokens) of the shards that are missing."""
    for side, total in (("val", state["validation"]), ("train", state["tokens"])):
        size = state["shard"]
        for begin in range(len(state[side]) * size, total, size):
            yield side, min(size, total - begin)


def _tokenized(stream, tokenizer, kind):
    """The tokens of each document, after the one that parts documents."""
    while group := list(itertools.islice(stream, TOGETHER)):
        for row in tokenizer.encode(group):
            yield np.array([tokenizer.end, *row], kind)


def _save(folder, state):
    part = folder / f"{STATE}.part"
    part.write_text(json.dumps(state, indent=1) + "\n")
    part.replace(folder / STATE)


def prepared(path, source=None):
    """Text of the shards that ``python -m examples.lab.data`` made in a folder.

    Args:
        source: what the documents must be; None: any.
    """
    folder = pathlib.Path(path).expanduser()
    command = f"python -m examples.lab.data {source or 'fineweb'} --tokens 100M --to {folder}"
    if not (folder / STATE).is_file():
        raise DataError(f"{folder} has no {STATE}; make the shards: {command}")
    state = json.loads((folder / STATE).read_text())
    if source not in (None, state["name"]):
        raise DataError(f"{folder} has shards of {state['name']}, not of {source}; {command}")
    if not state["done"]:
        raise DataError(
            f"{folder} has {len(state['train'])} shards to train on, and is not finished; "
            "make them again as before: it goes on"
        )
    sides = ([folder / file for file in state[side]] for side in ("train", "val"))
    name = f"{state['name']} ({state['tokenizer'][0]})"
    return from_shards(*sides, name=name, vocabulary=state["vocabulary"])


def fineweb(path="build/data/fineweb"):
    """FineWeb's sample of 10 billion tokens, or what was made of it."""
    return prepared(path, "fineweb")


def c4(path="build/data/c4"):
    """The English part of C4, or what was made of it."""
    return prepared(path, "c4")
