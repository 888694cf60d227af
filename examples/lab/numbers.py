# SPDX-License-Identifier: MIT
"""Numbers as they are stored."""

import math

DIGITS = 6


def rounded(value):
    """``value`` to six digits; None, as JSON has it, where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
