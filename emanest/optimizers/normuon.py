# SPDX-License-Identifier: MIT
"""NorMuon: its options, its numbers, its class, with AdamW in groups that ask for it."""

from typing import Annotated, Literal

from torch.optim.optimizer import ParamsT

from ..backends import BackendName
from ..methods.method import MethodLike
from ..options import AtLeastZero, Flag, LearningRate, Nonfinite, options_of, suggesting
from ..values import by, real
from .adamw import ADAMW
from .muon import Coefficients, Count, Dtype, Form, Norm, Scale, Split, Stack, base_of
from .optimizer import Optimizer


class NorMuon(Optimizer):
    """NorMuon: Muon whose updates have rows of equal size, on an average over steps.

        o = orthogonalize(d)                                     d as in Muon
        v = beta2 * v + (1 - beta2) * mean over columns of o * o
        p = o / (sqrt(v) + eps)                                  row by row
        u = -lr * scale(shape) * p * norm(o) / (norm(p) + eps) - lr * weight_decay * y

    Groups with ``"base": "adamw"`` work as in ``Muon``. Memory: as ``Muon``, and one value per row
    (``second_momentum_buffer``, of shape (rows, 1), for a stack (E, rows, 1)).

    Args:
        params, lr, weight_decay, momentum, nesterov, ns_coefficients, ns_steps, adjust_lr_fn,
            split, stack, ns_form, ns_dtype, ns_norm, lookahead, backend, maximize, foreach, fused,
            capturable, differentiable, nonfinite: as in ``Muon``. Rows are evened out, which are
            the inputs of weights (E, inputs, outputs). ``stack`` cannot change once parameters of
            three and more dimensions have state.
        eps: as in ``Muon``, and added to the roots and norms of the formula; above 0.
        beta2: decay of the average, in [0, 1). The average starts at zero and is not corrected:
            the norm that is kept cancels a common factor.

    Raises:
        TypeError, ValueError, RuntimeError: as in ``Muon``.

    Source: Li et al. 2025, "NorMuon: Making Muon more efficient and scalable", arXiv:2510.05491,
    which scales by 0.2 sqrt(rows columns) / norm(p): nearly ``adjust_lr_fn="match_rms_adamw"``.
    """

    @suggesting
    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        weight_decay: AtLeastZero = 0.1,
        momentum: AtLeastZero = 0.95,
        nesterov: Flag = True,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: AtLeastZero = 1e-10,
        ns_steps: Count = 5,
        adjust_lr_fn: Scale = None,
        beta2: Annotated[float, by(real, 0, 1, "[)")] = 0.95,
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


def _row_numbers(group):
    return 1 - group["beta2"], group["eps"]


def _check_eps(group):
    if group["eps"] == 0:
        raise ValueError("NorMuon divides rows of zeros by eps: it must be above 0")


_BASE = base_of(NorMuon, _check_eps, row_rule="normuon", row_numbers=_row_numbers)
NorMuon.bases = {"normuon": _BASE, "adamw": ADAMW}
