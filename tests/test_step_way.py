# SPDX-License-Identifier: MIT
"""How a step goes through the package: few calls, few modules, as the documentation shows it."""

import ast
import itertools
import re
import sys
from pathlib import Path

import pytest

from emanest.backends import capture
from test_imports import FILES, ROOMS

pytest.importorskip("emanest.backends.cpp", exc_type=ImportError)

from examples.step_way import LANES, draw, rows, steady_step, trace

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def calls():
    with pytest.MonkeyPatch.context() as patch:
        # other tests have the CPU stand in for what can be captured
        patch.setattr(capture, "DEVICE_TYPES", {"cuda"})
        return trace(steady_step())


def test_a_steady_step_makes_few_calls_in_few_modules(calls):
    """Of Python, generators once each time they go on; the calls of Python 3.11 or less."""
    modules = [call.module for call in calls if call.module != "_C"]
    changes = sum(a != b for a, b in itertools.pairwise(modules))
    assert modules[0] == modules[-1] == "optimizers.optimizer"
    assert [c.function for c in calls if c.module == "_C"] == ["step_(adamw, ema_nesterov)"]
    assert len(modules) <= 75
    assert len(set(modules)) <= 14
    assert changes <= 38


@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames lack qualified names")
def test_the_figure_shows_the_calls_of_a_step(calls):
    """`make figures` draws it."""
    assert (DOCS / "step_way.svg").read_text() == draw(rows(calls))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames lack qualified names")
def test_the_page_follows_the_calls_of_a_step(calls):
    page = (DOCS / "architecture.md").read_text()
    items = dict(re.findall(r"(?ms)^(\d+)\. (.*?)(?=^\S)", page))
    numbered = {str(row.number): row.label.split()[-1] for row in rows(calls) if row.number}
    assert items.keys() == numbered.keys()
    for number, name in numbered.items():
        assert re.search(rf"`(?:\S+: )?{re.escape(name)}`", items[number]), (number, name)


def test_the_figure_has_rooms_in_the_order_of_their_imports():
    for i, room in enumerate(LANES):
        assert ROOMS[room].isdisjoint(LANES[:i]), room


def private(node):
    """Private names that a class gives itself: its methods, and what they set on ``self``."""
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef):
            yield each.name
        elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            yield each.attr


def of_self(node):
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def test_other_modules_use_three_private_names_of_an_optimizer():
    """Its hooks: what ``Wrap`` answers in another way, and helpers of the optimizer ask."""
    trees = {
        module: ast.parse(path.read_text()) for module, path in FILES.items() if module != "_C"
    }
    own = "optimizers.optimizer", "optimizers.wrap"
    classes = [n for m in own for n in trees[m].body if isinstance(n, ast.ClassDef)]
    names = {name for each in classes for name in private(each) if re.match(r"_[a-z]", name)}
    used = {
        node.attr
        for module in trees.keys() - set(own)
        for node in ast.walk(trees[module])
        if isinstance(node, ast.Attribute) and node.attr in names and not of_self(node.value)
    }
    assert "_step" in names
    assert used == {"_base", "_defaults", "_holders"}
