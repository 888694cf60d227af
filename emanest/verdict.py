"""Whether a step happens: a GradScaler's word, and the groups' ``nonfinite`` policies."""

import torch

from . import backends, launches, shards
from .checks import CHECKS
from .gradients import parameter_name
from .watch import gradients


def verdict(optimizer, chosen):
    """Look for what forbids a step.

    Args:
        optimizer: whose step; a GradScaler sets its ``found_inf``.
        chosen: for each group its buckets, with the indices of the parameters to be stepped.

    Returns:
        Whether the step happens, and None or a flag on the device that may still forbid it: where
        the host would have to wait for the flag, and the step can be planned without knowing it.

    Raises:
        RuntimeError: a gradient is not finite under ``nonfinite="raise"``; names the parameters.
    """
    flags = [_flag(flag) for flag in _flags(optimizer, chosen)]
    if not flags:
        return True, None
    if _stays(optimizer, chosen, flags):
        device = next(b.device for buckets in chosen for b, indices in buckets.items() if indices)
        return True, torch.stack([_placed(flag, device) for flag in flags]).amax(0)
    return not any(flag.item() for flag in flags), None


def _flags(optimizer, chosen):
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None:
        yield found_inf
    for index, (group, buckets) in enumerate(zip(optimizer.param_groups, chosen, strict=True)):
        policy = group.get("nonfinite", "propagate")
        if policy == "propagate":
            continue
        CHECKS["nonfinite"](f"nonfinite of group {index}", policy)
        for bucket, indices in buckets.items():
            if indices:
                flag = _nonfinite(group, bucket, indices)
                if policy == "raise" and flag.item():
                    names = ", ".join(_bad(group, index))
                    raise RuntimeError(f"non-finite gradient (nonfinite='raise'): {names}")
                yield flag


def _flag(value):
    # GradScaler sets an int where there was no gradient at all
    flag = value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")
    return shards.whole("found_inf", flag).detach().to(torch.float32).reshape(1)


def _placed(flag, device):
    # what the host knows is filled in: a copy would wait, and cannot be captured in a graph
    if flag.device.type == "cpu" != device.type:
        return torch.full((1,), flag.item(), dtype=torch.float32, device=device)
    return flag.to(device, non_blocking=True)


def _stays(optimizer, chosen, flags):
    """Whether flags stay on the device."""
    waits = any(flag.device.type != "cpu" for flag in flags)
    captured = all(group.get("capturable", False) for group in optimizer.param_groups)
    return (waits or captured) and launches.possible_on_device(optimizer, chosen)


def _nonfinite(group, bucket, indices):
    gs = bucket.beside(gradients(bucket.owners(indices)), indices)
    where = bucket.device.type, group.get("backend")
    flag = backends.call("nonfinite", *where, bucket.reals(gs), bucket.memo(indices))
    return shards.agree(flag, bucket.mesh)


def _bad(group, index):
    for j, p in enumerate(group["params"]):
        if p.grad is not None:
            finite = shards.local(p.grad).isfinite().all()
            if shards.agree(_flag(~finite), shards.mesh_of(p.grad)).item():
                yield parameter_name(group, index, j)
