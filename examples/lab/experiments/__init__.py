"""The experiments, by name."""

from . import two_cores
from .sweep import Experiment

EXPERIMENTS: dict[str, Experiment] = {each.name: each for each in two_cores.EXPERIMENTS}
