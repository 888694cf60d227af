"""Text as bytes: the files of a folder, split into training and validation, and batches of them."""

import dataclasses
import hashlib
import pathlib
import platform
import sysconfig

import torch

# not part of the library itself, or (tests) too repetitive to be a fair sample of its text
SKIPPED = {"__pycache__", "dist-packages", "lib-dynload", "site-packages", "test", "tests"}
VALIDATION_SHARE = 0.1


class CorpusError(ValueError):
    """A corpus that cannot be used; the message names the folder and the way out."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Two disjoint sets of files, each joined into one row of bytes (zero bytes between files).

    Attributes:
        name: what the text is, for reports.
        digest: hash of the contents and of the split; equal digests mean equal corpora.
        files: number of files in (training, validation).
        train, validation: uint8 tensors of shape (bytes,), on the CPU.
    """

    name: str
    digest: str
    files: tuple[int, int]
    train: torch.Tensor
    validation: torch.Tensor


def standard_library():
    """The running Python's standard library: its ``.py`` files, without tests."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    name = f"Python {platform.python_version()} standard library"
    return _from_files(_python_files(folder), name, folder)


def installed_python(limit, folders=None):
    """``.py`` files of the standard library and of installed packages, without tests.

    Args:
        limit: bytes to stay within, training and validation together. Files are taken in the
            order of the hashes of their paths, and left out where they no longer fit.
        folders: of packages; None: those of the running Python.
    """
    if folders is None:
        names = ("stdlib", "purelib", "platlib")
        # where a distribution keeps packages elsewhere, torch is one of them
        found = [*map(sysconfig.get_path, names), pathlib.Path(torch.__file__).parents[1]]
        folders = dict.fromkeys(pathlib.Path(folder).resolve() for folder in found)
    ordered, left = {}, limit
    for folder in folders:
        for path in _python_files(folder):
            key = hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest()
            ordered.setdefault((key, path), path.stat().st_size)
    chosen = []
    for (_, path), size in sorted(ordered.items()):
        if size <= left:
            chosen.append(path)
            left -= size
    name = f"Python {platform.python_version()} and installed packages"
    return _from_files(chosen, name, " and ".join(map(str, folders)))


def from_folder(folder):
    """Every text file below ``folder``; hidden files and files with zero bytes are left out."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise CorpusError(f"{folder} is not a folder; give the path of a folder of text files")
    paths = (
        p
        for p in folder.rglob("*")
        if not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    return _from_files(paths, str(folder), folder)


def split(texts):
    """Split files by the hash of their content.

    A file lands on the same side whatever its name and place, and copies of a file land on the
    same side, so that no validation text has been trained on.

    Args:
        texts: the contents of the files, bytes, in any order.

    Returns:
        (training, validation): lists of (hash, content) in the order of the hashes. Validation
        takes files from the front until it has a tenth of all bytes; each side has at least one.
    """
    ordered = sorted({hashlib.sha256(text).hexdigest(): text for text in texts}.items())
    wanted = VALIDATION_SHARE * sum(len(text) for _, text in ordered)
    count = size = 0
    while size < wanted and count < len(ordered) - 1:
        size += len(ordered[count][1])
        count += 1
    return ordered[count:], ordered[:count]


def _python_files(folder):
    return (p for p in folder.rglob("*.py") if not SKIPPED & set(p.relative_to(folder).parts))


def _from_files(paths, name, folder):
    try:
        texts = [path.read_bytes() for path in paths if path.is_file()]
    except OSError as error:
        raise CorpusError(f"{folder} has a file that cannot be read: {error}; remove it") from error
    texts = [text for text in texts if text and 0 not in text]
    if len(set(texts)) < 2:
        raise CorpusError(
            f"{folder} holds {len(set(texts))} different text files; "
            "the split is by file and needs at least 2"
        )
    train, validation = split(texts)
    return Corpus(
        name=name,
        digest=hashlib.sha256(
            repr([[k for k, _ in s] for s in (train, validation)]).encode()
        ).hexdigest()[:16],
        files=(len(train), len(validation)),
        train=_joined(train),
        validation=_joined(validation),
    )


def _joined(files):
    return torch.frombuffer(bytearray(b"\0".join(t for _, t in files)), dtype=torch.uint8)


def check_length(corpus, context):
    """Raise ``CorpusError`` unless both sides hold a window of ``context`` bytes and its target."""
    for side in ("train", "validation"):
        count = len(getattr(corpus, side))
        if count < context + 2:
            raise CorpusError(
                f"{corpus.name} leaves {count} bytes for {side}; a context of {context} needs "
                f"{context + 2}: give more text or a smaller --context"
            )


def sample(text, batch, context, generator, device):
    """Windows at random places: (inputs, targets), int64 of shape (batch, context) on ``device``.

    A target is the byte that follows its input. ``generator`` is one of the device of ``text``.
    """
    starts = torch.randint(len(text) - context, (batch, 1), generator=generator, device=text.device)
    windows = text[starts + torch.arange(context + 1, device=text.device)].long().to(device)
    return windows[:, :-1], windows[:, 1:]
