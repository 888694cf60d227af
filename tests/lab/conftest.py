# SPDX-License-Identifier: MIT
"""Data and tokens that are made up, and one thread, for the tests of the lab."""

import base64

import pytest
from shrunk import images, text

from helpers import one_thread  # noqa: F401  (a fixture)


@pytest.fixture
def made_up(monkeypatch):
    """``load`` knows the data of ``shrunk.small``."""
    from examples.lab import data, training

    made = {"made up text": lambda: text(), "made up images": lambda: images()}
    for name, make in made.items():
        monkeypatch.setitem(data.DATA, name, make)
    yield
    training._loaded.cache_clear()


@pytest.fixture
def ranks(tmp_path):
    """A file of ranks as GPT-2's, of all bytes and four merges."""
    tokens = [bytes([k]) for k in range(256)] + [b"he", b"ll", b"hell", b" hell"]
    lines = [f"{base64.b64encode(token).decode()} {k}" for k, token in enumerate(tokens)]
    path = tmp_path / "small.tiktoken"
    path.write_text("\n".join(lines) + "\n")
    return path
