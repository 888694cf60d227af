"""The loss along the lookahead direction."""

import torch

from . import backends
from .lookahead import method_of
from .optimizer import Optimizer
from .options import real


@torch.no_grad()
def probe_lookahead(optimizer, loss_fn, stepsizes):
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
    moving = [
        _Moving(group, bucket, same, 0.0 if not group["train_mode"] else b)
        for group in optimizer.param_groups
        if _has_direction(group)
        for bucket, indices in optimizer.housed(group).items()
        for b, same in bucket.scalars.ahead(indices).items()
    ]
    if not any(_has_direction(group) for group in optimizer.param_groups):
        raise ValueError(
            "no group of the optimizer has a lookahead direction m; EMANesterov and NAG have one"
        )
    stepsizes = [real("stepsizes", b) for b in stepsizes]
    losses, unedited = [], optimizer.buckets.unedited()
    try:
        for b in stepsizes:
            for each in moving:
                each.go(b)
            losses.append(float(loss_fn()))
    finally:
        for each in moving:
            each.restore()
        optimizer.buckets.record(unedited)
    return losses


def _has_direction(group):
    method = method_of(group)
    return method is not None and method.along


class _Moving:
    """Parameters at ``x + here * m`` that go elsewhere along m and come back."""

    def __init__(self, group, bucket, indices, here):
        self.group, self.bucket, self.indices, self.here = group, bucket, indices, here
        self.params = bucket.members(indices)
        self.kept = [p.clone() for p in self.params]

    def go(self, b):
        bucket, method = self.bucket, method_of(self.group)
        assert method is not None
        self.restore()
        backends.call(
            "move_",
            bucket.device.type,
            self.group.get("backend"),
            method.points[1],
            bucket.reals(bucket.members(self.indices)),
            bucket.columns(method.state, self.indices),
            (b - self.here,),
            bucket.dtype,
        )

    def restore(self):
        for p, kept in zip(self.params, self.kept, strict=True):
            p.copy_(kept)
