# SPDX-License-Identifier: MIT
"""Images with classes: batches of them, shuffled, augmented and normalised."""

import dataclasses
import functools
import hashlib

import numpy as np
import torch

from .errors import DataError, choice, whole

PADDING = 4
# what a generator is for, so that no two draw the same numbers
ORDER, AUGMENTATION = 0, 1


def flip(images, draw):
    """Each image mirrored with probability a half."""
    mirrored = torch.from_numpy(draw.random(len(images)) < 0.5)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def crop(images, draw):
    """Each image moved by at most 4 pixels each way, with black where it was not."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [PADDING] * 4)
    down, right = torch.from_numpy(draw.integers(2 * PADDING + 1, size=(2, count)))
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, :]
    which = torch.arange(count)[:, None, None]
    # channels come last, since the places of the others are given
    return padded.movedim(1, -1)[which, rows, columns].movedim(-1, 1)


AUGMENTATIONS = {"flip": flip, "crop": crop}


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Training and test images of equal size, each with the number of its class.

    Attributes:
        name: what they are, for reports.
        digest: hash of images and labels; equal digests mean equal data.
        classes: number of classes.
        train, validation: (images, labels): uint8 of shape (images, channels, height, width), and
            int64.
    """

    name: str
    digest: str
    classes: int
    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]

    @property
    def shape(self):
        """(channels, height, width)."""
        return tuple(self.train[0].shape[1:])

    @functools.cached_property
    def statistics(self):
        """Mean and standard deviation of the training pixels of each channel, from 0 to 255."""
        values = np.arange(256)
        found = []
        for channel in self.train[0].numpy().swapaxes(0, 1):
            counts = np.bincount(channel.reshape(-1), minlength=256) / channel.size
            mean = counts @ values
            # no division by 0 where all pixels are equal
            found.append((mean, float(np.sqrt(counts @ (values - mean) ** 2)) or 1.0))
        return torch.tensor(found, dtype=torch.float32).T[..., None, None]

    def batches(self, batch, seed, *, augment=()):
        """What gives the batch of a step: ``feed(step)`` -> (float32 images, int64 labels).

        Images are shuffled anew each epoch, and what is left after its last whole batch is left
        out. A batch depends on the seed and the step alone.

        Args:
            augment: names of AUGMENTATIONS, in the order in which they are applied.
        """
        whole("batch", batch)
        whole("seed", seed, least=0)
        if isinstance(augment, str):
            raise DataError(f"augment is {augment!r}; give a list of names: [{augment!r}]")
        for name in augment:
            choice("augment", name, AUGMENTATIONS)
        images, labels = self.train
        each = len(images) // batch
        if not each:
            raise DataError(f"batch is {batch}, and {self.name} has {len(images)}; give fewer")

        @functools.lru_cache(1)
        def order(epoch):
            return np.random.default_rng([seed, epoch, ORDER]).permutation(len(images))

        def feed(step):
            epoch, place = divmod(step, each)
            chosen = torch.from_numpy(order(epoch)[place * batch : (place + 1) * batch])
            taken = images[chosen]
            draw = np.random.default_rng([seed, step, AUGMENTATION])
            for name in augment:
                taken = AUGMENTATIONS[name](taken, draw)
            return self._normalised(taken), labels[chosen]

        return feed

    def validation_batches(self, count, batch):
        """A list of batches of the test images in their order, the same for every run.

        Args:
            count: of batches; None: all of the images, where the last batch may be short.
        """
        whole("batch", batch)
        images, labels = self.validation
        if count is None:
            count = -(-len(images) // batch)
        elif whole("count", count) or count * batch > len(images):
            raise DataError(
                f"{count} batches of {batch} are more than the {len(images)} test images of "
                f"{self.name}; count=None takes all"
            )
        parts = (slice(k * batch, (k + 1) * batch) for k in range(count))
        return [(self._normalised(images[part]), labels[part]) for part in parts]

    def _normalised(self, images):
        mean, deviation = self.statistics
        return (images.float() - mean) / deviation


def from_arrays(name, classes, train, validation, place=None):
    """Images from arrays: (images, labels) of each side, images of shape (n, c, h, w).

    Args:
        place: where they were found, for messages.
    """
    place = place or name
    digest = hashlib.sha256()
    sides = []
    for side, (images, labels) in {"train": train, "test": validation}.items():
        images, labels = np.array(images, np.uint8), np.array(labels, np.int64)
        if len(images) != len(labels) or not len(images):
            raise DataError(f"{place} has {len(images)} {side} images and {len(labels)} labels")
        if not 0 <= labels.min() <= labels.max() < classes:
            raise DataError(f"{place} has {side} label {labels.max()}; classes are {classes}")
        digest.update(repr(images.shape).encode() + images.tobytes() + labels.tobytes())
        sides.append((torch.from_numpy(images), torch.from_numpy(labels)))
    if sides[0][0].shape[1:] != sides[1][0].shape[1:]:
        raise DataError(f"{place} has test images of another size than those to train on")
    return Images(name, digest.hexdigest()[:16], classes, *sides)
