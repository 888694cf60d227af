# SPDX-License-Identifier: MIT
"""The coefficient sets: where they leave singular values, and what is accepted in their place."""

import numpy
import pytest
import torch

from emanest.matrix.coefficients import COEFFICIENTS, check_coefficients, polynomials
from helpers import SEQUENCES

# name, steps -> range of the final singular value for s from 1e-3, 1e-2, 0.1 to 1 (ALGORITHMS 4.1)
RANGES = {
    ("keller", 5): [(0.471, 1.202), (0.682, 1.134), (0.682, 1.134)],
    ("you", 5): [(0.475, 1.145), (0.978, 1.032), (0.978, 1.032)],
    ("polar_express", 5): [(0.846, 1.124), (0.870, 1.124), (0.870, 1.124)],
    ("polar_express_cushioned", 5): [(0.859, 1.141)] * 3,
    ("cans", 5): [(0.884, 1.120)] * 3,
    ("polar_express", 8): [(0.999, 1.001)] * 3,
    ("simple", 12): [(0.999, 1.001)] * 3,
    ("quintic", 12): [(0.981, 1.0), (1.0, 1.0), (1.0, 1.0)],
    ("cubic", 5): [(0.119, 1.300), (0.774, 1.300), (0.774, 1.300)],
}
SLOPES = {
    ("keller", 5): 485,
    ("you", 5): 493,
    ("polar_express", 5): 976,
    ("cans", 5): 1049,
    ("polar_express", 8): 6363,
    ("simple", 12): 4096,
    ("quintic", 12): 1888,
    ("cubic", 5): 119,
}


def final(name, steps, s):
    """What becomes of singular values, as they are once the norm and the margin are divided out."""
    rows, _ = polynomials(name, steps)
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize(("name", "steps"), RANGES)
def test_singular_values_end_in_the_published_range(name, steps):
    for least, (low, high) in zip((1e-3, 1e-2, 0.1), RANGES[name, steps], strict=True):
        found = final(name, steps, torch.logspace(torch.tensor(least).log10(), 0, 200_001).double())
        # the table has three decimals
        assert found.min().item() == pytest.approx(low, abs=2e-3)
        assert found.max().item() == pytest.approx(high, abs=2e-3)


@pytest.mark.parametrize(("name", "steps"), SLOPES)
def test_small_values_grow_by_the_published_factor(name, steps):
    tiny = torch.tensor(1e-12, dtype=torch.float64)
    assert (final(name, steps, tiny) / tiny).item() == pytest.approx(SLOPES[name, steps], abs=0.6)


def test_the_last_triple_is_repeated():
    rows, _ = polynomials([(3.0, -3.0, 1.0), (2.0, -1.5, 0.5)], 4)
    assert rows == [(3.0, -3.0, 1.0), *[(2.0, -1.5, 0.5)] * 3]
    assert polynomials((2.0, -1.5, 0.5), 2) == ([(2.0, -1.5, 0.5)] * 2, 1.0)


def test_safety_divides_all_but_the_last():
    rows, _ = polynomials("polar_express", 9)
    plain = COEFFICIENTS["polar_express"].rows
    assert rows[0] == pytest.approx([k / 1.01**p for k, p in zip(plain[0], (1, 3, 5), strict=True)])
    assert rows[-2:] == [plain[-1]] * 2


def test_every_set_has_a_source():
    assert all(row.source and row.rows for row in COEFFICIENTS.values())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("kellr", ValueError, "coefficients must be one of .*got 'kellr'"),
        ((1.0, 2.0), ValueError, r"coefficients must have three numbers .*got \(1.0, 2.0\)"),
        ([(1.0, 2.0, 3.0), (1.0,)], ValueError, r"coefficients\[1\] must have three numbers"),
        ((1.0, "a", 2.0), TypeError, r"coefficients\[1\] must be a number, got 'a'"),
        ((1.0, float("nan"), 2.0), ValueError, r"coefficients\[1\] must be finite, got nan"),
        ((), TypeError, r"coefficients must be one of .*got \(\)"),
        (3.4, TypeError, "coefficients must be one of .*got 3.4"),
        (None, TypeError, "coefficients must be one of .*got None"),
        ({1.0: 2.0, 3.0: 4.0, 5.0: 6.0}, TypeError, "coefficients must be one of .*got {1.0: 2.0"),
        ({1.0, 2.0, 3.0}, TypeError, "coefficients must be one of .*got {1.0"),
        (numpy.float64(3.0), TypeError, "coefficients must be one of .*got np.float64"),
        (numpy.array(3.0), TypeError, "coefficients must be one of .*got array.3"),
        (numpy.ones((2, 2)), ValueError, r"coefficients\[0\] must have three numbers"),
        (numpy.ones((2, 3, 3)), TypeError, r"coefficients\[0\]\[0\] must be a number, got array"),
        (torch.ones(3), TypeError, "coefficients must be one of .*got tensor"),
    ],
)
def test_anything_else_is_an_error(value, error, message):
    with pytest.raises(error, match=message):
        check_coefficients("coefficients", value)


def test_checked_coefficients_are_plain():
    assert check_coefficients("c", [[1, 2, 3]]) == ((1.0, 2.0, 3.0),)
    assert check_coefficients("c", check_coefficients("c", (1, 2, 3))) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("kind", SEQUENCES.values(), ids=SEQUENCES)
def test_they_may_be_a_sequence_of_any_kind(kind):
    assert check_coefficients("c", kind([3, -3, 1])) == (3.0, -3.0, 1.0)
    rows = [[3.0, -3.0, 1.0], [2.0, -1.5, 0.5]]
    expected = tuple(map(tuple, rows))
    assert check_coefficients("c", kind(list(map(kind, rows)))) == expected
    assert polynomials(kind(list(map(kind, rows))), 2) == (list(expected), 1.0)
