# SPDX-License-Identifier: MIT
"""One run of each checker over all files, for all tests."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import checkers
from pages import UNITS
from test_calls import FILES


@pytest.fixture(scope="session")
def findings(tmp_path_factory):
    """Checker -> all that it reports; the two run side by side."""
    present = {name: unit.code() for name, unit in UNITS.items() if not unit.missing()}
    folder = tmp_path_factory.mktemp("typing")
    checkers.write(folder, {**present, **FILES})
    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(check, folder) for name, check in checkers.CHECKERS.items()}
        return {name: run.result() for name, run in running.items()}
