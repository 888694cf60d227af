"""Which parameters have a gradient, and whether it can be used."""

import torch


def parameter_name(group, index, j):
    """What messages call a parameter."""
    names = group.get("param_names")
    return f"parameter {j} of group {index}" + (f" ({names[j]!r})" if names else "")


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
