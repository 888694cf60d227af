# SPDX-License-Identifier: MIT
"""One launch finds a step's numbers: in Triton's interpreter, and compiled for two kinds of GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_plans import METHODS, PAIRS, programs
from shared import kernel_cache, once

# importing Triton here would settle for every other test whether it interprets
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")

TARGETS = ("sm_90", "gfx942")
PROGRAMS = list(programs(PAIRS))
SOME = [name for name in PROGRAMS if name.endswith(" adamw") or name.startswith("none ")]
OTHERS = [name for name in PROGRAMS if name not in SOME]


def result(*what, **environment):
    command = [sys.executable, str(Path(__file__).with_name("device_plans.py")), *what]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # a warning of numpy's would be an error in the tests of whoever interprets
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def errors():
    """Of 30 steps in the interpreter, against the host."""
    return result("interpret", TRITON_INTERPRET="1")


@pytest.mark.parametrize("base", ["adamw", "sgd", "momentum"])
@pytest.mark.parametrize("method", METHODS)
def test_the_kernel_agrees_with_the_host(errors, method, base):
    assert errors[f"{method} {base}"] <= 1e-12


def test_no_number_of_the_host_leads_to_another_compilation(tmp_path):
    """Neither 0, 1 and multiples of 16 as bits, which Triton compiles in, nor the size."""
    found = result("specialized", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) > 10
    assert len(set(found)) == 1


def check(assembly, text):
    assert "tt.store" in text, assembly
    # a signed conversion of a one-bit number would make it -1
    assert "arith.sitofp" not in text
    for approximate in ("ex2.approx", "lg2.approx", "div.full", "div.approx", "sqrt.approx"):
        assert approximate not in assembly
    # nothing in memory that a thread would spill
    assert ".local" not in assembly


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Assembly of a part of the programs, and Triton's own representation."""

    def make(path):
        cache = kernel_cache("plan_kernel")
        found = result("compile", "some", TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache)
        path.write_text(json.dumps(found))

    return json.loads(once(tmp_path_factory, "plan_kernel", make).read_text())


@pytest.fixture(scope="module")
def all_compiled(tmp_path_factory):
    """As ``compiled``, of all programs."""
    cache = str(tmp_path_factory.mktemp("triton"))
    return result("compile", "all", TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SOME)
def test_every_method_and_every_base_compiles(compiled, name, target):
    check(*compiled[f"{name} {target}"])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", OTHERS)
def test_every_pair_compiles(all_compiled, name, target):
    check(*all_compiled[f"{name} {target}"])
