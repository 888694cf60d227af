# SPDX-License-Identifier: MIT
"""The experiments, by name."""

from . import images, llama, nanogpt, two_cores
from .sweep import Experiment

MODULES = two_cores, images, nanogpt, llama
EXPERIMENTS: dict[str, Experiment] = {e.name: e for each in MODULES for e in each.EXPERIMENTS}
