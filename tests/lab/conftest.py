"""Data that is made up, and one thread, for the tests of the lab."""

import pytest
import torch
from shrunk import images, text


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
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
