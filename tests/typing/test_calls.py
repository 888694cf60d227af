# SPDX-License-Identifier: MIT
"""Both checkers reject every wrong call on its line, and accept the right one beside it."""

import pytest

import checkers
from calls import ACCEPTED, BEFORE, REJECTED

FILES = {
    "rejected": BEFORE + "\n".join([*(row.wrong for row in REJECTED.values()), ""]),
    "accepted": BEFORE + "\n".join([*(row.right for row in REJECTED.values()), ACCEPTED]),
}
each_checker = pytest.mark.parametrize("checker", checkers.CHECKERS)


def of(findings, module, line):
    return [each for each in findings if (each.module, each.line) == (module, line)]


@each_checker
@pytest.mark.parametrize("name", REJECTED)
def test_a_wrong_call_is_rejected(findings, checker, name):
    line = BEFORE.count("\n") + 1 + [*REJECTED].index(name)
    found = of(findings[checker], "rejected", line)
    assert {each.code for each in found} == {*getattr(REJECTED[name], checker).split()}, found


@each_checker
def test_nothing_else_is_rejected_there(findings, checker):
    found = [each for each in findings[checker] if each.module == "rejected"]
    assert [each for each in found if each.line <= BEFORE.count("\n")] == []


@each_checker
def test_right_calls_are_accepted(findings, checker):
    lines = FILES["accepted"].splitlines()
    found = [each for each in findings[checker] if each.module == "accepted"]
    assert [f"{lines[each.line - 1]}: {each.code}: {each.text}" for each in found] == []
