# SPDX-License-Identifier: MIT
"""Reports of made-up runs: tables against numbers by hand, verdicts, missing and diverged runs."""

import dataclasses

import pytest
from reported import BASE, LOSSES, SETTINGS, SWEEP, cells, store, with_stages

from examples.lab import report
from examples.lab.experiments import EXPERIMENTS
from examples.lab.experiments.sweep import Arm, Stage
from examples.lab.report.runs import collect
from examples.lab.report.sweep import shown
from examples.lab.settings import merged

FEW = with_stages(SWEEP, Stage((0,)), Stage((1, 2), around=0))
VERDICT = "verdict"


def few(losses):
    return {label: {f: ends[:3] for f, ends in row.items()} for label, row in losses.items()}


def changed(losses, label, factor, ends):
    return {**losses, label: {**losses[label], factor: ends}}


def test_the_table_of_a_sweep_is_what_is_computed_by_hand():
    section = report.section(SWEEP, store(SWEEP, LOSSES))
    assert len(section.tables) == 2
    rows = cells(section.tables[0])
    assert rows["Base"]["best lr"] == "1"
    assert rows["Base + EMA"] == {
        "arm": "Base + EMA",
        "best lr": "0.5",
        # deviations -.04 -.03 .01 .01 .05: the root of .0052 / 20
        "loss at the end (seeds)": "1.940 ± 0.016 (5)",
        # -.10 -.11 -.09 -.11 -.09: the root of .0004 / 20
        "less that of Base": "-0.1000 ± 0.0045",
        "in %": "-4.90 ± 0.22 %",
        # 100 steps for each 1 of the loss: 10, 11, 9, 11, 9
        "same loss so many steps earlier": "10.00 ± 0.45",
        "verdict": "better",
        # at lr 1 there is seed 0 alone
        "difference at Base's best lr (seeds)": "-0.05 (1)",
    }
    assert section.answer[0] == [
        "Base + EMA is better than Base: its loss is lower by 0.1000 ± 0.0045 (4.90 ± 0.22 %, "
        "5 seeds); what Base ends with is reached 10.00 ± 0.45 of 100 steps earlier."
    ]


def test_the_loss_at_each_learning_rate_shows_that_it_was_tuned():
    rows = cells(report.section(SWEEP, store(SWEEP, LOSSES)).tables[1])
    assert list(rows["Base"].values()) == [
        "Base",
        "",
        "2.1 (1)",
        "**2.040 ± 0.014 (5)**",
        "2.3 (1)",
    ]
    assert rows["Base"]["0.25"] == ""
    assert rows["Base + EMA"]["0.25"] == "2.4 (1)"
    assert rows["Base + EMA"]["0.5"] == "**1.940 ± 0.016 (5)**"


# losses of the lookahead at its best lr -> verdict
VERDICTS = {
    "better": [1.9, 1.91, 1.95, 1.95, 1.99],
    "worse": [2.09, 2.12, 2.13, 2.17, 2.17],
    "no difference seen: within 2 errors": [1.95, 2.07, 2.0, 2.1, 2.04],
    "diverged in 1 of 5 seeds": [1.9, 1.91, None, 1.95, 1.99],
}


@pytest.mark.parametrize("words", VERDICTS)
def test_five_seeds_give_a_verdict(words):
    one = with_stages(SWEEP, Stage((0, 1, 2, 3, 4)), factors=(1.0,))
    losses = {"Base": {1.0: LOSSES["Base"][1.0]}, "Base + EMA": {1.0: VERDICTS[words]}}
    section = report.section(one, store(one, losses))
    assert cells(section.tables[0])["Base + EMA"]["verdict"] == words


def test_three_seeds_give_none():
    section = report.section(FEW, store(FEW, few(LOSSES)))
    row = cells(section.tables[0])["Base + EMA"]
    assert row["less that of Base"] == "-0.1000 ± 0.0058"
    assert row["verdict"] == "no difference seen: 3 seeds, 5 are needed"


def test_runs_that_are_missing_are_said():
    assert not any("missing" in str(said) for said in whole().answer)
    lines = store(SWEEP, changed(LOSSES, "Base + EMA", 0.5, [1.9, 1.91]))
    section = report.section(SWEEP, lines)
    assert section.answer[0] == "Not complete: at least 3 runs are missing, of Base + EMA."
    assert cells(section.tables[0])["Base + EMA"]["loss at the end (seeds)"].endswith("(2)")
    assert section.stored == len(lines)


def whole():
    return report.section(SWEEP, store(SWEEP, LOSSES))


def test_an_arm_without_a_best_learning_rate_is_shown():
    lines = store(SWEEP, {**LOSSES, "Base + EMA": {0.5: [1.9], 1.0: [1.95]}})
    section = report.section(SWEEP, lines)
    assert cells(section.tables[0])["Base + EMA"]["best lr"] == "not found yet"
    assert cells(section.tables[1])["Base + EMA"]["0.5"] == "1.9 (1)"


def test_nothing_stored_is_a_section_too():
    section = report.section(SWEEP, {})
    assert section.stored == 0
    assert section.answer[0] == "Not complete: at least 6 runs are missing, of Base; Base + EMA."


def test_a_run_that_diverged_is_shown_and_not_averaged_away():
    losses = changed(LOSSES, "Base + EMA", 0.5, [1.9, 1.91, None, 1.95, 1.99])
    section = report.section(SWEEP, store(SWEEP, losses))
    row = cells(section.tables[0])["Base + EMA"]
    assert row["loss at the end (seeds)"] == "diverged in 1 of 5 seeds"
    assert row["less that of Base"] == "-"
    assert section.answer[0] == ["Base + EMA beside Base, loss: diverged in 1 of 5 seeds."]


def test_a_best_learning_rate_at_the_end_of_the_grid_is_said():
    losses = {
        "Base": LOSSES["Base"],
        "Base + EMA": {2.0**k: [2.0 - 0.01 * k] for k in range(-1, 4)},
    }
    losses["Base + EMA"][8.0] = [1.97, 1.97, 1.97, 1.97, 1.97]
    section = report.section(SWEEP, store(SWEEP, losses))
    assert "lowest or highest that was tried: Base + EMA." in str(section)


@pytest.mark.parametrize(
    ("entry", "what"), [("processor", "processors"), ("commit", "commits"), ("torch", "torch")]
)
def test_what_was_not_measured_alike_is_said(entry, what):
    other = lambda label, seed: {entry: "another"} if label == "Base" and seed == 4 else {}  # noqa: E731
    said = str(report.section(SWEEP, store(SWEEP, LOSSES, changed=other)))
    assert f"{what} (" in said
    assert "another" in said
    assert "Compared across" not in str(whole())


def several(lookaheads):
    """A base with so many arms beside it, each at two settings; the later, the lower."""
    arms, losses = [BASE], {"Base": {1.0: [2.0, 2.02]}}
    for k in range(lookaheads):
        for twice in (0, 1):
            look = {"lookahead": {"name": "ema_nesterov", "stepsize": k, "decay": twice}}
            label, at = f"look {k}, {twice}", {"base": "Base", "lookahead": f"look {k}"}
            arms.append(Arm(label, merged(SETTINGS, look), "Base", at))
            losses[label] = {1.0: [1.9 - 0.02 * k - 0.01 * twice, 1.92 - 0.02 * k - 0.01 * twice]}
    experiment = dataclasses.replace(SWEEP, arms=tuple(arms), factors=(1.0,))
    experiment = with_stages(experiment, Stage((0, 1)))
    return experiment, store(experiment, losses)


def test_the_lowest_of_several_is_in_the_title():
    title = report.section(*several(2)).figures[0].title
    assert title.startswith("look 1, 1, the lowest of 4 beside it, ends 0.13 ± 0 lower than Base")


def test_a_figure_of_many_arms_has_the_lowest_of_each_lookahead():
    groups = collect(*several(5))
    assert list(shown("Base", groups)) == ["Base", *(f"look {k}, 1" for k in range(5))]
    few = collect(*several(2))
    assert shown("Base", few) == few


def test_every_experiment_has_a_report():
    for experiment in EXPERIMENTS.values():
        assert experiment.report in report.REPORTS
        assert report.section(experiment, {}).question == experiment.question


@pytest.mark.parametrize(("goal", "words"), [(2.042, "Base reaches 2.042"), (2.0415, "not reach")])
def test_a_goal_is_reached_by_the_benchmarks_rule(goal, words):
    # (2.042 - 2.04) * 5 ** 0.5 is 0.0045, and with 2.0415 0.0034
    few = dataclasses.replace(SWEEP, goal=goal)
    assert words in report.text(few, store(SWEEP, LOSSES))
