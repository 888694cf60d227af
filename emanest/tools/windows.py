# SPDX-License-Identifier: MIT
"""The windows of lookahead methods in a run whose length is known: what is missed, what fits."""

import math
from dataclasses import fields
from typing import Any

from ..methods.method import method_of
from ..values import count, warn
from .find import find_all


def warn_of_windows(holder: Any, total_steps: float) -> None:
    """Warn of lookaheads that will never begin, or never rest, in a run of a known length.

    For callbacks and scripts that learn the length when a run begins; ``create`` and
    ``Method.for_run`` ask by themselves. There is a warning for each method that misses something,
    which says what gives it: ``EMANesterov(warmup=300) never looks ahead in a run of 200 steps:
    for_run(200) gives warmup=60, rest=160``. A method with syncs is named if none comes.

    Args:
        holder: an optimizer of this library, or what holds some; see ``find``.
        total_steps: steps of the optimizer in the whole run, those before a checkpoint included;
            at least 1, or ``math.inf``, of which nothing is said.

    Raises:
        TypeError: no optimizer of this library is found, or ``total_steps`` is no integer.
        ValueError: ``total_steps`` is below 1.
    """
    optimizers = find_all(holder)
    if isinstance(total_steps, float) and total_steps == math.inf:
        return
    steps = count("total_steps", total_steps)
    for optimizer in optimizers:
        missed: dict[str, list[int]] = {}
        for index, group in enumerate(optimizer.param_groups):
            missed.setdefault(method_of(group).misses(steps), []).append(index)
        all_alike = len(missed) == 1
        for sentence, indices in missed.items():
            if sentence:
                warn(sentence if all_alike else f"{sentence} (groups {indices})")


def fit_windows(holder: Any, total_steps: float) -> None:
    """Give lookaheads that have taken no step yet the published windows of a run of a known length.

    For callbacks, which learn the length when a run begins; elsewhere ``create`` and
    ``Method.for_run`` do it. Settings of a group that are not the defaults of its method stay, and
    so does everything in an optimizer that has taken a step: what resumes keeps its windows.

    Args:
        holder: an optimizer of this library, or what holds some; see ``find``.
        total_steps: as in ``warn_of_windows``; of ``math.inf`` no window follows.

    Raises:
        TypeError, ValueError: as in ``warn_of_windows``.
    """
    optimizers = find_all(holder)
    if isinstance(total_steps, float) and total_steps == math.inf:
        return
    steps = count("total_steps", total_steps)
    for group in (group for each in optimizers for group in each.param_groups):
        if int(group["lookahead_t"]) == 0:
            method = method_of(group)
            given = [f.name for f in fields(method) if getattr(method, f.name) != f.default]
            group.update(method.fitted(steps, given).settings())
