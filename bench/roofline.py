# SPDX-License-Identifier: MIT
"""The bandwidth that a step could reach: a pass with next to no arithmetic.

On a GPU that is a plain copy, as everybody quotes it. On a CPU a copy allocates cache lines for
what it writes; a step updates several arrays in place and reaches two to three times that rate. So
there the ceiling of a case is measured with its own streams: as many arrays, of the same dtypes, as
many of them written, all in place, in a loop that torch.compile writes.
The ceiling is one more variant of its case, timed in turn with the others.
"""

import torch


def touch(read, written):
    """Read everything, write ``written`` back: one multiply and one add per written element."""
    # bounded whatever the number of passes, and never denormal
    pull = sum(0.001 * stream for stream in read) if read else 0.001
    for stream in written:
        stream.copy_(0.999 * stream + pull)


class Streams:
    """A pass over arrays that are read and others that are updated in place.

    Args:
        params: what the case steps, gradients set; they give dtypes, device and length.
        traffic: of the case: what is read and written is updated in place.

    Attributes:
        bytes: that a pass moves.
    """

    # of a longer model a part is enough: hundreds of megabytes per array
    most = 2**26

    def __init__(self, params, traffic):
        p, state = params[0], torch.float32
        self.elements = min(sum(p.numel() for p in params), self.most)
        updated = [p.dtype] * (traffic.param // 2) + [state] * (traffic.state // 2)
        self.read = [self._array(p.device, p.grad.dtype) for _ in range(traffic.grad)]
        self.written = [self._array(p.device, dtype) for dtype in updated]
        self.bytes = sum(array.nbytes for array in (*self.read, *self.written, *self.written))
        self.compiled = torch.compile(touch, dynamic=False, fullgraph=True)

    def _array(self, device, dtype):
        return torch.randn(self.elements, device=device).to(dtype)

    @torch.no_grad()
    def step(self):
        """One pass."""
        self.compiled(self.read, self.written)


class Copy:
    """A copy of what a step moves, at most 1 GiB; arguments and attributes as of ``Streams``."""

    most = 2**30

    def __init__(self, params, traffic):
        moved = traffic.bytes(params[0].dtype) * sum(p.numel() for p in params)
        elements = min(moved // 2, self.most) // 4
        self.source = torch.randn(elements, device=params[0].device)
        self.copied = torch.empty_like(self.source)
        self.bytes = 2 * self.source.nbytes

    @torch.no_grad()
    def step(self):
        """One copy."""
        self.copied.copy_(self.source)


CEILINGS = {"cpu": Streams, "cuda": Copy}
