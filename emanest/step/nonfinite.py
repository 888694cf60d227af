# SPDX-License-Identifier: MIT
"""Whether a step happens: a GradScaler's word, and the groups' ``nonfinite`` policies."""

import torch

from .. import backends
from ..backends import capture, shards
from ..backends.guards import gradients
from ..groups import parameter_name
from .plan import possible_on_device


class Skips:
    """How many steps did not happen; those that only a device knows of are counted there."""

    def __init__(self):
        self._host, self._on_device = 0, {}

    def add(self, happens, flag):
        """Count a step, by what ``check`` says of it."""
        if flag is not None:
            held = self._on_device
            if flag.device not in held:
                capture.need_warm_up(flag.device.type, "no step left its flag on the device so far")
                held[flag.device] = torch.zeros((), dtype=torch.int64, device=flag.device)
            # in place, where a captured graph finds it
            held[flag.device] += (flag.reshape(()) != 0).to(torch.int64)
        elif not happens:
            self._host += 1

    def total(self, device):
        """Their number, a 0-d int64 tensor."""
        counts = [each.to(device) for each in self._on_device.values()]
        return torch.tensor(self._host, device=device) + sum(counts)


def check(optimizer, parts):
    """Look for what forbids a step.

    Args:
        optimizer: whose step; a GradScaler sets its ``found_inf``.
        parts: what is to be stepped.

    Returns:
        Whether the step happens, and None or a flag on the device that may still forbid it: where
        the host would have to wait for the flag, and the step can be planned without knowing it.

    Raises:
        RuntimeError: a gradient is not finite under ``nonfinite="raise"``; names the parameters.
    """
    flags = list(_flags(optimizer, parts))
    if not flags:
        return True, None
    if _stays(optimizer, parts, flags):
        device = next(part.bucket.device for part in parts if part.indices)
        return True, torch.stack([_placed(flag, device) for flag in flags]).amax(0)
    return not any(flag.item() for flag in flags), None


def _flags(optimizer, parts):
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None:
        yield _flag(found_inf)
    for part in parts:
        policy = part.group.get("nonfinite", "propagate")
        if policy == "propagate" or not part.indices:
            continue
        flag = _flag(_nonfinite(part))
        if policy == "raise" and flag.item():
            names = ", ".join(_bad(optimizer, part.group))
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


def _stays(optimizer, parts, flags):
    """Whether flags stay on the device."""
    waits = any(flag.device.type != "cpu" for flag in flags)
    captured = all(group.get("capturable", False) for group in optimizer.param_groups)
    return (waits or captured) and possible_on_device(optimizer, parts)


def _nonfinite(part):
    bucket, indices = part.bucket, part.indices
    gs = bucket.gradients_of(indices, gradients(bucket.params_of(indices)))
    device_type, backend = bucket.device.type, part.group.get("backend")
    flag = backends.call("nonfinite", device_type, backend, gs, bucket.memo((bucket, indices)))
    return shards.agree(flag, bucket.mesh)


def _bad(optimizer, group):
    index = next(i for i, each in enumerate(optimizer.param_groups) if each is group)
    for j, p in enumerate(group["params"]):
        if p.grad is not None:
            finite = shards.local(p.grad).isfinite().all()
            if shards.agree(_flag(~finite), shards.mesh_of(p.grad)).item():
                yield parameter_name(group, index, j)
