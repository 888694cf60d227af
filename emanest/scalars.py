"""The two numbers that each parameter carries from step to step."""

import torch

from . import storage

NAMES = "step", "lookahead"


class Scalars:
    """``step`` (base updates taken) and ``lookahead`` (how far y is ahead of x; 0: at x).

    Each is one vector for the parameters of a bucket, so that advancing them is one operation;
    ``views`` holds their elements, 0-d tensors.

    Args:
        count: how many parameters.
        device: theirs.
    """

    def __init__(self, count, device):
        self.count, self.device = count, device
        self.on_device = False  # where the vectors are
        self.steps = torch.zeros(count, dtype=torch.float32, device="cpu")
        # in float64: the recurrence of a float64 parameter must see the exact number
        self.lookaheads = torch.zeros(count, dtype=torch.float64, device="cpu")

    def views(self):
        """State name -> one 0-d tensor for each parameter."""
        vectors = self.steps, self.lookaheads
        return {name: list(v.unbind()) for name, v in zip(NAMES, vectors, strict=True)}

    def place(self, on_device):
        """Keep them on the device, where one element serves all parameters, or on the host.

        On the device they must be the same for all parameters: see ``uniform``. Views change.
        """
        self.on_device = on_device
        self.steps = self._placed(self.steps)
        self.lookaheads = self._placed(self.lookaheads)

    def _placed(self, vector):
        if self.on_device:
            return vector[:1].to(self.device, copy=True).expand(self.count)
        return vector.cpu().clone(memory_format=torch.contiguous_format)

    def uniform(self):
        """Whether all parameters have the same numbers; those on a device have."""
        return self.on_device or all(bool((v == v[0]).all()) for v in (self.steps, self.lookaheads))

    def groups(self, indices):
        """Group parameters by (step, lookahead), read on the host: normally one entry."""
        if not indices:
            return {}
        if self.uniform():
            return {(self.steps[0].item(), self.lookaheads[0].item()): indices}
        steps, lookaheads = self.steps.tolist(), self.lookaheads.tolist()
        groups = {}
        for i in indices:
            groups.setdefault((steps[i], lookaheads[i]), []).append(i)
        return groups

    def ahead(self, indices):
        """Group parameters by how far they are ahead; reads numbers that are on a device."""
        storage.check("'lookahead' of the state", self.lookaheads)
        values, groups = self.lookaheads.tolist(), {}
        for i in indices:
            groups.setdefault(values[i], []).append(i)
        return groups

    def advance(self, indices, counts, lookahead):
        """Record a step: base updates if it ``counts``, and how far parameters are ahead."""
        if len(indices) == self.count:
            self.steps += counts
            self.lookaheads.fill_(lookahead)
        else:
            # not where a user's default device is
            index = torch.tensor(indices, device=self.steps.device)
            self.steps[index] += counts
            self.lookaheads[index] = lookahead

    def arrive(self, i):
        """Record that a parameter is at x."""
        # on the device one number serves all; whoever asks is where any is right
        if not self.on_device:
            self.lookaheads[i] = 0.0
