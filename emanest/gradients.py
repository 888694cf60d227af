"""Which parameters have a gradient, and whether it can be used."""

import torch

from . import ops
from .options import learning_rate


def parameter_name(group, index, j):
    """What messages call a parameter."""
    names = group.get("param_names")
    return f"parameter {j} of group {index}" + (f" ({names[j]!r})" if names else "")


def check_rates(groups):
    """Raise TypeError or ValueError if a group's lr is not a learning rate any more."""
    for index, group in enumerate(groups):
        learning_rate(f"lr of group {index}", group["lr"])


def with_gradients(optimizer):
    """For each group, the parameters that have a gradient.

    Raises:
        RuntimeError: a gradient is sparse, or a parameter is an inference tensor.
    """
    for index, group in enumerate(optimizer.param_groups):
        for j, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            name = parameter_name(group, index, j)
            if optimizer.dense_only and p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(optimizer).__name__} does not support sparse gradients: {name} has "
                    f"one of layout {p.grad.layout}; use a dense layer (sparse=False)"
                )
            if p.is_inference():
                raise RuntimeError(
                    f"{name} was made in inference mode and cannot be updated: clone() it outside"
                )
    return [[p for p in g["params"] if p.grad is not None] for g in optimizer.param_groups]


def dense(gradient):
    """A gradient as a strided tensor; a sparse one reaches us only from inside a ``Wrap``."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def all_finite(optimizer, chosen):
    """Whether the step goes ahead under the groups' ``nonfinite`` policies.

    Args:
        chosen: for each group its buckets, with the indices of the parameters to be stepped.

    Raises:
        RuntimeError: a gradient is not finite under ``nonfinite="raise"``; names the parameters.
    """
    for index, (group, buckets) in enumerate(zip(optimizer.param_groups, chosen, strict=True)):
        policy = group.get("nonfinite", "propagate")
        if policy == "propagate" or not any(_nonfinite(group, *each) for each in buckets.items()):
            continue
        if policy == "raise":
            params = enumerate(group["params"])
            bad = [j for j, p in params if p.grad is not None and not p.grad.isfinite().all()]
            names = ", ".join(parameter_name(group, index, j) for j in bad)
            raise RuntimeError(f"non-finite gradient (nonfinite='raise'): {names}")
        return False
    return True


def _nonfinite(group, bucket, indices):
    gradients = bucket.reals([p.grad for p in bucket.members(indices)])
    found = indices and ops.nonfinite(gradients, bucket.memo(indices), group.get("backend"))
    return bool(found)
