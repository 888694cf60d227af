# SPDX-License-Identifier: MIT
"""The lab's networks for images against what their sources say, written down once more."""

import pytest
import torch
import torch.nn.functional as F
from small_models import IMAGES, MODELS, batch, make, small, step

import emanest
from examples.lab.models.vision import HalvingPool


@pytest.mark.parametrize("sides", [(12, 12), (13, 17), (28, 28), (31, 32), (40, 15)])
@pytest.mark.parametrize("name", IMAGES)
def test_networks_take_images_of_any_shape(name, sides):
    shape = (2, *sides)
    model = make({"name": name, **MODELS[name].small, "shape": list(shape), "classes": 7}, 0)
    assert model(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("side", [1, 2, 5, 6, 23, 24])
def test_pools_that_halve_have_the_margins_of_tensorflow(side):
    """By TensorFlow's rule for 'SAME': what does not divide evenly goes to the end."""
    row = torch.randn(side)
    places = -(-side // 2)
    margin = max((places - 1) * 2 + 3 - side, 0)
    windows = [range(2 * i - margin // 2, 2 * i - margin // 2 + 3) for i in range(places)]
    expected = [max(row[j].item() for j in window if 0 <= j < side) for window in windows]
    images = row.expand(1, 1, side, side)
    assert HalvingPool()(images)[0, 0, 0].tolist() == expected
    assert HalvingPool()(images.mT)[0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize("options", [{}, {"activation": "tanh"}, {"pool": "average"}])
def test_lenet_is_that_of_1998_by_options(options):
    """Layer by layer, from the weights."""
    model = make({"name": "lenet5", **options}, 0)
    active = torch.tanh if options.get("activation") == "tanh" else torch.relu
    pool = F.avg_pool2d if options.get("pool") == "average" else F.max_pool2d
    a, b, c, d, e, f, g, h, i, j = model.parameters()
    x = torch.randn(2, 1, 28, 28)
    y = pool(active(F.conv2d(x, a, b, padding=2)), 2)
    y = pool(active(F.conv2d(y, c, d)), 2).flatten(1)
    y = active(F.linear(active(F.linear(y, e, f)), g, h))
    assert torch.equal(model(x), F.linear(y, i, j))


def normalised(x):
    """TensorFlow's local response normalisation: a channel beside the 4 before and the 4 after."""
    padded = F.pad(x.square(), (0, 0, 0, 0, 4, 4))
    sums = sum(padded[:, k : k + x.shape[1]] for k in range(9))
    return x / (1 + 0.001 / 9 * sums) ** 0.75


def test_the_wide_lenet_is_that_of_nalas_code():
    """Layer by layer, from the weights; sides are even."""
    model = make({"name": "wide_lenet5"}, 0)
    # so that responses are large enough to be normalised
    with torch.no_grad():
        model.blocks[0][0].weight.mul_(30)
    a, b, c, d, e, f, g, h, i, j = model.parameters()
    x = torch.randn(2, 3, 24, 24)
    y = F.max_pool2d(torch.relu(F.conv2d(x, a, b, padding=2)), 3, 2, ceil_mode=True)
    y = normalised(torch.relu(F.conv2d(normalised(y), c, d, padding=2)))
    y = F.max_pool2d(y, 3, 2, ceil_mode=True).flatten(1)
    y = torch.relu(F.linear(torch.relu(F.linear(y, e, f)), g, h))
    torch.testing.assert_close(model(x), F.linear(y, i, j))


def test_alexnet_is_that_of_nalas_code():
    """Layer by layer, from the weights, for images that are resized."""
    model = make({"name": "alexnet", "dense": (64, 48), "std": 0.1}, 0)
    found = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    kernels, (*dense, head) = found[:5], found[5:]
    images = torch.randn(2, 3, 24, 24)
    y = F.interpolate(images, 32, mode="bilinear")
    pools = [(normalised, 2), (normalised, 1), None, None, (lambda x: x, 1)]
    for k, (kernel, after) in enumerate(zip(kernels, pools, strict=True)):
        stride, padding = (1, 1) if k else (2, 2)
        y = torch.relu(F.conv2d(y, kernel.weight, kernel.bias, stride, padding))
        if after:
            y = F.max_pool2d(after[0](y), 3, after[1])
    y = y.flatten(1)
    for layer in dense:
        y = torch.relu(F.linear(y, layer.weight, layer.bias))
    expected = F.linear(y, head.weight, head.bias)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-3)


def test_blocks_of_resnet_halve_three_times_and_add_what_came_in():
    model = small("resnet18")
    h = torch.rand(2, 4, 12, 12)
    shapes = []
    for block in model.blocks:
        torch.nn.init.zeros_(block.norm2.weight)
        came_in = h
        h = block(h)
        assert torch.equal(h, torch.relu(block.shortcut(came_in)))
        assert h.any()
        shapes.append(tuple(h.shape[1:]))
    assert shapes[::2] == shapes[1::2] == [(4, 12, 12), (8, 6, 6), (16, 3, 3), (32, 2, 2)]


def test_batch_norms_of_resnet_can_be_those_of_x():
    model = small("resnet18")
    assert model.statistics
    optimizer = emanest.AdamW(model.parameters(), lr=0.05, lookahead=emanest.EMANesterov())
    inputs, targets = batch("resnet18", 16)
    step(optimizer, model, inputs, targets, 20)
    emanest.update_bn([inputs], model, optimizer)
    with optimizer.at_iterate(), torch.no_grad():
        first = model.norm.running_mean.clone()
        torch.testing.assert_close(first, model.conv(inputs).mean((0, 2, 3)))


def test_only_resnet_collects_statistics():
    buffers = {name for name in MODELS if list(small(name).buffers())}
    assert buffers == {name for name in MODELS if getattr(small(name), "statistics", False)}
