# SPDX-License-Identifier: MIT
"""The CPU cases under pytest-benchmark: ``make bench``.

pytest-benchmark times one function after the other, and drift over those minutes is larger than
what is compared. So a case is measured as a whole, in turns, when the first of its variants is
asked for, and each variant then hands its samples over: the benchmarked function does nothing, and
the timer, which is pytest-benchmark's own extension point, reads the samples back. Statistics,
table, JSON, ``--benchmark-compare`` and the rest work on them as on any other.
"""

import functools
import os

import pytest

from .cases import CPU
from .check import Skipped
from .core import CEILING, measure, quick
from .table import VARIANTS


class Playback:
    """A clock that shows times measured before; it is read at the start and the end of a round."""

    def __init__(self):
        self.now, self.samples = 0.0, []
        self.started = False

    def load(self, samples):
        """What the next rounds shall take."""
        self.samples, self.started = list(samples), False

    def __call__(self):
        if self.started:
            self.now += self.samples.pop(0)
        self.started = not self.started
        return self.now


playback = Playback()


@functools.cache
def measured(case):
    """What ``measure`` returns, or raised; a case is measured once."""
    # numbers of a quick run mean nothing; tests/test_bench.py asks for it
    run = quick if os.environ.get("EMANEST_BENCH_QUICK") else measure
    try:
        return run(case)
    except Exception as error:
        return error


@pytest.mark.timeout(0)
@pytest.mark.benchmark(timer=playback)
@pytest.mark.parametrize(
    ("case", "variant"),
    [
        pytest.param(case, name, id=f"{case.name}: {name}")
        for case in CPU
        for name in (*case.variants, CEILING)
        if name != CEILING or VARIANTS[case.ours].traffic
    ],
)
def test_speed(case, variant, benchmark):
    entries = measured(case)
    if isinstance(entries, Exception):
        raise entries
    entry = entries[variant]
    if isinstance(entry, Skipped):
        pytest.skip(f"{variant}: {entry.reason}")
    benchmark.group = f"{case.name}: {case.model}"
    benchmark.name = variant
    benchmark.extra_info.update(entry.info)
    playback.load(entry.samples)
    benchmark.pedantic(lambda: None, rounds=len(entry.samples))
