# SPDX-License-Identifier: MIT
"""Windows of a run as it begins: those that are fitted to it; what a later run misses is said."""

import math
import warnings

import pytest
import torch

import emanest
from emanest import NALA, SNOO, EMANesterov, LongHorizon, Lookahead
from emanest.tools import analysis
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


# ---- a later run with the same optimizer -----------------------------------------------------

# method, steps before the run, steps of the run -> what is said
LATER = [
    (
        EMANesterov(warmup=2, rest=5),
        *(6, 10),
        r"EMANesterov\(warmup=2, rest=5\) rests in the whole of a run that is its steps 6 to 15: "
        "make a new optimizer for it, or set lookahead_warmup=9, lookahead_rest=14 in the groups$",
    ),
    (EMANesterov(rest=5), 5, 1, "rests .* 5 to 5: .* set lookahead_warmup=5, lookahead_rest=None"),
    (EMANesterov(warmup=20), 6, 10, "EMANesterov.warmup=20. never looks ahead in a run of 16 "),
    (EMANesterov(rest=20), 6, 10, "EMANesterov.rest=20. never rests in a run of 16 steps"),
    (
        Lookahead(10),
        *(12, 7),
        r"Lookahead\(every=10\) never syncs in a run that is its steps 12 to 18, and x never "
        "moves: it needs 8 steps or more$",
    ),
    (SNOO(5), 10, 4, "its steps 10 to 13, and x never moves: it needs 5 steps"),
    (NALA(5), 6, 5, "its steps 6 to 10, and x never moves: it needs 6 steps"),
    (
        LongHorizon(5),
        6,
        4,
        "its steps 6 to 9, and its base is left alone: it needs 5 steps",
    ),
]


def begun_again(method, before, steps, done=0):
    """What is said of a run as it begins with an optimizer that has taken steps before."""
    optimizer = make(method)
    stepped(optimizer, before)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        emanest.warn_of_windows(optimizer, steps, done)
    return optimizer, [str(each.message) for each in told]


@pytest.mark.parametrize(("method", "before", "steps", "message"), LATER)
def test_what_a_later_run_misses_is_said_once(method, before, steps, message):
    optimizer = make(method)
    stepped(optimizer, before)
    with pytest.warns(UserWarning, match=message) as told:
        emanest.warn_of_windows(optimizer, steps, 0)
    assert (len(told), told[0].filename) == (1, __file__)


@pytest.mark.parametrize(
    ("method", "before", "steps", "done"),
    [
        (EMANesterov(warmup=2, rest=8), 9, 10, 9),  # resumed
        (EMANesterov(warmup=2, rest=8), 9, 10, None),
        (EMANesterov(warmup=2, rest=8), 7, 4, 0),  # one step is left of the window
        (EMANesterov(), 9, 10, 0),
        (Lookahead(9), 10, 12, 10),
        (Lookahead(9), 10, 8, 0),
        (LongHorizon(5), 5, 1, 0),  # looked ahead in the last step before
        (emanest.NAG(0.5), 9, 2, 0),
        (None, 9, 2, 0),
    ],
)
def test_of_a_run_that_goes_on_or_that_misses_nothing_nothing_is_said(method, before, steps, done):
    assert begun_again(method, before, steps, done)[1] == []


def test_the_windows_that_are_named_look_ahead_in_the_run():
    optimizer, (message,) = begun_again(EMANesterov(warmup=2, rest=5), 6, 10)
    assert "lookahead_warmup=9, lookahead_rest=14" in message
    optimizer.param_groups[0].update(lookahead_warmup=9, lookahead_rest=14)
    emanest.warn_of_windows(optimizer, 10, 0)
    ahead = []
    for _ in range(10):
        with optimizer.at_iterate():
            x = optimizer.param_groups[0]["params"][0].clone()
        ahead.append(not torch.equal(x, optimizer.param_groups[0]["params"][0]))
        step(optimizer)
    assert [t for t, is_ahead in enumerate(ahead, 6) if is_ahead] == [9, 10, 11, 12, 13]


METHODS_OF_RUNS = [
    *(EMANesterov(0.5, 0.9, w, r) for w in range(3) for r in range(w + 1, 6)),
    *(cls(every) for cls in (SNOO, Lookahead, LongHorizon, NALA) for every in range(1, 5)),
]


@pytest.mark.parametrize("method", METHODS_OF_RUNS, ids=str)
def test_what_is_said_of_a_later_run_is_what_happens_in_it(method):
    """On a parabola: is a gradient of the run taken ahead, does x move in it?"""
    for end in range(3, 11):
        whole = analysis.trajectory(method, lambda y: y, torch.ones(1), 0.1, end)
        for begun in range(1, end):
            missed = method.misses(end, begun)
            x, y = whole.x[begun:], whole.y[begun:]
            if isinstance(method, EMANesterov):
                found = ("rests in the whole" in missed) or ("looks ahead" in missed)
                assert found == torch.equal(x[:-1], y[:-1])
            elif isinstance(method, LongHorizon):
                # at a sync x stays behind y, and the next gradient is taken ahead
                assert bool(missed) == torch.equal(x[:-1], y[:-1])
            else:
                assert bool(missed) == bool((x == x[0]).all())
