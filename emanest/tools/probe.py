# SPDX-License-Identifier: MIT
"""The loss along the lookahead direction."""

from collections.abc import Callable, Iterable

import torch

from ..methods.given import method_of
from ..optimizers import Optimizer
from ..state.modes import by_ahead, copies_of, move, put_back
from ..values import real


@torch.no_grad()
def probe_lookahead(
    optimizer: Optimizer,
    loss_fn: Callable[[], float | torch.Tensor],
    stepsizes: Iterable[float],
) -> list[float]:
    """Evaluate the loss at ``x + b * m`` for several b; parameters come back bit for bit.

    A loss that grows with b from the start says that looking ahead does not pay at this point of
    the run; one that falls up to some b says how far it would. b = 0 is the loss at x. Works in
    train and in eval mode, for groups under ``EMANesterov`` or ``NAG``; parameters that have not
    been stepped, and groups without a lookahead, stay where they are.

    Memory: one copy of the parameters, for the duration of the call.

    Args:
        optimizer: an optimizer of this library, or a ``Wrap``.
        loss_fn: called without arguments and without autograd; returns the loss (a number or a
            1-element tensor) at the parameters as they are then. It should see the same data at
            every call.
        stepsizes: the values of b, any finite numbers.

    Returns:
        The losses, a list of floats in the order of ``stepsizes``.

    Raises:
        TypeError: not an optimizer of this library.
        ValueError: no group has a direction m.

    Source: EMA-Nesterov, arXiv:2605.25395, figures 2 and 8.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of emanest, got {type(optimizer).__name__}")
    parts = optimizer.with_state(_has_direction)
    if not any(_has_direction(group, method_of(group)) for group in optimizer.param_groups):
        raise ValueError(
            "no group of the optimizer has a lookahead direction m; EMANesterov and NAG have one"
        )
    stepsizes = [real("stepsizes", b) for b in stepsizes]
    here = [(its, ahead if its.group["train_mode"] else 0.0) for its, ahead in by_ahead(parts)]
    losses, copies = [], copies_of(parts)
    with optimizer.buckets.ours():
        try:
            for b in stepsizes:
                put_back(parts, copies)
                move(1, [(part, b - ahead) for part, ahead in here])
                losses.append(float(loss_fn()))
        finally:
            put_back(parts, copies)
    return losses


def _has_direction(group, method):
    return method.along
