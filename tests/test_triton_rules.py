"""The text of the rules is Triton as it stands: it runs in the interpreter, and it compiles."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emanest.rules import BASES, LOOKAHEADS, POINTS

# importing Triton here would settle for every other test whether it interprets
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")

# of values near 1, in float32
TOLERANCE = 1e-6


def result(what, **environment):
    command = [sys.executable, str(Path(__file__).with_name("triton_step.py")), what]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def errors():
    """Of every pair and every move, against the eager back end."""
    return result("interpret", TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Of the compiled kernels, in Triton's own representation; or the message of an error."""
    cache = str(tmp_path_factory.mktemp("triton"))
    return result("compile", TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("look", LOOKAHEADS)
def test_the_interpreter_agrees_with_eager(errors, base, look):
    assert errors[f"{base} {look}"] <= TOLERANCE


@pytest.mark.parametrize("point", POINTS)
def test_the_interpreter_moves_as_eager_does(errors, point):
    assert errors[point] <= TOLERANCE


@pytest.mark.parametrize("rule", [*BASES, *LOOKAHEADS, *POINTS])
def test_every_rule_compiles(texts, rule):
    assert "tt.store" in texts[rule], texts[rule]


@pytest.mark.parametrize("rule", ["amsgrad", "lookahead"])
def test_a_comparison_is_one_or_zero(texts, rule):
    """A signed conversion of a one-bit number would make it -1."""
    assert "arith.uitofp" in texts[rule]
    assert "arith.sitofp" not in texts[rule]
