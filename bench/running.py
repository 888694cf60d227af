# SPDX-License-Identifier: MIT
"""Variants at full size, and their turns: each is timed once per round, in a new order."""

import functools
import gc
import importlib.metadata
import random
import statistics
import time
from typing import NamedTuple

import torch

from . import variants
from .case import label
from .check import Skipped, leaves, tried
from .clocks import CLOCKS, NotQueued
from .devices import CACHE_BYTES, DEVICES, Cache, capture, side_stream


class Entry(NamedTuple):
    """What was measured of a variant."""

    samples: list[float]  # seconds per step
    info: dict


class Running:
    """A variant at full size, warmed up.

    Args:
        case: of the variant.
        variant: a row of the table.
        params: what it steps, gradients set.
        capturable: whether its step is to be captured.
    """

    def __init__(self, case, variant, params, capturable=False):
        self.case, self.variant, self.capturable = case, variant, capturable
        self.gradients, self.spoiled = [p.grad for p in params], []
        if variant.spoils:
            self.spoiled = [g.clone() for g in self.gradients]
            leaves(params, self.spoiled)
        memory, count = DEVICES[case.device].memory, sum(p.numel() for p in params)
        with memory() as first:
            self.stepper = variants.build(variant.make, params, capturable)
            self._warm_up(1)
        with memory() as later:
            self._warm_up(1)
        self._warm_up(case.warm_up - 2)
        # per parameter; that of a flat variant includes copies that are no state
        self.state_bytes = None if variant.flat else first.held / count
        self.transient_bytes = (later.peak - max(later.held, 0)) / count

    def restore(self):
        """What the backward pass would have written anew."""
        if self.spoiled:
            torch._foreach_copy_(self.spoiled, self.gradients)

    def _warm_up(self, steps):
        for _ in range(steps):
            self.restore()
            if self.capturable:
                with side_stream():
                    self.stepper.step()
            else:
                self.stepper.step()

    def replay(self, pool):
        """What replays a graph of a step; after one more on the stream that captures want."""
        self.restore()
        with side_stream():
            self.stepper.step()
        return capture(self.stepper.step, pool)

    def info(self):
        """What is known of it besides times."""
        return {
            "family": self.variant.family,
            "package": _version(self.variant.needs or "torch"),
            "state_bytes": self.state_bytes,
            "transient_bytes": self.transient_bytes,
        }


@functools.cache
def _distributions():
    return importlib.metadata.packages_distributions()


def _version(package):
    """Of what is installed; of what was only brought along as a folder, the name."""
    found = _distributions().get(package)
    return f"{found[0]} {importlib.metadata.version(found[0])}" if found else package


class Turn:
    """A way to time a variant, and its times so far."""

    def __init__(self, name, timing, running, step):
        self.name, self.timing, self.running, self.step = name, timing, running, step
        self.samples, self.host, self.ahead = [], [], 0.0

    @property
    def label(self):
        """What it is listed as."""
        return label(self.name, self.timing)

    def call(self):
        """What is timed."""
        for _ in range(self.running.case.steps):
            self.step()

    def sample(self):
        """Time one call."""
        case = self.running.case
        self.running.restore()
        seconds, host = CLOCKS[case.device][self.timing](self.call, self.ahead)
        self.ahead = 2 * host
        self.samples.append(seconds / case.steps)
        self.host.append(host / case.steps)

    def entry(self, common):
        """What was measured."""
        half = len(self.samples) // 2
        return Entry(
            self.samples,
            {
                **common,
                **self.running.info(),
                "variant": self.name,
                "timing": self.timing,
                "host": statistics.median(self.host),
                # two repeats: what differs by less is noise
                "halves": [
                    statistics.median(self.samples[:half] or self.samples),
                    statistics.median(self.samples[half:]),
                ],
            },
        )


def in_turn(turns, device, rounds=None, cache_bytes=CACHE_BYTES):
    """Time everyone once per round, in a new order each round.

    Returns:
        The turns that could be had in every round, and label -> Skipped of the others.
    """
    order, cache = random.Random(0), Cache(device, cache_bytes)
    skipped = {}

    def turn(each):
        if each.running.case.cold:
            cache.evict()
        each.sample()

    def round_():
        left = [each for each in turns if each.label not in skipped]
        order.shuffle(left)
        for each in left:
            try:
                result = tried(turn, each, own=each.running.variant.own)
            except NotQueued as error:
                result = Skipped(str(error))
            if isinstance(result, Skipped):
                skipped[each.label] = result

    # takes longer than a quick look at a tiny model, whose times mean nothing
    if rounds is None:
        gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        round_()
        cycle = time.perf_counter() - start
        for each in turns:
            each.samples.clear()
            each.host.clear()
        for _ in range(rounds or DEVICES[device].rounds_of(cycle)):
            round_()
    finally:
        gc.enable()
    return [each for each in turns if each.label not in skipped], skipped
