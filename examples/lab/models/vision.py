# SPDX-License-Identifier: MIT
"""Networks that classify small images, of any shape (channels, height, width)."""

import itertools

import torch.nn.functional as F
from torch import nn

from .options import ModelError, check_counts, check_sizes, check_std, chosen, shape_of_images

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class Stages(nn.Module):
    """Blocks one after the other, the last of which flattens, and a head."""

    def __init__(self, blocks, head):
        super().__init__()
        self.split_rules = {}
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, images):
        """Logits (batch, classes) for images (batch, channels, height, width)."""
        for block in self.blocks:
            images = block(images)
        return self.head(images)


class LeNet5(Stages):
    """LeNet-5: two convolutions of 5 x 5, three dense layers; 61,706 parameters for 28 x 28 x 1.

    Args:
        shape: (channels, height, width) of the images; the sides at least 12.
        classes: number of them.
        activation: "relu", or "tanh" as in 1998.
        pool: "max", or "average" as in 1998.
    """

    def __init__(self, shape=(1, 28, 28), classes=10, activation="relu", pool="max"):
        channels, height, width = shape_of_images(shape)
        check_counts(classes=classes)
        active = chosen("activation", activation, ACTIVATIONS)
        pool = chosen("pool", pool, POOLS)
        # the first convolution keeps the size, the second takes 4 off
        high, wide = (side // 2 - 4 for side in (height, width))
        if min(high, wide) < 2:
            raise ModelError(f"shape must have sides of at least 12 for lenet5, got {shape!r}")
        blocks = [
            nn.Sequential(nn.Conv2d(channels, 6, 5, padding=2), active(), pool(2)),
            nn.Sequential(nn.Conv2d(6, 16, 5), active(), pool(2), nn.Flatten()),
            nn.Sequential(nn.Linear(16 * (high // 2) * (wide // 2), 120), active()),
            nn.Sequential(nn.Linear(120, 84), active()),
        ]
        super().__init__(blocks, nn.Linear(84, classes))


class HalvingPool(nn.Module):
    """Maximum of 3 x 3 at every second place, of ceil(side / 2) places a side, as in TensorFlow."""

    def forward(self, images):
        # an even side has its margin at the end alone
        height, width = images.shape[-2:]
        padded = F.pad(images, (width % 2, 1, height % 2, 1), value=float("-inf"))
        return F.max_pool2d(padded, 3, 2)


class WideLeNet5(Stages):
    """What the code of NALA's authors runs as LeNet-5: the network of TensorFlow's CIFAR tutorial.

    Two convolutions of 5 x 5 with 64 channels, each with a pool and a local response normalisation;
    dense layers of 384 and 192. They train on random cuts of 24 x 24. Weights begin as theirs.

    Args:
        shape: (channels, height, width) of the images.
        classes: number of them.
        channels: of both convolutions.
        dense: sizes of the two dense layers.
    """

    def __init__(self, shape=(3, 24, 24), classes=10, channels=64, dense=(384, 192)):
        inputs, height, width = shape_of_images(shape)
        check_counts(classes=classes, channels=channels)
        check_sizes("dense", dense, 2)
        places = -(-height // 4) * -(-width // 4)
        conv1, conv2 = (nn.Conv2d(n, channels, 5, padding=2) for n in (inputs, channels))
        first, second = (
            nn.Linear(*pair) for pair in itertools.pairwise((channels * places, *dense))
        )
        head = nn.Linear(dense[-1], classes)
        for layer, std, bias in (
            (conv1, 0.05, 0.0),
            (conv2, 0.05, 0.1),
            (first, 0.04, 0.1),
            (second, 0.04, 0.1),
            (head, 1 / 192, 0.0),
        ):
            _begin(layer, std, bias)
        blocks = [
            _stage(conv1, HalvingPool(), _lrn()),
            _stage(conv2, _lrn(), HalvingPool(), nn.Flatten()),
            _stage(first),
            _stage(second),
        ]
        super().__init__(blocks, head)


class AlexNet(Stages):
    """AlexNet for 32 x 32, as in the code of NALA's authors; other images are resized to that.

    Args:
        shape: (channels, height, width) of the images.
        classes: number of them.
        channels: of the five convolutions.
        dense: sizes of the dense layers. A variant of theirs has one more, of 1000.
        std: of the weights at the start; theirs is 0.1, with which the first logits are beyond
            10,000. None: as PyTorch starts them.
    """

    def __init__(
        self,
        shape=(3, 32, 32),
        classes=10,
        channels=(96, 256, 384, 384, 256),
        dense=(4096, 4096),
        std=None,
    ):
        inputs, _, _ = shape_of_images(shape)
        check_counts(classes=classes)
        check_sizes("channels", channels, 5)
        check_sizes("dense", dense)
        a, b, c, d, e = channels
        # 16, 7, 5, 5, 5 and 3 places a side
        sizes = (9 * e, *dense)
        blocks = [
            _stage(nn.Conv2d(inputs, a, 6, 2, 2), _lrn(), nn.MaxPool2d(3, 2)),
            _stage(nn.Conv2d(a, b, 3, padding=1), _lrn(), nn.MaxPool2d(3, 1)),
            _stage(nn.Conv2d(b, c, 3, padding=1)),
            _stage(nn.Conv2d(c, d, 3, padding=1)),
            _stage(nn.Conv2d(d, e, 3, padding=1), nn.MaxPool2d(3, 1), nn.Flatten()),
            *(_stage(nn.Linear(*pair)) for pair in itertools.pairwise(sizes)),
        ]
        super().__init__(blocks, nn.Linear(sizes[-1], classes))
        if std is not None:
            check_std(std)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    _begin(layer, std, 0.0)

    def forward(self, images):
        """Logits (batch, classes) for images (batch, channels, height, width)."""
        if images.shape[-2:] != (32, 32):
            images = F.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
        return super().forward(images)


def _lrn():
    """Local response normalisation over 9 channels; PyTorch divides alpha by their number."""
    return nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1.0)


def _stage(layer, *after):
    return nn.Sequential(layer, nn.ReLU(), *after)


def _begin(layer, std, bias):
    """Give the layer TensorFlow's truncated normal weights, and biases of one value."""
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.constant_(layer.bias, bias)
