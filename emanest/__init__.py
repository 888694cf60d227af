# SPDX-License-Identifier: MIT
"""Lookahead optimizers for PyTorch: EMA-Nesterov and its family."""

from importlib import metadata as _metadata

from . import methods, optimizers, schedules
from .matrix.newton_schulz import orthogonalize
from .methods import *  # noqa: F403 (the list is written by a script)
from .methods.method import METHODS
from .optimizers import *  # noqa: F403
from .tools.create import create
from .tools.find import at_iterate, find, find_all
from .tools.iterate import iterate_state_dict, update_bn
from .tools.probe import probe_lookahead
from .tools.split import split_params
from .tools.windows import warn_of_windows

try:
    __version__ = _metadata.version("emanest")
except _metadata.PackageNotFoundError:
    # a source tree that is not installed
    __version__ = "0.1.0.dev0"

__all__ = [
    "METHODS",
    "at_iterate",
    "create",
    "find",
    "find_all",
    "iterate_state_dict",
    "orthogonalize",
    "probe_lookahead",
    "schedules",
    "split_params",
    "update_bn",
    "warn_of_windows",
]
__all__ += methods.__all__
__all__ += optimizers.__all__
