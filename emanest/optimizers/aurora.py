# SPDX-License-Identifier: MIT
"""Aurora: its options, its class, with AdamW in groups that ask for it."""

from typing import Annotated, Literal

from torch.optim.optimizer import ParamsT

from ..backends import BackendName
from ..matrix.balanced import Balanced
from ..methods.method import MethodLike
from ..options import AtLeastZero, Flag, LearningRate, Nonfinite, options_of, suggesting
from ..values import by, real
from .adamw import ADAMW
from .muon import Coefficients, Count, Dtype, Form, Norm, Scale, Split, Stack, base_of
from .optimizer import Optimizer


class Aurora(Optimizer):
    """Aurora: Muon whose updates of matrices that are not square have rows of equal size.

        o = orthogonalize(D d)                  d as in Muon, D diagonal: one factor for each row
        u = -lr * scale(shape) * o - lr * weight_decay * y

    Matrices (m, n) are taken tall, m > n, wide ones as their transposes; square ones are stepped as
    in ``Muon``. D begins as the inverse norms of d's rows, those below ``eps`` counted as it. After
    each but the last of ``pp_iterations`` iterations each row's factor is multiplied by
    ((n / m) / (square of that row's norm in o)) ** ``pp_beta``, so that the squares approach n / m,
    which they have on average. They are then within 10 % of it, of small or nearly square
    matrices 20 %, where those of Muon differ by factors of hundreds.

    Groups with ``"base": "adamw"`` work as in ``Muon``. Cost: of matrices that are not square
    ``pp_iterations`` times Muon's iteration. Memory: as ``Muon``, and during a step one value more
    for each entry of the matrices that are iterated together, where the iteration is in float32 or
    float64.

    Args:
        params, lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn,
            split, stack, ns_form, ns_dtype, ns_norm, lookahead, backend, maximize, foreach, fused,
            capturable, differentiable, nonfinite: as in ``Muon``. The default coefficients bring
            all singular values to 1.
        pp_iterations: how often matrices that are not square are iterated, at least 1.
        pp_beta: how far factors of rows go each time, in (0, 1]; 1 is what would even rows out if
            each factor changed its own row alone.

    Raises:
        TypeError, ValueError, RuntimeError: as in ``Muon``.

    Source: Tilde Research, https://github.com/tilde-research/aurora-release, whose defaults these
    are.
    """

    @suggesting
    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.05,
        weight_decay: AtLeastZero = 0.025,
        momentum: AtLeastZero = 0.95,
        nesterov: Flag = True,
        ns_coefficients: Coefficients = "simple",
        eps: AtLeastZero = 1e-7,
        ns_steps: Count = 12,
        adjust_lr_fn: Scale = None,
        pp_iterations: Count = 2,
        pp_beta: Annotated[float, by(real, 0, 1, "(]")] = 0.5,
        *,
        split: Split = 1,
        stack: Stack = None,
        ns_form: Form = None,
        ns_dtype: Dtype = None,
        ns_norm: Norm = "frobenius",
        lookahead: MethodLike = None,
        backend: BackendName | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: Literal[False] = False,
        nonfinite: Nonfinite = "propagate",
    ) -> None:
        """See the class."""
        super().__init__(params, options_of(locals()), lookahead)


Aurora.bases = {"aurora": base_of(Aurora, polar=Balanced), "adamw": ADAMW}
