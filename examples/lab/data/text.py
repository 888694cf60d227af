# SPDX-License-Identifier: MIT
"""Text to train a language model on: a row of bytes or of tokens, and batches of its windows."""

import dataclasses
import hashlib

import numpy as np
import torch

from .errors import DataError, choice, whole

ORDERS = ("random", "sequential")
VALIDATION_ORDERS = ("spread", "sequential")
VALIDATION_SHARE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Training and validation text, none of it in both.

    Attributes:
        name: what the text is, for reports.
        digest: hash of the contents and of the split; equal digests mean equal texts.
        vocabulary: every value is below it.
        unit: what a value stands for: "byte" or "token".
        files: number of files in (training, validation).
        train, validation: 1-d tensors of uint8, uint16 or int32 on the CPU, which may lie in a
            file; or, where it lies in several, a ``tokens.Row`` of such tensors.
    """

    name: str
    digest: str
    vocabulary: int
    unit: str
    files: tuple[int, int]
    train: torch.Tensor
    validation: torch.Tensor

    def batches(self, batch, seed, *, context, order="random"):
        """What gives the batch of a step: ``feed(step)`` -> (inputs, targets).

        Both are int64 of shape (batch, context), and a target is the value that follows its
        input. A batch depends on the seed and the step alone, so that a run can go on anywhere.

        Args:
            order: "random": windows at random places. "sequential": one window after the other,
                from the front whatever the seed, and from the front again after the last whole
                one.
        """
        whole("batch", batch)
        whole("seed", seed, least=0)
        choice("order", order, ORDERS)
        count = self._room("train", context)

        def random(step):
            return np.random.default_rng([seed, step]).integers(count, size=batch)

        def sequential(step):
            return (step * batch + np.arange(batch)) % self._whole("train", context) * context

        starts = random if order == "random" else sequential
        return lambda step: windows(self.train, starts(step), context)

    def validation_batches(self, count, batch, *, context, order="spread"):
        """A list of ``count`` batches of validation text, the same for every run.

        Args:
            order: "spread": windows at equal distances over all the text. "sequential": one after
                the other from the front.
        """
        whole("count", count)
        whole("batch", batch)
        choice("order", order, VALIDATION_ORDERS)
        room = self._room("validation", context)
        numbers = np.arange(count * batch)
        if order == "spread":
            starts = numbers * (room - 1) // max(1, count * batch - 1)
        else:
            starts = numbers % self._whole("validation", context) * context
        return [windows(self.validation, part, context) for part in starts.reshape(count, batch)]

    def _room(self, side, context):
        """Number of places where a window with its targets can start."""
        whole("context", context)
        length = len(getattr(self, side))
        if length <= context:
            raise DataError(
                f"{self.name} leaves {length} {self.unit}s for {side}; a context of {context} "
                f"needs {context + 1}: give more text or a smaller context"
            )
        return length - context

    def _whole(self, side, context):
        """Number of windows that lie one after the other, the last with its targets."""
        return (len(getattr(self, side)) - 1) // context


def windows(row, starts, context):
    """Windows of a row: (inputs, targets), int64 of shape (windows, context)."""
    taken = torch.stack([row[k : k + context + 1] for k in starts.tolist()]).long()
    return taken[:, :-1], taken[:, 1:]


def split(texts):
    """Split files by the hash of their content.

    A file lands on the same side whatever its name and place, and copies of a file land on the
    same side, so that no validation text has been trained on.

    Args:
        texts: the contents of the files, bytes, in any order.

    Returns:
        (training, validation): lists of (hash, content) in the order of the hashes. Validation
        takes files from the front until it has a tenth of all bytes; each side has at least one.
    """
    ordered = sorted({hashlib.sha256(text).hexdigest(): text for text in texts}.items())
    wanted = VALIDATION_SHARE * sum(len(text) for _, text in ordered)
    count = size = 0
    while size < wanted and count < len(ordered) - 1:
        size += len(ordered[count][1])
        count += 1
    return ordered[count:], ordered[:count]


def from_texts(texts, name, place):
    """A text of bytes from the contents of files, with a zero byte between two of them.

    Args:
        texts: bytes; those that are empty or hold zero bytes are left out.
        place: where they were found, for messages.
    """
    texts = {text for text in texts if text and 0 not in text}
    if len(texts) < 2:
        raise DataError(
            f"{place} holds {len(texts)} different text files; "
            "the split is by file and needs at least 2"
        )
    sides = split(texts)
    digest = hashlib.sha256(repr([[key for key, _ in side] for side in sides]).encode())
    rows = [bytearray(b"\0".join(text for _, text in side)) for side in sides]
    train, validation = (torch.frombuffer(row, dtype=torch.uint8) for row in rows)
    files = len(sides[0]), len(sides[1])
    return Text(name, digest.hexdigest()[:16], 256, "byte", files, train, validation)
