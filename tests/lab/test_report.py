"""Reports of made-up runs: tables against numbers by hand, verdicts, missing and diverged runs."""

import pytest
from reported import AHEAD, BASE, LOSSES, SETTINGS, SWEEP, cells, store, with_stages

from examples.lab import report
from examples.lab.experiments import EXPERIMENTS
from examples.lab.experiments.sweep import Arm, Experiment, Stage
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


def along_an_axis(gains):
    """An experiment over lengths of runs, and its lines; gains by steps, of five seeds."""
    arms, losses = [], {}
    for steps, found in gains.items():
        settings = merged(SETTINGS, {"steps": steps})
        name, at = f"Base, {steps}", {"base": "Base", "steps": steps}
        arms.append(Arm(name, settings, at={**at, "lookahead": "none"}))
        at |= {"lookahead": "EMA"}
        arms.append(Arm(f"{name} + EMA", merged(settings, AHEAD), name, at))
        losses[name] = {1.0: [2.0] * len(found)}
        losses[f"{name} + EMA"] = {1.0: [2.0 - gain for gain in found]}
    stages = (Stage(tuple(range(len(found)))),)
    experiment = Experiment("axis", "Does it grow?", tuple(arms), stages=stages, report="axis")
    return experiment, store(experiment, losses)


# gains of 200 steps beside those of 100, .01 .02 .03 .02 .02 -> what is said
TRENDS = {
    "grows": [0.05, 0.06, 0.07, 0.06, 0.06],
    "shrinks": [0.0, 0.01, 0.01, 0.01, 0.0],
    "does not change as far as is seen (within 2 errors)": [0.02, 0.01, 0.03, 0.03, 0.01],
    "does not change as far as is seen (3 seeds, 5 are needed)": [0.05, 0.06, 0.07],
}


@pytest.mark.parametrize("said", TRENDS)
def test_a_gain_grows_only_where_its_change_is_beyond_two_errors(said):
    last = TRENDS[said]
    first = [0.01, 0.02, 0.03, 0.02, 0.02][: len(last)]
    section = report.section(*along_an_axis({200: last, 100: first}))
    assert section.summary[0].startswith(f"The gain of Base + EMA {said}: 0.0200 ± 0.00")
    assert "with 200 steps" in section.summary[0]


def test_the_table_of_an_axis_is_what_is_computed_by_hand():
    section = report.section(*along_an_axis({100: [0.01, 0.02, 0.03, 0.02, 0.02], 400: [0.1] * 5}))
    rows = cells(section.tables[0])
    assert list(rows) == ["100", "400"]
    # deviations -.01 0 .01 0 0: the root of .0002 / 20; the loss without is 2
    assert rows["100"]["gain"] == "+0.0200 ± 0.0032"
    assert rows["100"]["gain in %"] == "+1.00 ± 0.16 %"
    assert rows["100"]["same loss so many steps earlier"] == "2.00 ± 0.32"
    assert rows["100"]["of the run"] == "2.0 %"
    assert rows["400"]["of the run"] == "10.0 %"


def probed(falls):
    """An experiment with probes at one step, three seeds, and what was taken along m."""
    settings = merged(SETTINGS, AHEAD, {"probe": {"every": 4, "stepsizes": [-1.0, 0.0, 1.0]}})
    arm = Arm("Base + EMA", settings, "Base", {"base": "Base", "lookahead": "EMA"})
    stages = (Stage((0, 1, 2)),)
    experiment = Experiment("along", "Does it fall?", (arm,), stages=stages, report="along")
    lines = store(experiment, {"Base + EMA": {1.0: [2.0, 2.0, 2.0]}})
    for line in lines.values():
        fall = falls[line["settings"]["seed"]]
        taken = {"average": [2.2, 2.0, 2.0 - fall], "last step": [2.1, 2.0, 2.1]}
        line["result"]["probes"] = [{"step": 100, **taken}]
    return experiment, lines


def test_the_loss_along_a_direction_is_less_that_at_x():
    section = report.section(*probed([0.1, 0.1, 0.04]))
    # deviations .02 .02 -.04: the root of .0024 / 6
    assert section.tables[0].rows == [["-1", "+0.2 ± 0"], ["0", "0 ± 0"], ["1", "-0.080 ± 0.020"]]
    assert section.tables[1].rows[2] == ["1", "+0.1 ± 0"]
    assert "in all of 3 seeds at 1 of 1 times along the average of updates and at 0" in str(section)


def test_a_loss_that_rises_in_one_run_does_not_fall_in_all():
    section = report.section(*probed([0.1, 0.1, -0.01]))
    assert "in all of 3 seeds at 0 of 1 times along the average of updates" in str(section)


def mapped(losses):
    """An experiment over decay and stepsize, with losses of each pair."""
    arms, found = [BASE], {"Base": {1.0: [2.0, 2.02, 2.04]}}
    for (decay, stepsize), ends in losses.items():
        look = {"lookahead": {"name": "ema_nesterov", "decay": decay, "stepsize": stepsize}}
        label, at = f"{decay}, {stepsize}", {"decay": decay, "stepsize": stepsize}
        arms.append(Arm(label, merged(SETTINGS, look), "Base", {"base": "Base", **at}))
        found[label] = {1.0: ends}
    stages = (Stage((0, 1, 2)),)
    experiment = Experiment("map", "Which?", tuple(arms), stages=stages, report="map")
    return experiment, store(experiment, found)


PAIRS = {
    (0.9, 0.5): [1.9, 1.9, 1.97],  # -.10 -.12 -.07
    (0.9, 0.7): [2.0, 2.12, 1.94],  # 0 .1 -.1
    (0.99, 0.5): [None, 2.0, 2.0],
    (0.99, 0.7): [2.1, 2.13, 2.13],  # .1 .11 .09
}


def test_a_map_marks_what_is_beyond_two_errors():
    section = report.section(*mapped(PAIRS))
    assert section.tables[0].columns == ("decay \\ stepsize", "0.5", "0.7")
    assert section.tables[0].rows == [
        ["0.9", "-0.097 ± 0.015 *", "0.000 ± 0.058"],
        ["0.99", "diverged", "+0.1000 ± 0.0058 *"],
    ]
    assert section.summary == [
        "Of 4 pairs 1 end more than 2 standard errors below Base and 1 above, 1 diverged; the "
        "lowest is -0.097 ± 0.015 at decay 0.9 and stepsize 0.5 (3 seeds; 5 are needed to call it "
        "better)."
    ]
    assert "end of what was tried: decay 0.9, stepsize 0.5" in str(section)


def classified():
    """Classifiers of two seeds, the second arm beside a published accuracy."""
    at = {"base": "Base", "published": 0.9}
    arms = BASE, Arm("Base + NALA", merged(SETTINGS, AHEAD), "Base", at)
    stages = (Stage((0, 1)),)
    experiment = Experiment("classes", "Does it?", arms, stages=stages, report="classes")
    lines = store(experiment, {"Base": {1.0: [0.4, 0.42]}, "Base + NALA": {1.0: [0.3, 0.34]}})
    for line in lines.values():
        ahead, seed = line["settings"]["lookahead"] is not None, line["settings"]["seed"]
        line["result"]["accuracy"] = [0.1, 0.5, 0.6, 0.7, 0.8 + 0.05 * ahead + 0.01 * seed]
    return experiment, lines


def test_classifiers_have_accuracy_and_loss_beside_what_was_published():
    accuracy, loss = map(cells, report.section(*classified()).tables)
    assert accuracy["Base"]["accuracy (seeds)"] == "80.50 ± 0.50 (2)"
    assert accuracy["Base + NALA"]["accuracy (seeds)"] == "85.50 ± 0.50 (2)"
    assert accuracy["Base + NALA"]["published"] == "90"
    assert accuracy["Base"]["published"] == "-"
    assert accuracy["Base + NALA"]["difference"].startswith("+5")
    assert loss["Base + NALA"]["difference"] == "-0.090 ± 0.010"
    assert "published" not in loss["Base"]
    assert loss["Base + NALA"][VERDICT] == "no difference seen: 2 seeds, 5 are needed"


def test_an_accuracy_is_better_where_it_is_higher():
    experiment, _ = classified()
    experiment = with_stages(experiment, Stage((0, 1, 2, 3, 4)))
    lines = store(experiment, {arm.label: {1.0: [0.4] * 5} for arm in experiment.arms})
    for line in lines.values():
        ahead, seed = line["settings"]["lookahead"] is not None, line["settings"]["seed"]
        line["result"]["accuracy"] = [0.1, 0.5, 0.6, 0.7, 0.8 + (0.05 + 0.01 * seed) * ahead]
    accuracy = cells(report.section(experiment, lines).tables[0])
    assert accuracy["Base + NALA"][VERDICT] == "better"


def test_every_experiment_has_a_report():
    for experiment in EXPERIMENTS.values():
        assert experiment.report in report.REPORTS
        assert report.section(experiment, {}).question == experiment.question
