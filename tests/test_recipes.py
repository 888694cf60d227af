# SPDX-License-Identifier: MIT
"""What docs/recipes.md prints is what it says that it prints; its table and its freezing hold."""

import contextlib
import io
import math
import re

import pytest
import torch

import emanest
from emanest.matrix.shapes import SCALES
from helpers import bits
from test_docs import BLOCK, ROOT, names

PAGE = (ROOT / "docs/recipes.md").read_text()
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ROW = re.compile(r"^\| (\d+) \S (\d+) \| (.*) \|$", re.MULTILINE)
TITLES = ("original", "spectral_norm", "none", "match_rms_adamw", "unit_rms")


def said():
    """(the numbers in its comment) of each line that prints some, in order."""
    for text in re.findall(r"^print\(.*\)  # ([\d., ]+)", PAGE, re.MULTILINE):
        yield [float(number) for number in NUMBER.findall(text)]


def test_what_is_printed_is_what_the_comments_say():
    found, printed = names(ROOT / "docs/recipes.md"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in BLOCK.findall(PAGE):
            if "print(" in block:
                exec(block, found)
    lines = printed.getvalue().splitlines()
    expected = [*said()]
    assert len(lines) == len(expected) == 6
    for line, numbers in zip(lines, expected, strict=True):
        assert [float(n) for n in NUMBER.findall(line)] == pytest.approx(numbers, abs=0.01)


def test_the_table_is_the_rate_for_which_an_entry_moves_as_under_adamw():
    rows = ROW.findall(PAGE)
    assert len(rows) == 5
    for *sides, cells in rows:
        sides = [int(side) for side in sides]
        for name, cell in zip(TITLES, cells.split(" | "), strict=True):
            moved = SCALES[name](*sides) / math.sqrt(max(sides))
            assert float(cell) == pytest.approx(0.2 * 1e-3 / moved, abs=5e-5), (sides, name)


@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (96, 48), (48, 96)])
@pytest.mark.parametrize("name", TITLES)
def test_an_entry_moves_as_far_as_the_table_says(name, rows, columns):
    w = torch.nn.Parameter(torch.zeros(rows, columns))
    # a polynomial that ends at singular values of 1
    options = {"adjust_lr_fn": name, "ns_coefficients": "simple", "ns_steps": 20}
    optimizer = emanest.Muon([w], lr=1.0, weight_decay=0.0, **options)
    w.grad = torch.randn(rows, columns)
    optimizer.step()
    moved = w.detach().square().mean().sqrt().item()
    by_name = {
        "original": columns**-0.5,
        "spectral_norm": columns**-0.5 if rows > columns else rows**0.5 / columns,
        "none": max(rows, columns) ** -0.5,
        "match_rms_adamw": 0.2,
        "unit_rms": 1.0,
    }
    assert moved == pytest.approx(by_name[name], rel=1e-2)


def test_what_is_frozen_stays_at_x_and_what_thaws_moves():
    found = names(ROOT / "docs/recipes.md")
    freeze, thaw = next(b for b in BLOCK.findall(PAGE) if "frozen = " in b).split(
        "for p in frozen:  #"
    )
    model, opt = found["model"], found["opt"]
    x = {k: bits(v) for k, v in emanest.iterate_state_dict(model[0], opt).items()}
    exec(freeze, found)
    for _ in range(3):
        model(torch.randn(6, 4)).square().mean().backward()
        opt.step()
        opt.zero_grad()
        with opt.at_iterate():
            assert {k: bits(v) for k, v in model[0].state_dict().items()} == x
        assert {k: bits(v) for k, v in model[0].state_dict().items()} == x
    exec(f"for p in frozen:  #{thaw}", found)
    model(torch.randn(6, 4)).square().mean().backward()
    opt.step()
    assert {k: bits(v) for k, v in model[0].state_dict().items()} != x
