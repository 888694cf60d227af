# SPDX-License-Identifier: MIT
"""A new lookahead is a rule and one file: nothing else is touched, and `make rules` runs."""

import runpy
import shutil
from pathlib import Path

import pytest
import torch

import emanest
import fresh
from emanest.methods import given, method

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"

RULE = '''
def pull(w, u, state, numbers):
    """Pull w towards a point that follows it, and keep the last three updates."""
    x, first, second = state
    weight, keep, gain, bias = numbers
    x = x + weight * (w - x)
    second = keep * second + first
    first = u
    return x + gain * second + bias * u, (x, first, second)


'''
ROW = """    "pull": Rule(pull, ("x", "first", "second"), ("weight", "keep", "gain", "bias")),
"""
METHOD = '''"""Pull: a method of the tests."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..values import real
from .method import Method, Plan, State, checked


@dataclass(frozen=True)
class Pull(Method):
    """A method of the tests."""

    name: ClassVar[str] = "pull"
    state: ClassVar[tuple[str, ...]] = (State("x", position=True), "first", "second")
    points: ClassVar[tuple[str, str | None]] = ("x_slow", None)

    weight: float = field(default=0.25, metadata=checked(real, 0, 1))

    def plan(self, info, memory):
        """Pull at every step."""
        return Plan("pull", (self.weight, 0.5, 2.0, 0.125), 1.0)
'''
RUN = """
import emanest, torch
print(emanest.__file__)
assert emanest.Pull is emanest.methods.method.METHODS["pull"] and "Pull" in emanest.__all__
p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
optimizer = emanest.SGD([p], lr=0.5, lookahead=emanest.Pull(), backend="eager")
x, first, second, y = 1.0, 0.0, 0.0, 1.0
for t in range(4):
    p.grad = torch.full_like(p, t + 1.0)
    optimizer.step()
    u = -0.5 * (t + 1.0)
    x, second, first = x + 0.25 * (y + u - x), 0.5 * second + first, u
    y = x + 2.0 * second + 0.125 * u
    assert p.tolist() == [y] * 3
    with optimizer.at_iterate():
        assert p.tolist() == [x] * 3
again = emanest.SGD([p], lr=0.5, lookahead=emanest.Pull(), backend="eager")
again.load_state_dict(optimizer.state_dict())
assert again.state[p]["second"].tolist() == [second] * 3
"""


@pytest.fixture
def tree(tmp_path):
    """The package with a new rule, and a new file."""
    for name in ("emanest", "kernels", "csrc"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    rules = tmp_path / "emanest" / "rules.py"
    text = rules.read_text().replace("\ndef step(base, look", RULE + "def step(base, look")
    rules.write_text(text.replace('    "anchor": Rule(', ROW + '    "anchor": Rule('))
    (tmp_path / "emanest" / "methods" / "pull.py").write_text(METHOD)
    for script in ("generate_rules.py", "generate_methods.py"):
        runpy.run_path(str(tmp_path / "csrc" / script), run_name="__main__")
    return tmp_path


def test_a_new_lookahead_is_a_rule_and_a_file(tree):
    found = fresh.python(RUN, tree)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str(tree / "emanest" / "__init__.py")
    header = (tree / "csrc" / "rules.h").read_text()
    assert 'EMANEST_RULE("pull", 3, 4)' in header
    assert "lookaheads::pull" in header


def test_the_list_of_methods_is_current():
    generated = runpy.run_path(str(CSRC / "generate_methods.py"))
    current = generated["generate"]() == (generated["FOLDER"] / "__init__.py").read_text()
    assert current, "emanest/methods/ has changed: `make rules` lists them anew"


def test_a_name_that_is_taken_is_an_error_and_the_method_that_has_it_stays():
    with pytest.raises(ValueError, match=r"emanest\.methods\.nag\.NAG: give it another"):
        type("Mine", (emanest.NAG,), {"name": "nag"})
    assert method.METHODS["nag"] is emanest.NAG


def test_a_method_that_is_written_anew_takes_its_own_place(monkeypatch):
    monkeypatch.setattr(method, "METHODS", {})
    old = type("Mine", (emanest.NAG,), {"name": "mine"})
    new = type("Mine", (emanest.NAG,), {"name": "mine"})
    assert method.METHODS == {"mine": new} != {"mine": old}


def test_a_base_of_several_methods_needs_no_state():
    assert type("Several", (method.Method,), {}).positions == ()


def test_what_one_method_remembers_may_be_called_as_a_setting_of_another(monkeypatch):
    monkeypatch.setitem(method.MEMORY, "decay", None)
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = emanest.SGD([p], lookahead=emanest.EMANesterov(decay=0.5))
    optimizer.step()
    assert given.method_of(optimizer.param_groups[0]).decay == 0.5
