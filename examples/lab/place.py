"""Where a run is trained: a device, and the share that this process has of every batch."""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Place:
    """One process on one device; ``parallel.Rank`` is one of several."""

    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    first = True  # whether this process writes what all have found

    def distribute(self, model):
        """The model as this process trains it."""
        return model

    def share(self, batch):
        """This process's rows of a batch."""
        return batch

    def mean(self, value):
        """The mean of a number over all processes."""
        return value
