# SPDX-License-Identifier: MIT
"""SOAP: its options, its numbers, its class."""

import math
from typing import Annotated, Literal, get_args

from torch.optim.optimizer import ParamsT

from ..backends import BackendName, shards
from ..matrix.eigenbasis import (
    FOUND,
    KEPT,
    SHAPED_BY,
    SIDES,
    TURNED,
    EigenDirections,
    Numbers,
)
from ..matrix.shapes import is_stack, square
from ..methods.method import MethodLike
from ..options import (
    AtLeastZero,
    Betas,
    Flag,
    LearningRate,
    Nonfinite,
    options_of,
    own_options,
    suggesting,
)
from ..rules import MOMENTA, State
from ..values import by, choice, count, optional, real
from .adamw import ADAMW
from .base import Base
from .muon import Count, Split, Stack, check_layout
from .optimizer import Optimizer

Order = Literal["after", "before"]
When = Annotated[Order, by(choice, get_args(Order))]


class SOAP(Optimizer):
    """SOAP: AdamW in the eigenbasis of Shampoo's preconditioner, any lookahead in its last pass.

        P = Q_L^T g Q_R                                               k = 1, 2, ...
        exp_avg = beta1 * exp_avg + (1 - beta1) * P
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * P * P
        D = Q_L (exp_avg / (sqrt(exp_avg_sq) + eps)) Q_R^T
        x = y - lr * sqrt(1 - beta2^k) / (1 - beta1^k) * D
        u = x - lr * weight_decay * x - y
        L = shampoo_beta * L + (1 - shampoo_beta) * g g^T             and R, of g^T g
        every precondition_frequency steps:
            Q_L = qr(L Q_L)                                           and Q_R, of R

    The first step moves nothing: it finds Q_L and Q_R, the eigenvectors of L and R. At a ``qr`` the
    columns of Q_L are sorted by descending eigenvalue, exp_avg moves to the new basis, and
    exp_avg_sq is permuted with the columns. A side longer than ``max_precond_dim`` is not rotated;
    vectors and scalars are not at all, for which this is AdamW (but for its first step).

    In float32, a gradient whose norm exceeds 1e19 makes its matrix NaN: L and R are out of range.

    Groups with another ``"base"`` work as in ``Muon``. Parameters are taken as matrices as there;
    published code rotates each dimension of a kernel by itself.

    Memory: state is float32 (float64 for float64 parameters): 2 values per parameter, and 2 (m^2 +
    n^2) for each matrix (m, n) (less those of a side that is not rotated), plus those of the
    lookahead method. During a step 1 value per parameter for directions, and for the matrices of
    one size, at most 2**27 entries at a time, up to 4 values per entry and 4 copies of a side's
    square matrix.

    Args:
        params: as in ``Muon``; vectors and scalars, too.
        lr: step size, at least 0; a float or a 1-element tensor (copied for each group).
        betas: decay of the two averages, each in [0, 1).
        shampoo_beta: decay of L and R, in [0, 1); None: the second of ``betas``.
        eps: added to the square root, before its bias is corrected; at least 0.
        weight_decay: decoupled decay per unit of lr, at least 0.
        precondition_frequency: steps from one update of the bases to the next, at least 1; counted
            for each parameter by itself.
        max_precond_dim: longer sides have no basis, at least 0; 0: none has. It cannot change once
            there is state.
        correct_bias: whether the averages' bias is corrected.
        update_basis: ``"after"`` the parameters are updated, as published, so that a gradient never
            meets a basis of its own; or ``"before"``: the first step moves, too, and k counts it
            (Emerging-Optimizers). With it, a ``precondition_frequency`` below m / n of a long
            matrix turns bases of which a part is rounding still, and single steps are far too long.
        decay: ``"after"`` the update, at its result, as published; or ``"before"``, at y, as
            ``AdamW`` (Emerging-Optimizers). GPA: on z.
        split, stack: as in ``Muon``. They cannot change once there is state.
        lookahead, backend, maximize, foreach, fused, differentiable, nonfinite: as in ``AdamW``.
            NALA's own steps follow the plain gradient.
        capturable: must be False: whether a basis is updated is decided on the host.

    Raises:
        TypeError, ValueError, RuntimeError: as in ``Muon``; a matrix that is cut over processes.

    Source: Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam",
    arXiv:2409.11321, and https://github.com/nikhilvyas/SOAP.
    """

    @suggesting
    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 3e-3,
        betas: Betas = (0.95, 0.95),
        shampoo_beta: Annotated[float | None, by(optional, by(real, 0, 1, "[)"))] = None,
        eps: AtLeastZero = 1e-8,
        weight_decay: AtLeastZero = 0.01,
        precondition_frequency: Count = 10,
        max_precond_dim: Annotated[int, by(count, 0)] = 10000,
        correct_bias: Flag = True,
        *,
        update_basis: When = "after",
        decay: When = "after",
        split: Split = 1,
        stack: Stack = None,
        lookahead: MethodLike = None,
        backend: BackendName | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: Literal[False] = False,
        differentiable: Literal[False] = False,
        nonfinite: Nonfinite = "propagate",
    ) -> None:
        """See the class."""
        super().__init__(params, options_of(locals()), lookahead)


def _numbers(group, info):
    beta1, beta2 = group["betas"]
    shampoo_beta = beta2 if group["shampoo_beta"] is None else group["shampoo_beta"]
    turns = info.step % group["precondition_frequency"] == 0
    basis = FOUND if info.step == 0 else TURNED if turns else KEPT
    updates = info.step + (group["update_basis"] == "before")
    momentum = 1 - beta1, 1 - beta2, group["eps"]
    if updates == 0:
        return Numbers(1.0, 1 - shampoo_beta, basis, momentum, (0.0, 0.0)).joined()
    step_size, decay = info.lr, info.lr * group["weight_decay"]
    if group["correct_bias"]:
        step_size *= math.sqrt(1 - beta2**updates) / (1 - beta1**updates)
    if group["decay"] == "after":
        # (y - s D) (1 - decay) = y - s (1 - decay) D - decay y
        step_size *= 1 - decay
    return Numbers(1.0, 1 - shampoo_beta, basis, momentum, (step_size, decay)).joined()


def _check(name, p, group):
    check_layout(name, p, group)
    if p.dim() < 2 or shards.mesh_of(p) is None:
        return
    whole = 0 if is_stack(p, group["stack"]) else None
    if any(each.is_shard() and each.dim != whole for each in p.placements):
        raise ValueError(
            f"{name} is a DTensor whose matrices are cut over processes, {p.placements}: SOAP "
            "needs wholes; replicate it, or take Muon, NorMuon or Aurora, which put them together"
        )


_BASE = Base(
    lambda group: "direction",
    _numbers,
    *own_options(SOAP),
    directions=EigenDirections,
    alike=lambda part: part.group["update_basis"],
    state=(
        *MOMENTA["adam"].state,
        # bases as LAPACK writes them
        *(
            State(name, square(side, by_columns), SHAPED_BY)
            for side, names in enumerate(SIDES)
            for by_columns, name in enumerate(names)
        ),
    ),
    check=_check,
    capturable=False,
)
SOAP.bases = {"soap": _BASE, "adamw": ADAMW}
