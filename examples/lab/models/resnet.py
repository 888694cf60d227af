# SPDX-License-Identifier: MIT
"""ResNet-18 in the form for images of 32 x 32."""

import itertools

import torch.nn.functional as F
from torch import nn

from .options import check_counts, shape_of_images


class Block(nn.Module):
    """Two convolutions of 3 x 3, added to what came in; with a stride what came in is projected."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images):
        inside = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(inside)) + self.shortcut(images))


class ResNet18(nn.Module):
    """ResNet-18 with a first convolution of 3 x 3 and no first pool, for any images.

    Attributes:
        statistics: True: batch norms collect running statistics in training, at y. Before an
            evaluation at x call ``emanest.update_bn(loader, model, optimizer)``.

    Args:
        shape: (channels, height, width) of the images.
        classes: number of them.
        width: channels of the first stage; each of the three others has twice those before.
    """

    statistics = True

    def __init__(self, shape=(3, 32, 32), classes=10, width=64):
        channels, _, _ = shape_of_images(shape)
        check_counts(classes=classes, width=width)
        super().__init__()
        self.split_rules = {}
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.ModuleList()
        for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            self.blocks.append(Block(inputs, outputs, 2 if stage else 1))
            self.blocks.append(Block(outputs, outputs, 1))
        self.head = nn.Linear(widths[-1], classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images):
        """Logits (batch, classes) for images (batch, channels, height, width)."""
        h = F.relu(self.norm(self.conv(images)))
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean((-2, -1)))
