# SPDX-License-Identifier: MIT
"""A method goes by its name: wherever one is taken, and in what a run of known length misses."""

import copy
import dataclasses
import json
import warnings
from collections import ChainMap
from types import MappingProxyType

import pytest
import torch
from torch import nn

import emanest
from emanest import GPA, NAG, NALA, SNOO, EMANesterov, LongHorizon, Lookahead, ScheduleFree, Wrap
from emanest.methods.given import as_method
from emanest.methods.method import METHODS
from emanest.tools import analysis
from helpers import LR, content, differing, parameters, run

# what names a method, and the same as its author would write it
NAMED = {
    "a name": ("ema_nesterov", EMANesterov()),
    "a mapping": (
        {"name": "ema_nesterov", "stepsize": 0.3, "decay": 0.9, "rest": None},
        EMANesterov(0.3, 0.9),
    ),
    "a name alone in a mapping": ({"name": "lookahead"}, Lookahead()),
    "a required setting": ({"name": "snoo", "every": 3}, SNOO(3)),
    "long horizon": ({"name": "long_horizon", "every": 2}, LongHorizon(2)),
    "nag": ({"name": "nag", "momentum": 0.9}, NAG(0.9)),
    "gpa": ("gpa", GPA()),
    "nala": ({"name": "nala", "every": 2, "mu": -0.3}, NALA(2, mu=-0.3)),
    "schedule free": ("schedule_free", ScheduleFree()),
    "none": (None, None),
    "a read-only mapping": (MappingProxyType({"name": "nag", "momentum": 0.5}), NAG(0.5)),
    "a mapping of several": (ChainMap({"momentum": 0.5}, {"name": "nag"}), NAG(0.5)),
}


def ours(groups, lookahead=None):
    return emanest.SGD(groups, lr=LR, lookahead=lookahead)


def wrapped(groups, lookahead=None):
    return Wrap(torch.optim.SGD(groups, lr=LR), lookahead)


def late(groups, lookahead=None):
    """The groups join an optimizer that is there."""
    optimizer = ours(parameters(shapes=[(2,)]), lookahead)
    for group in groups:
        optimizer.add_param_group(group)
    return optimizer


# how a method is given to an optimizer
PLACES = {
    "constructor": lambda given: ours(parameters(), given),
    "Wrap": lambda given: wrapped(parameters(), given),
    "group": lambda given: ours([{"params": parameters(), "lookahead": given}], SNOO(9)),
    "inner group": lambda given: wrapped([{"params": parameters(), "lookahead": given}], SNOO(9)),
    "late group": lambda given: late([{"params": parameters(), "lookahead": given}], NALA(4)),
}
each_place = pytest.mark.parametrize("place", PLACES)


@each_place
@pytest.mark.parametrize("named", NAMED)
def test_a_name_gives_the_very_optimizer_that_the_method_gives(place, named):
    by_name, by_hand = (PLACES[place](given) for given in NAMED[named])
    assert by_name.state_dict() == by_hand.state_dict()
    for optimizer in (by_name, by_hand):
        run(optimizer, range(5))
    assert differing(content(by_name), content(by_hand)) == []


@each_place
def test_a_mapping_is_read_and_stays_as_it_was(place):
    given = {"name": "ema_nesterov", "stepsize": 0.3}
    before = copy.deepcopy(given)
    run(PLACES[place](given), range(2))
    assert given == before


@pytest.mark.parametrize("named", NAMED)
def test_settings_come_from_a_file_as_they_went_in(named):
    method = as_method(NAMED[named][1])
    entries = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    saved = json.dumps(None if method.name is None else {"name": method.name, **entries})
    assert as_method(json.loads(saved)) == method


@each_place
def test_what_is_saved_by_name_and_by_method_is_loaded_by_both(place):
    by_name, by_hand = (PLACES[place](given) for given in NAMED["a mapping"])
    run(by_hand, range(3))
    by_name.load_state_dict(by_hand.state_dict())
    assert by_name.state_dict()["param_groups"] == by_hand.state_dict()["param_groups"]


LONG = "lookahead must be a method such as emanest.EMANesterov.., the name of one, a mapping of its"
# what is no method -> the error, and what it says
BAD = {
    "a near name": ("ema_nestrov", ValueError, "got 'ema_nestrov'; did you mean 'ema_nesterov'"),
    "a beginning": ("ema", ValueError, "got 'ema'; did you mean 'ema_nesterov'"),
    "the name of the class": ("EMANesterov", ValueError, "; did you mean 'ema_nesterov'"),
    "capitals": ("EMANESTEROV", ValueError, "; did you mean 'ema_nesterov'"),
    "a dash": ("ema-nesterov", ValueError, "; did you mean 'ema_nesterov'"),
    "a class with two words": ("ScheduleFree", ValueError, "; did you mean 'schedule_free'"),
    "another name": ("adam_mini", ValueError, r"must be one of \['ema.*'snoo'\], got 'adam_mini'$"),
    "an empty name": ("", ValueError, "must be one of .*got ''$"),
    "a class": (EMANesterov, TypeError, r"got the class: write emanest\.EMANesterov\(\)$"),
    "a class with needs": (SNOO, TypeError, r"got the class: write emanest\.SNOO\(every=\.\.\.\)$"),
    "another class": (dict, TypeError, f"{LONG}.*got <class 'dict'>"),
    "a number": (0.5, TypeError, f"{LONG}.*got 0.5"),
    "a list": (["nag"], TypeError, LONG),
    "an optimizer's name as bytes": (b"nag", TypeError, LONG),
    "no name": ({"stepsize": 0.5}, TypeError, f"{LONG}.*got {{'stepsize': 0.5}}"),
    "an empty mapping": ({}, TypeError, LONG),
    "a bad name": ({"name": "snooo", "every": 3}, ValueError, "did you mean 'snoo'"),
    "a name that is None": ({"name": None}, ValueError, "must be one of .*got None"),
    "a name that is a list": ({"name": ["nag"]}, ValueError, r"must be one of .*got \['nag'\]"),
    "an unknown setting": (
        {"name": "ema_nesterov", "step_size": 0.3},
        TypeError,
        "'ema_nesterov' has no setting 'step_size' .*did you mean 'stepsize'",
    ),
    "a prefix": (
        {"name": "nag", "lookahead_momentum": 0.3},
        TypeError,
        "'nag' has no setting 'lookahead_momentum' .*did you mean 'momentum'",
    ),
    "a setting of another": (
        {"name": "nag", "momentum": 0.9, "every": 3},
        TypeError,
        r"'nag' has no setting 'every' \(it has \['momentum'\]\)$",
    ),
    "a setting that is no string": ({"name": "gpa", 1: 2}, TypeError, "has no setting 1 "),
    "a missing setting": (
        {"name": "snoo", "lr": 0.7},
        TypeError,
        r'\'snoo\' needs every: pass \{"name": "snoo", "every": \.\.\.\}',
    ),
    "out of range": ({"name": "nag", "momentum": 1}, ValueError, r"momentum must be in \(-1, 1\)"),
    "of the wrong kind": ({"name": "nag", "momentum": "0.9"}, TypeError, "must be a number.*'0.9'"),
    "an empty window": (
        {"name": "ema_nesterov", "warmup": 9, "rest": 3},
        ValueError,
        "rest must be above warmup",
    ),
}


@pytest.mark.parametrize("bad", BAD)
@each_place
def test_what_is_no_method_is_an_error_that_says_what_to_write(place, bad):
    given, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        PLACES[place](given)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("make", [ours, wrapped])
def test_after_a_bad_name_nothing_has_changed(make, bad):
    optimizer = make(parameters(), NAG(0.9))
    run(optimizer, range(2))
    before = content(optimizer)
    given, error, _ = BAD[bad]
    with pytest.raises(error):
        optimizer.add_param_group({"params": parameters(shapes=[(4,)]), "lookahead": given})
    assert differing(content(optimizer), before) == []


@each_place
def test_a_name_without_its_settings_says_how_they_are_given(place):
    beside = "'lookahead_every'" if "group" in place else r'"long_horizon", "every": \.\.\.\}'
    with pytest.raises((TypeError, ValueError), match=f"'long_horizon' needs .*{beside}"):
        PLACES[place]("long_horizon")


def test_entries_beside_a_mapping_override_its_settings():
    group = {"params": parameters(), "lookahead": {"name": "snoo", "every": 3}}
    optimizer = ours([{**group, "lookahead_lr": 0.6}], EMANesterov())
    assert optimizer.param_groups[0]["lookahead_lr"] == 0.6
    assert optimizer.param_groups[0]["lookahead_every"] == 3


def test_in_a_group_the_name_of_the_optimizers_own_method_has_its_settings():
    for given, stepsize in (("ema_nesterov", 0.1), ({"name": "ema_nesterov"}, 0.5)):
        optimizer = ours([{"params": parameters(), "lookahead": given}], EMANesterov(0.1))
        assert optimizer.param_groups[0]["lookahead_stepsize"] == stepsize


def test_the_analysis_takes_names():
    for by_name, by_hand in NAMED.values():
        assert analysis.period(by_name) == analysis.period(by_hand)
    found, expected = (
        analysis.transition(each, 0.1, 2.0) for each in ({"name": "nag", "momentum": 0.5}, NAG(0.5))
    )
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"method must be one of .*did you mean 'nag'"):
        analysis.transition("NAG", 0.1, 2.0)


def test_methods_are_listed_by_name():
    assert emanest.METHODS is METHODS
    assert {cls.__name__ for cls in METHODS.values()} >= {*emanest.methods.__all__}
    for name, cls in METHODS.items():
        assert cls.name == name


def test_a_method_of_the_users_own_goes_by_its_name(monkeypatch):
    monkeypatch.setattr("emanest.methods.method.METHODS", dict(METHODS))
    mine = type("Mine", (NAG,), {"name": "mine"})
    optimizer = ours(parameters(), {"name": "mine", "momentum": 0.5})
    assert optimizer.param_groups[0]["lookahead"] == "mine"
    with pytest.raises(TypeError, match=r"write \w*\.?Mine\(momentum=\.\.\.\)"):
        ours(parameters(), mine)


def test_optimizers_are_listed_by_the_name_of_their_own_base():
    names = ["adamw", "sgd", "muon", "normuon", "soap", "aurora"]
    assert [*emanest.OPTIMIZERS] == names
    for name, cls in emanest.OPTIMIZERS.items():
        own = cls([nn.Parameter(torch.ones(2, 2))]).param_groups[0]["base"]
        assert own == name


# ---- runs of a known length ---------------------------------------------------------------------

# steps, settings -> windows; the first are published runs
WINDOWS = [
    (2500, {}, (750, 2000)),
    (5000, {}, (1500, 4000)),
    (1000, {}, (300, 800)),
    (1, {"rest": None}, (0, None)),
    (2, {}, (1, None)),
    (3, {}, (1, 2)),
    (4, {}, (1, 3)),
    (5, {}, (2, 4)),
    (1000, {"warmup": 20}, (20, 800)),
    (1000, {"warmup": 0}, (0, 800)),
    (1000, {"rest": 900}, (300, 900)),
    (1000, {"rest": None}, (300, None)),
    (1000, {"warmup": 20, "rest": 30}, (20, 30)),
    # nothing would be left between the given bound and the published one
    (1000, {"warmup": 850}, (850, None)),
    (1000, {"warmup": 800}, (800, None)),
    (1000, {"rest": 300}, (0, 300)),
    (1000, {"rest": 200}, (0, 200)),
]


@pytest.mark.filterwarnings("ignore:emanest. EMANesterov.. never looks ahead in a run of 1 step")
@pytest.mark.parametrize(("steps", "settings", "expected"), WINDOWS)
def test_windows_are_published_fractions_of_a_run_unless_given(steps, settings, expected):
    found = EMANesterov.for_run(steps, **settings)
    assert (found.warmup, found.rest) == expected
    assert found == EMANesterov(warmup=expected[0], rest=expected[1])


def test_a_run_of_any_length_has_a_window_and_no_warning():
    for steps in range(2, 400):
        EMANesterov.for_run(steps)  # a warning is an error here
        assert EMANesterov.for_run(steps, warmup=1).misses(steps) == ""


def test_methods_without_windows_are_as_they_are():
    settings = {"nag": {"momentum": 0.9}, "snoo": {"every": 5}, "long_horizon": {"every": 5}}
    for name in emanest.METHODS.keys() - {"ema_nesterov"}:
        method = emanest.METHODS[name]
        needed = settings.get(name, {})
        assert method.for_run(100, **needed) == method(**needed)


@pytest.mark.parametrize(
    ("steps", "settings", "error", "message"),
    [
        (0, {}, ValueError, "total_steps must be at least 1, got 0"),
        (-5, {}, ValueError, "total_steps must be at least 1, got -5"),
        (100.0, {}, TypeError, "total_steps must be an integer, got 100.0"),
        ("100", {}, TypeError, "total_steps must be an integer, got '100'"),
        (None, {}, TypeError, "total_steps must be an integer, got None"),
        (True, {}, TypeError, "total_steps must be an integer, got True"),
        (100, {"warm_up": 3}, TypeError, "no setting 'warm_up' .*did you mean 'warmup'"),
        (100, {"warmup": -3}, ValueError, "warmup must be at least 0, got -3"),
        (100, {"warmup": 0.3}, TypeError, "warmup must be an integer, got 0.3"),
        (100, {"rest": 0}, ValueError, "rest must be above warmup"),
        (100, {"decay": 1}, ValueError, "decay must be in"),
    ],
)
def test_bad_lengths_and_settings_are_named(steps, settings, error, message):
    with pytest.raises(error, match=message):
        EMANesterov.for_run(steps, **settings)


# method, steps of the run -> what is said
MISSED = [
    (
        EMANesterov(warmup=300),
        200,
        r"EMANesterov\(warmup=300\) never looks ahead in a run of 200 steps: for_run\(200\) gives "
        "warmup=60, rest=160$",
    ),
    (EMANesterov(rest=1), 200, r"EMANesterov\(rest=1\) never looks ahead in a run of 200"),
    (EMANesterov(), 1, r"EMANesterov\(\) never looks ahead in a run of 1 step: the first has no"),
    (
        EMANesterov(rest=500),
        200,
        r"EMANesterov\(rest=500\) never rests in a run of 200 steps: .* gives rest=160, and rest=N",
    ),
    (
        SNOO(500),
        100,
        r"SNOO\(every=500\) never syncs in a run of 100 steps, and x never moves: it needs 500",
    ),
    (Lookahead(5), 1, r"Lookahead\(every=5\) never syncs in a run of 1 step, and x never moves"),
    (NALA(5), 5, r"NALA\(every=5\) never syncs in a run of 5 steps, .* it needs 6 steps or more$"),
    (
        LongHorizon(5),
        5,
        r"LongHorizon\(every=5\) never syncs .* its base is left alone: it needs 6",
    ),
]


@pytest.mark.parametrize(("method", "steps", "message"), MISSED)
def test_a_run_too_short_for_a_method_is_said(method, steps, message):
    settings = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    with pytest.warns(UserWarning, match=f"^emanest: {message}") as told:
        assert type(method).for_run(steps, **settings) == method
    assert told[0].filename == __file__
    optimizer = ours([{"params": [p]} for p in parameters()], method)
    with pytest.warns(UserWarning, match=f"^emanest: {message}") as told:
        emanest.warn_of_windows(optimizer, steps)
    # once, however many groups
    assert (len(told), told[0].filename) == (1, __file__)


RUNS = [
    *(EMANesterov(0.5, 0.9, w, r) for w in range(4) for r in (None, *range(w + 1, 6))),
    *(cls(every) for cls in (SNOO, Lookahead, LongHorizon, NALA) for every in range(1, 5)),
]


@pytest.mark.parametrize("method", RUNS, ids=str)
def test_what_is_said_of_a_run_is_what_happens_in_it(method):
    """Runs of 1 to 6 steps on a parabola: is a gradient taken ahead, does x move?"""
    for steps in range(1, 7):
        seen = analysis.trajectory(method, lambda y: y, torch.ones(1), 0.1, steps)
        plain = analysis.trajectory(None, lambda y: y, torch.ones(1), 0.1, steps)
        missed = method.misses(steps)
        if isinstance(method, EMANesterov):
            assert ("looks ahead" in missed) == torch.equal(seen.x[:-1], seen.y[:-1])
            rests = "never rests" in missed
            assert not rests or not torch.equal(seen.x[-2], seen.y[-2])
            if not missed and method.rest is not None:
                assert torch.equal(seen.x[-2], seen.y[-2])
        elif isinstance(method, LongHorizon):
            assert bool(missed) == torch.equal(seen.y[:-1], plain.y[:-1])
        else:
            assert bool(missed) == bool((seen.x == seen.x[0]).all())


def test_groups_that_miss_something_are_told_apart():
    first, second, third = parameters()
    optimizer = ours([{"params": [first]}, {"params": [second], "lookahead": None}], SNOO(9))
    optimizer.add_param_group({"params": [third]})
    with pytest.warns(UserWarning, match=r"SNOO.every=9. never syncs .* \(groups \[0, 2\]\)$"):
        emanest.warn_of_windows(optimizer, 5)


def test_optimizers_are_found_inside_what_holds_them():
    optimizer = ours(parameters(), SNOO(9))
    holder = {"optimizers": [torch.optim.lr_scheduler.ConstantLR(optimizer)]}
    with pytest.warns(UserWarning, match="SNOO.every=9. never syncs in a run of 5 steps"):
        emanest.warn_of_windows(holder, 5)


@pytest.mark.parametrize("steps", [9, 10**9, float("inf")])
def test_of_a_run_that_is_long_enough_nothing_is_said(steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        emanest.warn_of_windows(ours(parameters(), SNOO(9)), steps)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (0, ValueError, "total_steps must be at least 1, got 0"),
        (-1, ValueError, "total_steps must be at least 1, got -1"),
        (9.5, TypeError, "total_steps must be an integer, got 9.5"),
        (float("-inf"), TypeError, "total_steps must be an integer, got -inf"),
        ("9", TypeError, "total_steps must be an integer, got '9'"),
    ],
)
def test_a_length_that_is_none_is_an_error(steps, error, message):
    with pytest.raises(error, match=message):
        emanest.warn_of_windows(ours(parameters(), SNOO(9)), steps)


def test_what_holds_no_optimizer_of_ours_is_an_error():
    with pytest.raises(TypeError, match="no optimizer of emanest was found"):
        emanest.warn_of_windows(torch.optim.SGD(parameters()), 5)
