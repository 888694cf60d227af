# SPDX-License-Identifier: MIT
"""Both checkers accept all code of the documentation."""

import pytest

import checkers
from pages import UNITS

# what is right, and others' annotations do not allow -> why
OTHERS = {
    "zero._sync_params()": "torch's stub of ZeroRedundancyOptimizer has no private methods",
    "from timm.optim import create_optimizer_v2": "timm does not say what it exports",
}


@pytest.mark.parametrize("checker", checkers.CHECKERS)
@pytest.mark.parametrize("name", UNITS)
def test_the_code_of_a_page_is_accepted(findings, checker, name):
    unit = UNITS[name]
    if missing := unit.missing():
        pytest.skip(f"needs {', '.join(missing)}: make test-integrations installs them")
    found = [each for each in findings[checker] if each.module == name]
    said = [f"{unit.path.name}:{unit.line(each.line)}: {each.text}" for each in found
            if unit.text(unit.line(each.line)).strip() not in OTHERS]  # fmt: skip
    assert said == []


def test_lines_are_those_of_the_page():
    for unit in UNITS.values():
        code, page = unit.code().splitlines(), unit.path.read_text().splitlines()
        named = [(n, line) for n, line in enumerate(code, 1) if line and unit.line(n) > 0]
        assert named
        assert all(page[unit.line(n) - 1] == line for n, line in named)
