# SPDX-License-Identifier: MIT
"""The Triton back end without a GPU: its kernels run in Triton's interpreter.

Triton decides when it is imported whether it interprets, so files of tests are run in processes of
their own, once; each of their claims is a test here.
"""

import ast
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shared import once

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")

HERE = Path(__file__).parent
# file -> which of its tests
FILES = {
    "triton_kernels.py": (),
    "test_passes.py": ("-k", "triton"),
    "test_products.py": ("-k", "triton"),
}
# calls kernels as on a GPU, of which none runs
CALLS = "triton_calls.py"


def claims(file):
    """The tests of a file, by name; those of other files that take a back end, or products."""
    functions = [
        n for n in ast.parse((HERE / file).read_text()).body if isinstance(n, ast.FunctionDef)
    ]
    for function in functions:
        taken = {argument.arg for argument in function.args.args}
        if function.name.startswith("test_") and (
            not FILES.get(file) or taken & {"backend", "products"}
        ):
            yield function.name


CLAIMS = [(file, claim) for file in FILES for claim in claims(file)]


# as ``python -m pytest``. The interpreter works out for all integers whether they overflow, which
# takes it a third of its time, and drops what it finds unless it debugs
INTERPRETER = """
import dataclasses, sys
import pytest
from triton.runtime.interpreter import interpreter_builder as builder
builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
sys.exit(pytest.main(sys.argv[1:]))
"""


def interpreted(file, *arguments, **options):
    """Run pytest on a file, with the interpreter on unless it is ``CALLS``."""
    interpret = Path(file).name != CALLS
    python = [sys.executable, *(("-c", INTERPRETER) if interpret else ("-m", "pytest"))]
    command = [*python, "-q", "-p", "no:cacheprovider", file, *arguments]
    # threads of NumPy's that wait for each other take time from the other tests
    more = {"TRITON_INTERPRET": str(int(interpret)), "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **more}
    for name in ("PYTEST_ADDOPTS", "EMANEST_BACKEND"):
        environment.pop(name, None)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """File -> claim -> for each of its cases the text of the failure, or None."""

    @functools.cache
    def of(file):
        def make(report):
            done = interpreted(HERE / file, *FILES.get(file, ()), "--junitxml", report)
            assert report.exists(), done.stdout + done.stderr

        return read(once(tmp_path_factory, f"{file}.xml", make))

    return of


def read(report):
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [e for e in case if e.tag in ("failure", "error", "skipped")]
        text = f"{case.get('name')}\n{bad[0].text}" if bad else None
        found.setdefault(case.get("name").partition("[")[0], []).append(text)
    return found


# one process of pytest for a file
@pytest.mark.parametrize(("file", "claim"), CLAIMS)
def test_in_the_interpreter(outcomes, file, claim):
    check(outcomes, file, claim)


@pytest.mark.parametrize("claim", [*claims(CALLS)])
def test_calls_that_skip_the_jit(outcomes, claim):
    check(outcomes, CALLS, claim)


def check(outcomes, file, claim):
    found = outcomes(file)[claim]
    assert found
    failures = [text for text in found if text is not None]
    assert not failures, "\n".join(failures)


@pytest.mark.slow
def test_the_interpreter_passes_every_test_of_the_rules():
    done = interpreted(Path(__file__).with_name("test_rules.py"), "-k", "triton")
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_evaluations_change_no_run_of_any_optimizer_in_the_interpreter():
    chosen = "evaluations and triton"
    done = interpreted(Path(__file__).with_name("test_points.py"), "-k", chosen)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
