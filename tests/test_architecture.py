# SPDX-License-Identifier: MIT
"""docs/architecture.md speaks of the code as it is: its names exist, its rooms are the rooms."""

import ast
import functools
import re
from pathlib import Path

import pytest

from emanest.options import CHECKS
from test_imports import FILES, ROOMS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SPAN = re.compile(r"`([^`\n]+)`")


def defined(body, prefix=""):
    """Names that some statements define, those in a class after its name and a dot."""
    for node in body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from (prefix + each.id for each in targets if isinstance(each, ast.Name))


@functools.cache
def names_of(path):
    """What is defined in a file; in C++, every word."""
    text = path.read_text()
    return {*defined(ast.parse(text).body)} if path.suffix == ".py" else {*re.findall(r"\w+", text)}


@functools.cache
def known():
    """What is defined in the package: ``Class.method``, ``function``, ``module.function``."""
    found = set()
    for module, path in FILES.items():
        if path.suffix == ".py":
            names = names_of(path)
            found |= names | {f"{module.rpartition('.')[2]}.{name}" for name in names}
    return found


def exists(span):
    """Whether there is what a page has in backticks."""
    if target := re.fullmatch(r"make ([\w-]+)", span):
        return f"\n{target[1]}:" in (ROOT / "Makefile").read_text()
    if file := re.fullmatch(r"([\w./]+/[\w./]*)(?:: (\S+))?", span):
        path, name = ROOT / file[1], file[2]
        return path.exists() and (name is None or name in names_of(path))
    if option := re.fullmatch(r"(\w+)=\S+", span):
        return option[1] in CHECKS
    return re.sub(r"^opt\.(\w+)\(\)$", r"Optimizer.\1", span) in known()


def test_what_the_page_names_exists():
    spans = SPAN.findall(re.sub(r"(?ms)^```.*?^```", "", PAGE))
    assert "emanest/step/plan.py: plan" in spans
    assert [span for span in spans if not exists(span)] == []


@pytest.mark.parametrize(
    "span",
    [
        "make everything",
        "emanest/survey.py",
        "emanest/step/plan.py: survey",
        "csrc/cpu.cpp: no_loop",
        "Optimizer._survey",
        "opt.survey()",
        "modes.to_z",
        "survey",
        "gradient=None",
    ],
)
def test_a_name_that_nothing_has_is_found(span):
    """Else the test above could not fail."""
    assert not exists(span)


def test_the_rooms_of_the_page_are_those_of_the_package():
    rows = re.search(r"\| room \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE)[1]
    cells = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in rows.replace("\\", "").splitlines()
    ]
    assert {room: {*filter(None, imports.split(", "))} for room, _, imports in cells} == ROOMS
