# SPDX-License-Identifier: MIT
"""Means, paired differences and crossings, against numbers worked out by hand."""

import math

import pytest
import torch

from emanest.tools.statistics import (
    Difference,
    Earlier,
    Mean,
    mean,
    paired,
    paired_steps_earlier,
    plus_minus,
    steps_earlier,
    track3,
)

NAN, INF = math.nan, math.inf


def near(expected):
    """Numbers, NaN among them, but for rounding."""
    return pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # deviations -1, 0, 1: variance 2 / 2, error sqrt(1 / 3)
        ([1, 2, 3], (2, 1 / math.sqrt(3), 3, 0)),
        # deviations -1.5, -1.5, 1.5, 1.5: variance 9 / 3, error sqrt(3 / 4)
        ([1, 1, 4, 4], (2.5, math.sqrt(0.75), 4, 0)),
        ([0.1] * 7, (0.1, 0, 7, 0)),
        ([5.0], (5, NAN, 1, 0)),
        ([1, NAN, 3], (NAN, NAN, 3, 1)),
        ([INF, -INF], (NAN, NAN, 2, 2)),
        # squares of which would be too large
        ([1e200, 3e200], (2e200, 1e200, 2, 0)),
    ],
)
def test_a_mean_has_the_standard_error_of_the_sample(values, expected):
    assert mean(values) == near(expected)
    assert mean(iter(values)) == near(expected)


def seeded(values):
    return dict(enumerate(values))


# values of five seeds -> mean, error, verdict, words, beside 1.0 everywhere
FIVE = {
    # differences -1, -1, -1, -1, -2: mean -1.2, squared deviations .8, error sqrt(.8 / 20) = .2
    "below by 6 errors": ([0, 0, 0, 0, -1], -1.2, 0.2, "better", "better"),
    "above by 6 errors": ([2, 2, 2, 2, 3], 1.2, 0.2, "worse", "worse"),
    # 0, 0, 0, 0, 1: mean .2, squared deviations .8, error .2
    "one error": ([1, 1, 1, 1, 2], 0.2, 0.2, *["no difference seen"] * 2),
    "the same": ([1] * 5, 0, 0, *["no difference seen"] * 2),
}


@pytest.mark.parametrize("case", FIVE)
@pytest.mark.parametrize("higher_is_better", [False, True])
def test_a_difference_is_called_one_beyond_two_errors(case, higher_is_better):
    values, middle, error, verdict, words = FIVE[case]
    found = paired(seeded(values), seeded([1.0] * 5), higher_is_better=higher_is_better)
    assert found[:3] == near((middle, error, 5))
    turned = {"better": "worse", "worse": "better"} if higher_is_better else {}
    assert found.verdict == turned.get(verdict, verdict)
    why = ": within 2 errors" if verdict == "no difference seen" else ""
    assert found.words == turned.get(words, words) + why


@pytest.mark.parametrize(
    ("count", "mean", "verdict"),
    [
        (5, -0.41, "better"),
        (5, 0.41, "worse"),
        (5, -0.4, "no difference seen"),
        (5, 0.4, "no difference seen"),
        (4, -9.0, "no difference seen"),
    ],
)
def test_the_verdict_needs_five_seeds_and_more_than_two_errors(count, mean, verdict):
    assert Difference(mean, 0.2, count).verdict == verdict


@pytest.mark.parametrize(("count", "share"), [(5, 0.116), (10, 0.077)])
def test_chance_alone_gets_a_verdict_as_often_as_the_documentation_says(count, share):
    """One in nine, and one in 13: Student's t beyond 2, with ``count - 1`` degrees of freedom."""
    zeros = dict.fromkeys(range(count), 0.0)
    draws = torch.randn(4000, count, dtype=torch.float64).tolist()
    verdicts = [paired(seeded(draw), zeros).verdict for draw in draws]
    assert (len(draws) - verdicts.count("no difference seen")) / len(draws) == pytest.approx(
        share, abs=0.013
    )
    assert verdicts.count("better") == pytest.approx(verdicts.count("worse"), rel=0.3)


@pytest.mark.parametrize(
    ("values", "others", "expected"),
    [
        ([1, 2], [1, 1], "no difference seen: 2 seeds, 5 are needed"),
        ([1], [9], "no difference seen: 1 seed, 5 are needed"),
        ([], [9], "no difference seen: 0 seeds, 5 are needed"),
        ([1, NAN, INF], [1, 1, 1], "diverged in 2 of 3 seeds"),
        ([1, 1, 1], [1, NAN, 1], "the other diverged in 1 of 3 seeds"),
        ([NAN], [NAN], "diverged in 1 of 1 seed and the other diverged in 1 of 1 seed"),
    ],
)
def test_words_say_why_there_is_no_verdict(values, others, expected):
    found = paired(seeded(values), seeded(others))
    assert found.words == expected
    assert found.verdict == ("diverged" if "diverged" in expected else "no difference seen")
    assert math.isnan(found.mean) == ("diverged" in expected or not values)


def test_differences_are_those_of_the_seeds_that_both_have():
    found = paired({3: 1.0, 1: 5.0, 7: NAN}, {1: 4.0, 3: 3.0, 8: NAN})
    # -2 and 1: mean -.5, error 1.5
    assert found == near((-0.5, 1.5, 2, 0, 0, False))


@pytest.mark.parametrize(
    ("losses", "target", "met"),
    [
        ([3.276], 3.28, True),
        ([3.2761], 3.28, False),
        ([3.277, 3.279, 3.278, 3.278], 3.28, True),  # .002 * 2
        ([3.277, 3.2795, 3.278, 3.278], 3.28, False),
        ([3.27, NAN, 3.27], 3.28, False),
        ([3.276], 3.27, False),
    ],
)
def test_track_3s_rule(losses, target, met):
    assert track3(losses, target) is met
    assert target != 3.28 or track3(losses) is met


STEPS = [0, 10, 20, 40]

# losses at STEPS, goal -> steps earlier
CURVES = [
    ("on the line between two", [5, 4, 2, 1], 3, 25),
    ("on unequal distances", [5, 4, 3, 1], 2, 10),
    ("at an evaluation", [5, 4, 2, 1], 4, 30),
    ("at the end", [5, 4, 2, 1], 1, 0),
    ("never", [5, 4, 2, 1], 0.9, None),
    ("from the first on", [1, 1, 1, 1], 3, 40),
    ("below, above and below again: the last time", [5, 1, 4, 2], 3, 10),
    ("below and above again", [5, 1, 2, 4], 3, None),
    ("touching the goal from below", [5, 1, 3, 2], 3, 35),
    ("from a value that is not finite", [5, NAN, 2, 1], 3, 20),
    ("from an infinite one", [5, 4, INF, 1], 3, 0),
    ("to minus infinity", [5, 4, 2, -INF], 3, None),
    ("diverged at the end", [5, 4, 2, NAN], 3, None),
    ("to a goal that is not finite", [5, 4, 2, 1], NAN, None),
    ("to an infinite goal", [5, 4, 2, 1], INF, None),
]


@pytest.mark.parametrize(("losses", "goal", "expected"), [row[1:] for row in CURVES],
                         ids=[row[0] for row in CURVES])  # fmt: skip
def test_a_loss_is_reached_where_the_curve_crosses_it_for_good(losses, goal, expected):
    assert steps_earlier(STEPS, losses, goal) == expected
    accuracies = [-loss for loss in losses]
    assert steps_earlier(STEPS, accuracies, -goal, higher_is_better=True) == expected


def test_a_run_of_one_evaluation():
    assert steps_earlier([7], [1.0], 2.0) == 0
    assert steps_earlier([7], [3.0], 2.0) is None


def test_steps_earlier_are_paired_by_seed():
    other = (STEPS, [6, 5, 4, 3])
    early, earlier, never = ((STEPS, losses) for losses in ([5, 4, 2, 1], [4, 3, 2, 1], [6] * 4))
    found = paired_steps_earlier({0: early, 1: earlier, 5: never}, {1: other, 0: other, 9: other})
    # 25 and 30
    assert found == near((27.5, 2.5, 2, 2))
    assert found.words == "27.5 ± 2.5"
    found = paired_steps_earlier({0: early, 1: never, 2: never}, dict.fromkeys(range(3), other))
    assert found == near((NAN, NAN, 3, 1))
    assert found.words == "never for 2 of 3 seeds"
    assert paired_steps_earlier({0: never}, {0: other}).words == "never"
    higher = {0: (STEPS, [-5, -4, -2, -1])}, {0: (STEPS, [-6, -5, -4, -3])}
    assert paired_steps_earlier(*higher, higher_is_better=True) == near((25, NAN, 1, 1))


def test_without_a_common_seed_there_is_no_number_of_steps():
    assert paired_steps_earlier({0: ([1], [1])}, {1: ([1], [1])}) == near((NAN, NAN, 0, 0))


def test_a_run_that_diverged_early_is_never_earlier():
    stopped, whole = ([0, 10], [5, NAN]), (STEPS, [5, 4, 2, 1])
    assert paired_steps_earlier({0: stopped}, {0: whole}).words == "never"
    assert paired_steps_earlier({0: whole}, {0: stopped}).words == "never"


@pytest.mark.parametrize(
    ("found", "expected", "signed"),
    [
        (Mean(1.65361, 0.00123, 3), "1.6536 ± 0.0012", "+1.6536 ± 0.0012"),
        (Mean(-0.0257, 0.013, 3), "-0.026 ± 0.013", "-0.026 ± 0.013"),
        (Mean(243.21, 12.3, 3), "243 ± 12", "+243 ± 12"),
        (Mean(24321.4, 1234.0, 3), "24321 ± 1234", "+24321 ± 1234"),
        (Mean(0.5, 0.0999, 3), "0.500 ± 0.100", "+0.500 ± 0.100"),
        (Mean(1.23e-11, 4.5e-13, 3), "1.2e-11 ± 4.5e-13", "+1.2e-11 ± 4.5e-13"),
        (Mean(1.653612, NAN, 1), "1.6536", "+1.6536"),
        (Difference(0, 0, 3), "0 ± 0", "0 ± 0"),
        (Earlier(NAN, NAN, 3, 0), "-", "-"),
    ],
)
def test_numbers_are_written_to_two_digits_of_their_error(found, expected, signed):
    assert plus_minus(found) == expected
    assert plus_minus(found, sign=True) == signed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "values is empty: a mean needs at least one"),
        (lambda: track3([]), "values is empty"),
        (lambda: steps_earlier([], [], 1.0), "at least one, got 0 steps and 0 values"),
        (lambda: steps_earlier([1, 2], [1.0], 1.0), "as many, .* got 2 steps and 1 values"),
        (lambda: steps_earlier([1, 1], [1.0, 1.0], 1.0), r"steps must rise, got \[1, 1\]"),
        (
            lambda: paired_steps_earlier({4: ([1, 2], [2, 1])}, {4: ([1, 3], [2, 1])}),
            "runs of seed 4 end at steps 2 and 3: compare runs of as many steps",
        ),
        (lambda: paired_steps_earlier({4: ([1], [2])}, {4: ([], [])}), "got 0 steps"),
    ],
)
def test_bad_input_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
