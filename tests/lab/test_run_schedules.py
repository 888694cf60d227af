# SPDX-License-Identifier: MIT
"""Schedules of the learning rate: factors computed by hand, and that a run follows them."""

import pytest
from shrunk import small

from examples.lab.experiments.byte_lm import BYTES, MUON
from examples.lab.schedules import SCHEDULES
from examples.lab.settings import merged
from examples.lab.training import Run

# name, steps, options, {step: factor}
FACTORS = [
    ("trapezoid", 10, {}, {0: 1, 5: 1, 9: 1}),
    ("trapezoid", 10, {"warmup": 4, "decay": 2}, {0: 0.25, 2: 0.75, 3: 1, 8: 1, 9: 0.5}),
    ("trapezoid", 10, {"warmup": 4}, {0: 0.25, 4: 1, 9: 1}),
    ("trapezoid", 10, {"decay": 4}, {0: 1, 6: 1, 7: 0.75, 9: 0.25}),
    # the way up meets the way down
    ("trapezoid", 10, {"warmup": 8, "decay": 8}, {4: 0.625, 5: 0.625, 6: 0.5}),
    ("trapezoid", 2000, {"warmup": 50, "decay": 500}, {0: 0.02, 1750: 0.5, 1999: 0.002}),
    ("warmup_stable_decay", 20, {}, {0: 0, 1: 0.5, 2: 1, 18: 1, 19: 0.316228, 20: 0.1}),
    ("warmup_stable_decay", 20, {"warmup": 0, "decay": 0}, {0: 1, 20: 1}),
    (
        *("warmup_stable_decay", 20, {"warmup": 0.2, "decay": 0.5, "last": 0.25}),
        {1: 0.25, 4: 1, 10: 1, 15: 0.5, 20: 0.25},
    ),
    ("stairs", 10, {"every": 3}, {0: 1, 2: 1, 3: 0.5, 5: 0.5, 6: 0.25}),
    ("stairs", 10, {"every": 4, "factor": 0.1}, {3: 1, 4: 0.1, 8: 0.01}),
    ("cosine", 8, {}, {0: 1, 2: 0.853553, 4: 0.5, 6: 0.146447, 8: 0}),
    (
        *("cosine", 10, {"warmup": 2, "last": 0.1}),
        {0: 0.5, 1: 1, 2: 1, 4: 0.868198, 6: 0.55, 9: 0.134254},
    ),
]


@pytest.mark.parametrize(("name", "steps", "options", "factors"), FACTORS)
def test_factors_are_those_of_the_formula(name, steps, options, factors):
    found = {step: SCHEDULES[name](step, steps, **options) for step in factors}
    assert found == pytest.approx(factors, rel=1e-5, abs=1e-12)


def test_every_schedule_has_a_row():
    assert {row[0] for row in FACTORS} == set(SCHEDULES)


@pytest.mark.usefixtures("made_up", "one_thread")
def test_a_run_follows_its_schedule_in_every_group():
    schedule = {"schedule": {"name": "trapezoid", "warmup": 2, "decay": 2}}
    run = Run(small(merged(BYTES, MUON, schedule), steps=4))
    found = []
    while not run.done:
        found.append({group["lr"] for group in run.optimizer.param_groups})
        run.advance()
    factors = [0.5, 1, 1, 0.5]
    assert found == [{0.02 * factor, 6e-3 * factor} for factor in factors]
