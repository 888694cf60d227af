"""Which parameters have a gradient, and whether it can be used."""

import torch

from .options import learning_rate


def parameter_name(group, index, j):
    """What messages call a parameter."""
    names = group.get("param_names")
    return f"parameter {j} of group {index}" + (f" ({names[j]!r})" if names else "")


def with_gradients(optimizer):
    """For each group, the parameters that have a gradient.

    Raises:
        RuntimeError: a gradient is sparse, or a parameter is an inference tensor.
        TypeError, ValueError: a group's lr is not a learning rate any more.
    """
    for index, group in enumerate(optimizer.param_groups):
        learning_rate(f"lr of group {index}", group["lr"])
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


def all_finite(optimizer, found):
    """Whether the step goes ahead under the groups' ``nonfinite`` policies.

    Raises:
        RuntimeError: a gradient is not finite under ``nonfinite="raise"``; names the parameters.
    """
    for index, (group, params) in enumerate(zip(optimizer.param_groups, found, strict=True)):
        policy = group.get("nonfinite", "propagate")
        bad = policy != "propagate" and [p for p in params if not torch.isfinite(p.grad).all()]
        if bad and policy == "raise":
            positions = {p: j for j, p in enumerate(group["params"])}
            names = [parameter_name(group, index, positions[p]) for p in bad]
            raise RuntimeError(f"non-finite gradient (nonfinite='raise'): {', '.join(names)}")
        if bad:
            return False
    return True
