# SPDX-License-Identifier: MIT
"""An image classifier with OneCycleLR and BatchNorm: what lookahead asks of either.

    python -m examples.image_classifier                      # SGD, with NAG in place of momentum
    python -m examples.image_classifier --optimizer adamw    # AdamW with EMA-Nesterov

On Fashion-MNIST where it is (``apt install dataset-fashion-mnist``, or torchvision's in ``data``),
else on made-up pictures; it says which.
"""

import argparse
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import emanest
from examples.lab.data import DataError
from examples.lab.data.image_sets import fashion_mnist
from examples.lab.data.images import from_arrays


@dataclasses.dataclass
class Settings:
    optimizer: str = "sgd"
    width: int = 16  # channels of the first convolution
    batch: int = 128
    steps: int = 600
    every: int = 200  # steps from one evaluation to the next
    statistics: int = 20  # batches that BatchNorm's statistics at x are taken from
    seed: int = 0


def made_up(size=28, classes=10, noise=60, count=(4000, 1000)):
    """Pictures of a class are one pattern, each with noise of its own."""
    draw = torch.Generator().manual_seed(0)
    patterns = 255 * torch.rand(classes, 1, size, size, generator=draw)
    sides = []
    for number in count:
        labels = torch.randint(classes, (number,), generator=draw)
        noisy = patterns[labels] + noise * torch.randn(number, 1, size, size, generator=draw)
        sides.append((noisy.clamp(0, 255).byte().numpy(), labels.numpy()))
    return from_arrays("made-up pictures", classes, *sides)


def pictures():
    """Fashion-MNIST, or what stands for it where its files are not."""
    try:
        return fashion_mnist()
    except DataError as error:
        print(f"made-up pictures, since {error}")
        return made_up()


def model_of(settings, images):
    width, channels = settings.width, images.shape[0]
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, stride=2), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, images.classes)),
    )


def sgd(model, steps):
    # emanest: NAG is the momentum, so SGD has none; a OneCycleLR that cycles momentum would switch
    # it on, and NAG would raise: cycle_momentum=False
    opt = emanest.SGD(model.parameters(), lr=0.1, weight_decay=5e-4, lookahead=emanest.NAG(0.9))
    return opt, OneCycleLR(opt, max_lr=0.1, total_steps=steps, cycle_momentum=False)


def adamw(model, steps):
    # emanest: AdamW's first beta is its own, and may be cycled; the lookahead begins when the rate
    # has risen (at 30 % of the steps), follows it down, and ends before it is next to nothing
    ahead = emanest.EMANesterov(0.5, decay=0.95, warmup=steps * 3 // 10, rest=steps * 9 // 10)
    opt = emanest.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05, lookahead=ahead)
    return opt, OneCycleLR(opt, max_lr=1e-2, total_steps=steps)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


@torch.no_grad()
def evaluate(model, opt, some, held_out):
    """Loss and accuracy at x."""
    # emanest: BatchNorm's running statistics are of forward passes at y: those of x, anew
    emanest.update_bn(some, model, opt)
    model.eval()
    # emanest: inside, the parameters hold x
    with opt.at_iterate():
        found = [(model(inputs), targets) for inputs, targets in held_out]
    model.train()
    logits, targets = (torch.cat(part) for part in zip(*found, strict=True))
    right = (logits.argmax(1) == targets).double().mean().item()
    return F.cross_entropy(logits, targets).item(), right


def train(settings, images):
    """Train; the model, its optimizer, and (step, loss, accuracy) of each evaluation."""
    torch.manual_seed(settings.seed)
    model = model_of(settings, images)
    opt, schedule = OPTIMIZERS[settings.optimizer](model, settings.steps)
    feed = images.batches(settings.batch, settings.seed)
    held_out = images.validation_batches(None, 500)
    curve = []
    for step in range(1, settings.steps + 1):
        inputs, targets = feed(step - 1)
        F.cross_entropy(model(inputs), targets).backward()
        opt.step()
        opt.zero_grad()
        schedule.step()
        if step % settings.every == 0 or step == settings.steps:
            some = [feed(k) for k in range(settings.statistics)]
            curve.append((step, *evaluate(model, opt, some, held_out)))
            print("step {}: loss at x {:.4f}, accuracy {:.4f}".format(*curve[-1]), flush=True)
    return model, opt, curve


def main(arguments=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=" ")
    images = pictures()
    print(f"{images.name}: {len(images.train[0]):,} pictures to train on")
    train(Settings(**vars(parser.parse_args(arguments))), images)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
