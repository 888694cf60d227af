# SPDX-License-Identifier: MIT
"""What users call beside an optimizer: split a model, find, evaluate, probe, analyse, compare."""

from .comparing import compare

__all__ = ["compare"]
