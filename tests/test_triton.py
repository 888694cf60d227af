"""The Triton back end without a GPU: its kernels run in Triton's interpreter.

Triton decides when it is imported whether it interprets, so ``triton_kernels`` is run in a process
of its own, once; each of its claims is a test here.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")

KERNELS = Path(__file__).with_name("triton_kernels.py")
TREE = ast.parse(KERNELS.read_text())
CLAIMS = [
    node.name
    for node in TREE.body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


def interpreted(*arguments, **options):
    """Run pytest with the interpreter on."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    for name in ("PYTEST_ADDOPTS", "EMANEST_BACKEND"):
        environment.pop(name, None)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Claim -> for each of its cases the text of the failure, or None."""
    report = tmp_path_factory.mktemp("triton") / "report.xml"
    done = interpreted(KERNELS, "--junitxml", report)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [e for e in case if e.tag in ("failure", "error", "skipped")]
        text = f"{case.get('name')}\n{bad[0].text}" if bad else None
        found.setdefault(case.get("name").partition("[")[0], []).append(text)
    return found


@pytest.mark.parametrize("claim", CLAIMS)
def test_in_the_interpreter(outcomes, claim):
    assert outcomes[claim]
    failures = [text for text in outcomes[claim] if text is not None]
    assert not failures, "\n".join(failures)


@pytest.mark.slow
def test_the_interpreter_passes_every_test_of_the_rules():
    done = interpreted(Path(__file__).with_name("test_rules.py"), "-k", "triton")
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
