# SPDX-License-Identifier: MIT
"""Reports of gains along an axis, losses along directions, maps and classifiers, by hand."""

import pytest
from reported import PAIRS, along_an_axis, cells, classified, mapped, probed, store, with_stages

from examples.lab import report
from examples.lab.experiments.sweep import Stage
from examples.lab.report import drawing

VERDICT = "verdict"


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


def test_the_loss_along_a_direction_is_less_that_at_x():
    section = report.section(*probed([0.1, 0.1, 0.04]))
    # deviations .02 .02 -.04: the root of .0024 / 6
    assert section.tables[0].rows == [["-1", "+0.2 ± 0"], ["0", "0 ± 0"], ["1", "-0.080 ± 0.020"]]
    assert section.tables[1].rows[2] == ["1", "+0.1 ± 0"]
    assert "in all of 3 seeds at 1 of 1 times along the average of updates and at 0" in str(section)


def test_a_loss_that_rises_in_one_run_does_not_fall_in_all():
    section = report.section(*probed([0.1, 0.1, -0.01]))
    assert "in all of 3 seeds at 0 of 1 times along the average of updates" in str(section)


def test_a_map_marks_what_is_beyond_two_errors():
    section = report.section(*mapped(PAIRS))
    assert section.tables[0].columns == ("decay \\ stepsize", "0.5", "0.7")
    assert section.tables[0].rows == [
        ["0.9", "-0.097 ± 0.015 *", "+0.020 ± 0.046"],
        ["0.99", "diverged", "+0.1000 ± 0.0058 *"],
    ]
    assert section.summary == [
        "Of 4 pairs 1 end more than 2 standard errors below Base and 1 above, 1 diverged; the "
        "lowest is -0.097 ± 0.015 at decay 0.9 and stepsize 0.5 (3 seeds; 5 are needed to call it "
        "better).",
        "With 3 seeds chance alone would put 18 % of equals that far apart.",
    ]
    assert "end of what was tried: decay 0.9, stepsize 0.5" in str(section)


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


GRID = [0.0015 * 2 ** (k / 2) for k in range(11)]


@pytest.mark.parametrize(
    ("places", "kept"), [(GRID, GRID[::2]), (GRID[::2], GRID[::2]), ([1], [1])]
)
def test_numbers_on_an_axis_have_room(places, kept):
    assert drawing.apart(places) == kept


def test_many_decades_have_few_numbers():
    assert len(drawing.apart([2.0**k for k in range(40)])) <= 9
