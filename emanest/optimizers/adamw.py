# SPDX-License-Identifier: MIT
"""AdamW: its options, its numbers, its class."""

from typing import Literal

from torch.optim.optimizer import ParamsT

from ..backends import BackendName
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
from .base import Base
from .optimizer import Optimizer


def _adamw_rule(group):
    return "amsgrad" if group["amsgrad"] else "adamw"


def _adamw_numbers(group, info):
    beta1, beta2 = group["betas"]
    # weights are subtracted here, in double: 1 - 0.999 in float32 is off by 1e-5
    bias1, bias2 = 1 - beta1 ** (info.step + 1), 1 - beta2 ** (info.step + 1)
    decay = info.lr * group["weight_decay"]
    return info.lr / bias1, decay, 1 - beta1, 1 - beta2, bias2**-0.5, group["eps"]


class AdamW(Optimizer):
    """AdamW, with any lookahead in the same pass.

        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        u = -lr * (exp_avg / (1 - beta1^k)) / (sqrt(exp_avg_sq / (1 - beta2^k)) + eps)
            - lr * weight_decay * y

    With ``lookahead=None`` a drop-in for ``torch.optim.AdamW``: same options, defaults and state
    names. Memory: state is float32 (float64 for float64 parameters), 2 values per parameter, 3
    with ``amsgrad``, plus those of the lookahead method.

    With a lookahead the parameters hold y, the gradient point, while training: evaluate and save
    between ``eval()`` and ``train()``, or inside ``with opt.at_iterate():``.

    A second moment beyond the range of float32 (gradients above 5e20) gives NaN, where torch gives
    updates of 0 from then on.

    Args:
        params: parameters, (name, parameter) pairs, or groups (dicts); real or complex, dense.
        lr: step size, at least 0; a float or a 1-element tensor (copied for each group).
        betas: decay of the two averages, each in [0, 1).
        eps: added to the square root, at least 0.
        weight_decay: decoupled decay per unit of lr, at least 0; it acts at y (GPA: on z).
        amsgrad: divide by the largest second moment so far.
        lookahead: a method (``EMANesterov``, ``NAG``, ``Lookahead``, ``LongHorizon``, ``SNOO``,
            ``GPA``, ``ScheduleFree``, ``NALA``), its name in ``emanest.METHODS``, a mapping of
            "name" and settings, or None; groups may override it.
        backend: name of a back end, or None for the best that works on the parameters' device.
        maximize: ascend.
        foreach, fused: accepted for compatibility and recorded; the step is one pass anyway.
        capturable: keep clock and numbers on the device, so that a CUDA graph can capture the step
            (not the first one, nor one after a load, which allocate and compile: RuntimeError);
            every parameter then needs a gradient at every step. Replays see an ``lr`` that moves if
            it was given as a tensor on the device: fill ``group["lr"]``, which is a copy of it.
        differentiable: must be False.
        nonfinite: ``"propagate"`` NaN and Inf as torch does, ``"skip"`` the whole step, or
            ``"raise"`` a RuntimeError that names the parameters; the last two read all gradients.

    Raises:
        TypeError, ValueError, RuntimeError: an argument is of the wrong kind or out of range; the
            message names it.

    Source: Loshchilov and Hutter, arXiv:1711.05101.
    """

    @suggesting
    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: AtLeastZero = 1e-8,
        weight_decay: AtLeastZero = 1e-2,
        amsgrad: Flag = False,
        *,
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


ADAMW = Base(_adamw_rule, _adamw_numbers, *own_options(AdamW))
AdamW.bases = {"adamw": ADAMW}
