# SPDX-License-Identifier: MIT
"""The table of bad inputs: each is told clearly, or works; nothing is half done."""

import importlib

import pytest

from bad_input import EVERY

PARTS = "given", "options", "stepped", "trained", "saved", "interrupted"
ROWS = [row for part in PARTS for row in importlib.import_module(f"bad_input_{part}").ROWS]

# numbers of the table that are not rows here -> why
ELSEWHERE = {
    43: "2**31 elements: test_cuda, on a GPU with room for them",
    73: "a fork after CUDA has started is torch's error, and needs a GPU",
}


def test_every_number_of_the_table_has_a_row():
    numbers = {row.number for row in ROWS}
    assert sorted([*numbers, *ELSEWHERE]) == list(range(1, 75))


def test_every_row_is_tried_on_some_optimizer():
    assert all(row.on and set(row.on) <= set(EVERY) for row in ROWS)


@pytest.mark.parametrize(
    ("check", "name"),
    [
        pytest.param(row.check, name, marks=row.marks, id=f"{row.number:02}-{row.what}-{name}")
        for row in ROWS
        for name in row.on
    ],
)
def test_bad_input(check, name):
    check(name)
