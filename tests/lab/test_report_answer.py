# SPDX-License-Identifier: MIT
"""The answer over all experiments: by rules from verdicts, none where seeds are too few."""

import dataclasses

import pytest
from reported import LOSSES, SETTINGS, SWEEP, store, with_stages

from examples.lab import report
from examples.lab.experiments.sweep import Arm, Stage
from examples.lab.settings import merged


def answer_to(experiment, losses):
    page = report.page_text({experiment.name: experiment}, store(experiment, losses))
    return page.split("## The answer")[1].split("## How it was measured")[0]


def test_an_answer_waits_for_missing_runs():
    losses = {**LOSSES, "Base": {**LOSSES["Base"], 1.0: [2.0]}}
    answer = answer_to(SWEEP, losses)
    assert "No comparison is settled yet." in answer
    assert "Not settled yet, as runs are missing: Base + EMA." in answer
    assert "helps" not in answer


# losses of the lookahead at its best learning rate -> what the answer says
ANSWERS = {
    "It does harm in 1: the loss ends 9.8 % higher.": [2.2, 2.21, 2.25, 2.25, 2.29],
    "No difference is seen in 1.": [1.95, 2.07, 2.0, 2.1, 2.04],
    "Runs diverged in 1.": [1.95, None, 2.0, 2.1, 2.04],
}


@pytest.mark.parametrize("said", ANSWERS)
def test_an_answer_says_where_looking_ahead_does_not_help(said):
    experiment = with_stages(SWEEP, Stage((0, 1, 2, 3, 4)), factors=(1.0,))
    losses = {"Base": {1.0: LOSSES["Base"][1.0]}, "Base + EMA": {1.0: ANSWERS[said]}}
    answer = answer_to(experiment, losses)
    assert "helps in 0 of 1 comparison" in answer
    assert "without a search" in answer
    assert said in answer


def test_of_two_comparisons_that_with_more_seeds_is_in_the_table():
    short = with_stages(SWEEP, Stage((0, 1)), factors=(1.0,), name="short")
    arms = (SWEEP.arms[0], dataclasses.replace(SWEEP.arms[1], label="Base + far"))
    settings = merged(arms[1].settings, {"lookahead": {"stepsize": 0.9}})
    short = dataclasses.replace(
        short, arms=(arms[0], dataclasses.replace(arms[1], settings=settings))
    )
    lines = store(SWEEP, LOSSES) | store(
        short, {"Base": {1.0: [2.0, 2.02]}, "Base + far": {1.0: [1, 1]}}
    )
    for experiments in ((short, SWEEP), (SWEEP, short)):
        page = report.page_text({each.name: each for each in experiments}, lines)
        assert "| EMA       | -4.90 ± 0.22 %, better |" in page


def test_an_answer_is_of_lookaheads_beside_none():
    other = Arm("Other base", merged(SETTINGS, {"optimizer": {"name": "sgd", "lr": 1.0}}), "Base")
    experiment = dataclasses.replace(SWEEP, arms=(SWEEP.arms[0], other))
    losses = {"Base": LOSSES["Base"], "Other base": LOSSES["Base + EMA"]}
    assert "Other base is better" in report.text(experiment, store(experiment, losses))
    assert "Other base" not in answer_to(experiment, losses)


def test_an_answer_gives_no_verdict_on_two_seeds():
    experiment = with_stages(SWEEP, Stage((0, 1)), factors=(1.0,))
    answer = answer_to(experiment, {"Base": {1.0: [2.0, 2.0]}, "Base + EMA": {1.0: [1.0, 1.1]}})
    assert "**Too few seeds for a verdict** (5 are needed):" in answer
    assert "-47.5 ± 2.5 %, 2 seeds" in answer
    assert "helps" not in answer
