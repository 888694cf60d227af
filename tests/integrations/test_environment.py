# SPDX-License-Identifier: MIT
"""The frameworks are those that are pinned, and change nothing that is pinned elsewhere."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    found = [re.match(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)", line) for line in lines]
    return {each[1]: each[2] for each in found if each}


def test_what_is_installed_is_what_is_pinned():
    base, added = pins("requirements.txt"), pins("requirements-integrations.txt")
    assert base.keys().isdisjoint(added)
    assert {"accelerate", "lightning", "transformers"} <= added.keys()
    installed = {name: importlib.metadata.version(name) for name in base | added}
    # a local version, such as 2.13.0+cpu, is the same release
    assert {k: v.partition("+")[0] for k, v in installed.items()} == base | added


def test_torchvision_of_another_build_is_not_there():
    assert importlib.util.find_spec("torchvision") is None
