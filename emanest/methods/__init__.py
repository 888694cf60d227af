# SPDX-License-Identifier: MIT
"""The lookahead methods, one file each; `make rules` writes this list."""

from .ema_nesterov import EMANesterov
from .gpa import GPA
from .long_horizon import LongHorizon
from .lookahead import Lookahead
from .nag import NAG
from .nala import NALA
from .schedule_free import ScheduleFree
from .snoo import SNOO

__all__ = [
    "GPA",
    "NAG",
    "NALA",
    "SNOO",
    "EMANesterov",
    "LongHorizon",
    "Lookahead",
    "ScheduleFree",
]
