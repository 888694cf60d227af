# SPDX-License-Identifier: MIT
"""The windows of lookahead methods in a run whose length is known: what is missed, what fits."""

import math
from dataclasses import fields
from typing import Any

from ..methods.given import method_of
from ..values import count, warn
from .find import find_all


def length_of(total_steps: float) -> int | None:
    """The length of a run as an integer; None for ``math.inf``, of which nothing follows.

    Raises:
        TypeError, ValueError: ``total_steps`` is no whole number, or below 1.
    """
    if isinstance(total_steps, float) and total_steps == math.inf:
        return None
    whole = isinstance(total_steps, float) and total_steps.is_integer()
    return count("total_steps", int(total_steps) if whole else total_steps)


def warn_of_windows(holder: Any, total_steps: float, done: int | None = None) -> None:
    """Warn of lookaheads that will never begin, or never rest, in a run of a known length.

    A second run with the same optimizer goes on where the first has ended, as its windows count:
    there is a warning if it rests for the whole of it, or if no sync comes.

    For callbacks and scripts that learn the length when a run begins; ``create`` and
    ``Method.for_run`` ask by themselves. There is a warning for each method that misses something,
    which says what gives it: ``EMANesterov(warmup=300) never looks ahead in a run of 200 steps:
    for_run(200) gives warmup=60, rest=160``. A method with syncs is named if none comes.

    Args:
        holder: an optimizer of this library, or what holds some; see ``find``.
        total_steps: steps of the optimizer in the whole run, those before a checkpoint included;
            at least 1, or ``math.inf``, of which nothing is said.
        done: how many of them were taken already, where lookaheads may have counted fewer (one that
            was added to a run) or more (a second run); None: as many as they have counted.

    Raises:
        TypeError: no optimizer of this library is found, or a number is no integer.
        ValueError: ``total_steps`` is below 1, ``done`` below 0.
    """
    optimizers, steps = find_all(holder), length_of(total_steps)
    if steps is None:
        return
    for optimizer in optimizers:
        missed: dict[str, list[int]] = {}
        for index, group in enumerate(optimizer.param_groups):
            end, begun = _counted(group, steps, done), _begun(group, done)
            missed.setdefault(method_of(group).misses(end, begun), []).append(index)
        all_alike = len(missed) == 1
        for sentence, indices in missed.items():
            if sentence:
                warn(sentence if all_alike else f"{sentence} (groups {indices})")


def _begun(group: dict[str, Any], done: int | None) -> int:
    """How many steps a group has taken that were in no run, or in another."""
    return 0 if done is None else max(0, int(group["lookahead_t"]) - count("done", done, 0))


def _counted(group: dict[str, Any], total_steps: int, done: int | None) -> int:
    """The length of a run as a group counts it, which may have begun before it or during it."""
    if done is None:
        return total_steps
    return max(1, int(group["lookahead_t"]) + total_steps - count("done", done, 0))


def fit_windows(holder: Any, total_steps: float, done: int | None = None) -> None:
    """Give lookaheads that have taken no step yet the published windows of a run of a known length.

    For callbacks, which learn the length when a run begins; elsewhere ``create`` and
    ``Method.for_run`` do it. Settings of a group that are not the defaults of its method stay, and
    so does everything in an optimizer that has taken a step: what resumes keeps its windows.

    Args:
        holder: an optimizer of this library, or what holds some; see ``find``.
        total_steps, done: as in ``warn_of_windows``; of ``math.inf`` no window follows.

    Raises:
        TypeError, ValueError: as in ``warn_of_windows``.
    """
    optimizers, steps = find_all(holder), length_of(total_steps)
    if steps is None:
        return
    for group in (group for each in optimizers for group in each.param_groups):
        if int(group["lookahead_t"]) == 0:
            method = method_of(group)
            given = [f.name for f in fields(method) if getattr(method, f.name) != f.default]
            length = _counted(group, steps, done)
            group.update(method.fitted(length, given).settings())
