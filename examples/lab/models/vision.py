"""Networks that classify small images, of any shape (channels, height, width)."""

from torch import nn

from .options import ModelError, check_counts, chosen, shape_of_images

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class LeNet5(nn.Module):
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
        super().__init__()
        self.split_rules = {}
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(channels, 6, 5, padding=2), active(), pool(2)),
                nn.Sequential(nn.Conv2d(6, 16, 5), active(), pool(2), nn.Flatten()),
                nn.Sequential(nn.Linear(16 * (high // 2) * (wide // 2), 120), active()),
                nn.Sequential(nn.Linear(120, 84), active()),
            ]
        )
        self.head = nn.Linear(84, classes)

    def forward(self, images):
        """Logits (batch, classes) for images (batch, channels, height, width)."""
        for block in self.blocks:
            images = block(images)
        return self.head(images)
