# SPDX-License-Identifier: MIT
"""Aurora's polar factor: of matrices whose rows are scaled until those of the result are equal.

An orthogonal matrix that is tall has rows of any size up to 1, so that some rows of a parameter,
its neurons, are hardly trained. Of a square one each row has size 1.
"""

import torch

from .norms import norms_of, with_products
from .polar import Polar


class Balanced(Polar):
    """Matrices -> matrices near the polar factors of these with factors for rows.

    Of u, taken as a tall matrix (m, n), a wide one as its transpose::

        D = 1 / max(norm of each row of u, eps)
        pp_iterations times, but for the last change of D:
            o = polar(D u);   D *= ((n / m) / max(square of the norm of each row of o, eps**2))
                                   ** pp_beta

    Memory: as ``Polar``, and one value of its dtype for each entry where that is u's as well, since
    u is needed again.
    """

    OPTIONS = (*Polar.OPTIONS, "pp_iterations", "pp_beta")

    def __init__(self, group, device, dtype):
        super().__init__(group, device, dtype)
        self.iterations, self.beta = group["pp_iterations"], group["pp_beta"]

    def __call__(self, u, factors, spare=None):
        """As ``Polar``."""
        m, n = u.shape[1:]
        if m == n or not u.numel():
            return super().__call__(u, factors, spare)
        norms = self._row_norms(u)
        # no row of zeros may be given an infinite factor
        rows = norms.clamp(min=self.eps).reciprocal_().clamp_(max=self._most)
        target = min(m, n) / max(m, n)
        for _ in range(self.iterations - 1):
            squares = self._row_norms(self._scaled(u, norms, rows)).square_()
            ratios = squares.clamp_(min=self.eps**2).reciprocal_().mul_(target)
            # one by one: the bits of a power may depend on its place in a tensor
            for each in ratios:
                each.pow_(self.beta)
            rows.mul_(ratios).clamp_(max=self._most)
        return self._scaled(u, norms, rows, spare)

    @property
    def _most(self):
        return torch.finfo(self.update_dtype).max

    def _row_norms(self, u):
        """Of the rows of (batch, m, n), taken as tall matrices: float64, (batch, max(m, n))."""
        tall = u if u.shape[1] > u.shape[2] else u.mT
        return with_products("row_norms", u.device, self.backend, tall)

    def _scaled(self, u, norms, rows, spare=None):
        """The polar factor of matrices whose rows, of these norms, have factors."""
        # the norm of D u takes no pass of its own
        factors = self.inverses(norms_of((norms * rows)[:, None], self.backend), torch.float64)
        factors.clamp_(max=self._most)
        scales = (factors[:, None] * rows).clamp_(max=self._most).to(self.update_dtype)
        return self.iterated(u, factors.to(self.update_dtype), scales, spare)
