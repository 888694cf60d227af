# SPDX-License-Identifier: MIT
"""The iteration towards the polar factor, as the options of a group have it."""

import functools

import torch

from .coefficients import polynomials
from .newton_schulz import orthogonal, working_dtype
from .norms import NORMS


class Polar:
    """Matrices -> matrices near their orthogonal polar factors.

    Attributes:
        dtype: of the iteration, and of what it returns.
        update_dtype: of what it is given.

    Args:
        group: the options.
        device, dtype: of the parameters.
    """

    # what groups have in common whose matrices are iterated together
    OPTIONS = "ns_coefficients", "ns_steps", "ns_form", "ns_dtype", "ns_norm", "eps"

    def __init__(self, group, device, dtype):
        coefficients, steps, form, asked, norm, self.eps = map(group.get, Polar.OPTIONS)
        self.dtype = working_dtype(device, dtype, form, asked)
        # 16 bits would round before the norm is known, or overflow
        self.update_dtype = torch.promote_types(self.dtype, torch.float32)
        rows, self.margin = polynomials(coefficients, steps)
        self.norm, self.how = NORMS[norm], (rows, self.dtype, form, group.get("backend"))

    @property
    def backend(self):
        """The group's choice."""
        return self.how[-1]

    def inverses(self, norms, dtype=None):
        """Factors that divide updates by their norms, which are overwritten.

        Args:
            norms: Frobenius norms, float64.
            dtype: of the factors; None: that of updates.
        """
        return self.norm.factors(norms, self.eps, self.margin, dtype or self.update_dtype)

    def __call__(self, u, factors, spare=None):
        """Matrices near the polar factors of others, contiguous.

        Args:
            u: (batch, m, n).
            factors: (batch,), as ``inverses`` finds them.
            spare: memory like u that may be written, u itself for one; or None.
        """
        return self.iterated(u, factors, factors, spare)

    def iterated(self, u, factors, scales, spare=None):
        """The same of matrices whose rows have factors, too.

        Args:
            u, factors, spare: as above.
            scales: all that u is multiplied by, as ``orthogonal`` has it.
        """
        known = {"factors": factors, "eps": self.eps, "margin": self.margin}
        start = functools.partial(self.norm.start, **known)
        return orthogonal(u, scales, *self.how, spare, start)
