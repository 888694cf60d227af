# SPDX-License-Identifier: MIT
"""Numbers on their way from the host to a device."""

import torch

from . import capture


def upload(values, to):
    """Bring numbers of the host to the device without waiting for it.

    By a copy of a pinned block, a fresh one every time: one that was used before may only be
    written once its copy is done, and the allocator of pinned memory, which knows when that is,
    hands a block out again only then. A graph would copy from there at every replay, and torch
    forbids it to copy from memory that is not pinned: numbers come to it as arguments of kernels.

    Args:
        values: an array of the numbers.
        to: a dense tensor of as many, of the same dtype.
    """
    if capture.capturing(to.device.type):
        # of all numbers -0.0 is the one that leaves a float what it is
        items = to.fill_(-0.0).view(-1).unbind()
        torch._foreach_add_(items, values.tolist())  # pyright: ignore[reportPrivateImportUsage]
        return
    block = torch.frombuffer(values, dtype=to.dtype).view(to.shape)
    to.copy_(block.pin_memory() if to.is_cuda else block, non_blocking=True)
