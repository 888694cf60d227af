# SPDX-License-Identifier: MIT
"""Windows that are fitted to a run as it begins are those that it would have been made with."""

import math

import pytest
import torch

import emanest
from emanest.tools.windows import fit_windows
from helpers import content, differing


def make(lookahead, **options):
    p = torch.nn.Parameter(torch.arange(3.0))
    return emanest.AdamW([p], lookahead=lookahead, **options)


def step(optimizer):
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = torch.ones_like(p)
    optimizer.step()


def stepped(optimizer, steps=8):
    for _ in range(steps):
        step(optimizer)
    return content(optimizer)


@pytest.mark.parametrize("options", [{}, {"capturable": True}])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (emanest.EMANesterov(), emanest.EMANesterov.for_run(10)),
        (emanest.EMANesterov(0.3, warmup=1), emanest.EMANesterov(0.3, warmup=1, rest=8)),
        (emanest.EMANesterov(rest=2), emanest.EMANesterov(rest=2)),
        (emanest.NAG(0.5), emanest.NAG(0.5)),
        (None, None),
    ],
)
def test_fitted_is_as_made(before, after, options):
    fitted = make(before, **options)
    fit_windows([fitted], 10)
    assert differing(stepped(fitted), stepped(make(after, **options))) == []


def test_after_a_step_windows_stay():
    optimizer = make("ema_nesterov")
    step(optimizer)
    before = content(optimizer)
    fit_windows(optimizer, 10)
    assert differing(content(optimizer), before) == []


def test_of_a_run_without_an_end_no_window_follows():
    optimizer = make("ema_nesterov")
    before = content(optimizer)
    fit_windows(optimizer, math.inf)
    assert differing(content(optimizer), before) == []


@pytest.mark.parametrize(
    ("holder", "steps", "error", "message"),
    [
        ([], 10, TypeError, "no optimizer of emanest was found"),
        (None, 0, ValueError, "total_steps must be at least 1, got 0"),
        (None, 0.5, TypeError, "total_steps must be an integer, got 0.5"),
    ],
)
def test_bad_input_changes_nothing(holder, steps, error, message):
    optimizer = make("ema_nesterov")
    before = content(optimizer)
    with pytest.raises(error, match=message):
        fit_windows(optimizer if holder is None else holder, steps)
    assert differing(content(optimizer), before) == []
