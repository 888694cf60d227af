# SPDX-License-Identifier: MIT
"""What the project says of itself: licence lines, classifiers, the citation."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("emanest", "kernels", "csrc", "tests", "bench", "examples")
LINE = re.compile(r"(#!.*\n)?(#|//) SPDX-License-Identifier: MIT\n")
SUFFIXES = {".py", ".pyi", ".h", ".cpp", ".cu"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_source_says_its_licence_in_its_first_line(folder):
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    assert files
    assert [str(path) for path in files if not LINE.match(path.read_text())] == []


def test_the_citation_says_what_the_package_does():
    citation = (ROOT / "CITATION.cff").read_text()
    package = (ROOT / "pyproject.toml").read_text()
    (licence,) = re.findall(r'^license = "(.*)"', package, re.M)
    (authors,) = re.findall(r'^authors = \[\{ name = "(.*)" \}\]', package, re.M)
    assert f"\nlicense: {licence}\n" in citation
    assert f'- name: "{authors}"' in citation
    assert "2605.25395" in citation
    assert "2605.25395" in package
