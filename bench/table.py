# SPDX-License-Identifier: MIT
"""Everything that is timed: name -> how to make it and what it computes.

A variant is built from parameters whose gradients are set, and gives a ``Stepper``. Variants of
one family compute the same function, which is checked against the family's float64 run.
"""

from . import eigenbasis, orthogonal, peers

VARIANTS = {**peers.VARIANTS, **orthogonal.VARIANTS, **eigenbasis.VARIANTS}
# family -> what is run in float64 to compare with; where we wrote no second form, our eager one
ORACLES = {**peers.ORACLES, **orthogonal.ORACLES, **eigenbasis.ORACLES}
