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
KERNELS = "triton_kernels.py"
# tests of every back end, of which Triton's are run
SHARED = ("test_passes.py", "test_products.py")
# calls kernels as on a GPU, of which none runs
CALLS = "triton_calls.py"
# file -> arguments of the process that runs it, with others if they are the same
PROCESSES = {
    **{file: (file,) for file in (KERNELS, CALLS)},
    **dict.fromkeys(SHARED, (*SHARED, "-k", "triton")),
}


def claims(file):
    """The tests of a file, by name; those of other files that take a back end, or products."""
    functions = [
        n for n in ast.parse((HERE / file).read_text()).body if isinstance(n, ast.FunctionDef)
    ]
    for function in functions:
        taken = {argument.arg for argument in function.args.args}
        if function.name.startswith("test_") and (
            file not in SHARED or taken & {"backend", "products"}
        ):
            yield function.name


CLAIMS = [(file, claim) for file in (KERNELS, *SHARED) for claim in claims(file)]


# as ``python -m pytest``. The interpreter works out for all integers whether they overflow, which
# takes it a third of its time, and drops what it finds unless it debugs
INTERPRETER = """
import dataclasses, sys
import pytest
from triton.runtime.interpreter import interpreter_builder as builder
builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
sys.exit(pytest.main(sys.argv[1:]))
"""


def interpreted(file, *arguments):
    """Run pytest on a file here, with the interpreter on unless it is ``CALLS``."""
    interpret = file != CALLS
    python = [sys.executable, *(("-c", INTERPRETER) if interpret else ("-m", "pytest"))]
    command = [*python, "-q", "-p", "no:cacheprovider", file, *arguments]
    # threads of NumPy's that wait for each other take time from the other tests
    more = {"TRITON_INTERPRET": str(int(interpret)), "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **more}
    for name in ("PYTEST_ADDOPTS", "EMANEST_BACKEND"):
        environment.pop(name, None)
    return subprocess.run(
        command, cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """File -> claim -> for each of its cases the text of the failure, or None."""

    @functools.cache
    def of(file):
        def make(report):
            done = interpreted(*PROCESSES[file], "--junitxml", report)
            assert report.exists(), done.stdout + done.stderr

        report = once(tmp_path_factory, f"{PROCESSES[file][0]}.xml", make)
        return read(report).get(Path(file).stem, {})

    return of


def read(report):
    """Module -> claim -> for each of its cases the text of the failure, or None."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [e for e in case if e.tag in ("failure", "error", "skipped")]
        text = f"{case.get('name')}\n{bad[0].text}" if bad else None
        module = found.setdefault(case.get("classname").rpartition(".")[2], {})
        module.setdefault(case.get("name").partition("[")[0], []).append(text)
    return found


@pytest.mark.parametrize(("file", "claim"), CLAIMS)
def test_in_the_interpreter(outcomes, file, claim):
    check(outcomes, file, claim)


@pytest.mark.parametrize("claim", [*claims(CALLS)])
def test_calls_that_skip_the_jit(outcomes, claim):
    check(outcomes, CALLS, claim)


def check(outcomes, file, claim):
    found = outcomes(file).get(claim)
    assert found, "it has not run"
    failures = [text for text in found if text is not None]
    assert not failures, "\n".join(failures)


@pytest.mark.slow
def test_the_interpreter_passes_every_test_of_the_rules():
    done = interpreted("test_rules.py", "-k", "triton")
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_evaluations_change_no_run_of_any_optimizer_in_the_interpreter():
    chosen = "evaluations and triton"
    done = interpreted("test_points.py", "-k", chosen)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
