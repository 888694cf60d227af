# SPDX-License-Identifier: MIT
"""examples/minimal.py, shrunk: its figures, and what it needs."""

import ast
import inspect
import re
import statistics
import sys

import pytest

from examples import minimal

LINE = re.compile(r"(AdamW[\w +-]*?) +lr ([\d.]+) +loss ([\d.]+)  \(([\d., ]+)\)")


@pytest.fixture
def printed(monkeypatch, capsys):
    """(name, lr, mean, losses) of each line."""
    monkeypatch.setattr(minimal, "STEPS", 40)
    monkeypatch.setattr(minimal, "SEEDS", 2)
    minimal.main()
    found = [LINE.fullmatch(line).groups() for line in capsys.readouterr().out.splitlines()]
    return [(n, float(lr), float(m), [*map(float, e.split(", "))]) for n, lr, m, e in found]


def test_lookahead_stands_beside_the_base_at_its_rate_and_at_twice_that(printed):
    names = [(name, lr) for name, lr, *_ in printed]
    assert names == [("AdamW", 0.05), ("AdamW", 0.1), ("AdamW + EMA-Nesterov", 0.05)]
    for _, _, mean, losses in printed:
        assert len(losses) == 2
        assert mean == pytest.approx(statistics.fmean(losses), abs=1e-3)
    assert len({tuple(losses) for *_, losses in printed}) == 3


def test_it_needs_torch_alone():
    nodes = [*ast.walk(ast.parse(inspect.getsource(minimal)))]
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names - {*sys.stdlib_module_names} == {"torch", "emanest"}
