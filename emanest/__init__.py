"""Lookahead optimizers for PyTorch: EMA-Nesterov and its family."""

from . import schedules
from .matrix.newton_schulz import orthogonalize
from .methods import GPA, NAG, NALA, SNOO, EMANesterov, LongHorizon, Lookahead, ScheduleFree
from .optimizers import SGD, AdamW, Muon, NorMuon, Optimizer, Wrap
from .tools.find import at_iterate, find, find_all
from .tools.iterate import iterate_state_dict, update_bn
from .tools.probe import probe_lookahead
from .tools.split import split_params

__version__ = "0.1.0.dev0"

__all__ = [
    "GPA",
    "NAG",
    "NALA",
    "SGD",
    "SNOO",
    "AdamW",
    "EMANesterov",
    "LongHorizon",
    "Lookahead",
    "Muon",
    "NorMuon",
    "Optimizer",
    "ScheduleFree",
    "Wrap",
    "at_iterate",
    "find",
    "find_all",
    "iterate_state_dict",
    "orthogonalize",
    "probe_lookahead",
    "schedules",
    "split_params",
    "update_bn",
]
