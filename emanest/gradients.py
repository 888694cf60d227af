"""Which parameters have a gradient, and whether it can be used."""

import torch

from . import shards, storage


def parameter_name(group, index, j):
    """What messages call a parameter."""
    names = group.get("param_names")
    return f"parameter {j} of group {index}" + (f" ({names[j]!r})" if names else "")


def with_gradients(optimizer, setups):
    """For each group, the parameters that have a gradient.

    Args:
        optimizer: whose step.
        setups: of each of its groups.

    Raises:
        RuntimeError: a gradient is sparse, or a parameter is an inference tensor.
        TypeError: the values of one or the other are not in its storage.
    """
    for index, setup in enumerate(setups):
        group = setup.group
        for j, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            name = parameter_name(group, index, j)
            if setup.base.dense_only and p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(optimizer).__name__} does not support sparse gradients: {name} has "
                    f"one of layout {p.grad.layout}; use a dense layer (sparse=False)"
                )
            if p.is_inference():
                raise RuntimeError(
                    f"{name} was made in inference mode and cannot be updated: clone() it outside"
                )
            _check_storage(name, p)
    return [[p for p in setup.group["params"] if p.grad is not None] for setup in setups]


def _check_storage(name, p):
    """Refuse a parameter, or its gradient, that kernels could not find by its address."""
    # beside a fake one state is made, and nothing is computed; one on the meta device comes later
    if storage.is_fake(shards.local(p)) or p.is_meta:
        return
    shards.check_storage(name, p)
    if p.grad.layout == torch.strided:
        gradient = storage.waited(p.grad)
        # a DTensor is a gradient of a DTensor only
        check = storage.check if shards.mesh_of(p) is None else shards.check_storage
        check(f"the gradient of {name}", gradient)


def dense(gradient):
    """A gradient as a strided tensor; a sparse one reaches us only from inside a ``Wrap``."""
    return storage.waited(gradient if gradient.layout == torch.strided else gradient.to_dense())
