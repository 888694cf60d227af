# SPDX-License-Identifier: MIT
"""The stages of a run on a GPU, one module each; ``bench/gpu_run.py`` has their order and limits.

``run(settings)`` of a module does the work and returns ``Found``, or raises.
"""

from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]


class Settings(NamedTuple):
    """What the stages are told."""

    out: Path  # folder of results
    work: Path  # folder of everything else; caches hold its path, so it is the same everywhere
    carry: Path  # folder with what was made on another machine
    commit: str
    small: bool  # sizes for a machine without a GPU
    brief: bool  # six kernels, to see that all of it works
    seconds: float  # that the stage should be done within


class Found(NamedTuple):
    """What a stage found."""

    lines: list[str]  # for a reader, the most important first
    data: dict[str, Any] = {}  # noqa: RUF012  for a program; plain JSON
    ok: bool = True
