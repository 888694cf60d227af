# SPDX-License-Identifier: MIT
"""Rows of experiments have the settings that were published with what they repeat."""

import pytest
from shrunk import small

from examples.lab import building, models
from examples.lab.experiments import EXPERIMENTS


def built(settings):
    """The optimizer of a run with a small model: (its groups, the model's parameters by name)."""
    model = models.make(small(settings)["model"], 0)
    return building.optimizer(settings, model).param_groups, dict(model.named_parameters())


# what a parameter of the benchmark's model is -> its lr and decay in record 39's log
RECORD_39 = {
    "embed.weight": (0.3, 0.0),
    "head.weight": (1 / 320, 0.0),
    "head.bias": (0.01, 0.0),
    "norm1.weight": (0.01, 0.0),
    "norm2.weight": (0.01, 0.0),
    "blocks.1.norm2.weight": (0.01, 0.0),
    "blocks.0.q.bias": (0.01, 0.0),
    "blocks.0.q.weight": (0.035, 0.025),
    "blocks.1.down.weight": (0.035, 0.025),
}


@pytest.mark.parametrize("arm", EXPERIMENTS["track_3"].arms, ids=lambda arm: arm.label)
def test_parameters_have_the_learning_rates_of_record_39(arm):
    groups, parameters = built(arm.settings)
    for name, expected in RECORD_39.items():
        (group,) = [g for g in groups if any(p is parameters[name] for p in g["params"])]
        assert (group["lr"], group["weight_decay"]) == pytest.approx(expected), name
        if expected[0] != 0.035:
            assert (tuple(group["betas"]), group["eps"]) == ((0.8, 0.95), 1e-10)


def test_the_schedule_is_that_of_record_39():
    settings = EXPERIMENTS["track_3"].arms[1].settings
    schedule, options = building.take(building.SCHEDULES, settings["schedule"], "schedule")
    # the size of the lookahead in its log, over 0.6
    found = {t: 0.6 * schedule(t, settings["steps"], **options) for t in (0, 945, 1500, 2000, 2399)}
    expected = {0: 0.6, 945: 0.6, 1500: 0.449, 2000: 0.313, 2399: 0.2043}
    assert found == pytest.approx(expected, abs=1e-3)
    assert settings["lookahead"]["rest"] == settings["steps"] - 750
