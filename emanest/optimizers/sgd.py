# SPDX-License-Identifier: MIT
"""SGD with momentum: its options, its numbers, its class."""

from typing import Annotated, Literal

from torch.optim.optimizer import ParamsT

from ..backends import BackendName
from ..methods.method import MethodLike
from ..options import (
    AtLeastZero,
    Flag,
    LearningRate,
    Nonfinite,
    options_of,
    own_options,
    suggesting,
)
from ..values import real
from .base import Base
from .optimizer import Optimizer


def _sgd_rule(group):
    if group["momentum"] == 0:
        return "sgd"
    return "nesterov" if group["nesterov"] else "momentum"


def _sgd_numbers(group, info):
    if group["momentum"] == 0:
        return info.lr, group["weight_decay"]
    # the buffer starts at the first gradient, undamped, as in torch; 0 * step keeps the dtype of a
    # tensor, whose comparison would make a float32
    later = (info.step > 0) + 0 * info.step
    weight = 1 - group["dampening"] * later
    return info.lr, group["weight_decay"], 1 - group["momentum"], weight


def _check_nesterov(group):
    if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")


class SGD(Optimizer):
    """SGD with momentum, with any lookahead in the same pass.

        g = g + weight_decay * y
        buf = momentum * buf + (1 - dampening) * g          first step: buf = g
        u = -lr * (g + momentum * buf if nesterov else buf)

    With ``lookahead=None`` a drop-in for ``torch.optim.SGD``. Memory: state is float32 (float64 for
    float64 parameters), 1 value per parameter with momentum, none without, plus those of the
    lookahead method.

    Args:
        params, lr, lookahead, backend, maximize, foreach, fused, capturable, differentiable,
            nonfinite: as in ``AdamW``.
        momentum: at least 0.
        dampening: of the gradient in the buffer, finite; not of the first one, if momentum is on
            from the first step.
        weight_decay: L2 penalty, at least 0, added to the gradient at y (GPA: decoupled, on z).
        nesterov: PyTorch's form, which holds the lookahead point in the parameters and has no
            iterate to evaluate; ``lookahead=NAG(momentum)`` is the canonical form.

    Raises:
        TypeError, ValueError, RuntimeError: as in ``AdamW``.

    Source: ``torch.optim.SGD``; Sutskever et al. 2013, where lr is inside the buffer.
    """

    @suggesting
    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: AtLeastZero = 0.0,
        dampening: Annotated[float, real] = 0.0,
        weight_decay: AtLeastZero = 0.0,
        nesterov: Flag = False,
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


# torch saves no `step` for SGD, and only the first one differs from the others
BASE = Base(_sgd_rule, _sgd_numbers, *own_options(SGD, _check_nesterov), uncounted=1.0)
SGD.bases = {"sgd": BASE}
