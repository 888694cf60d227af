# SPDX-License-Identifier: MIT
"""Parameters that are spread over processes (DTensor): a step is that of the whole parameters."""

import gc

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import helpers
from helpers import METHODS, bits, differing, set_gradients
from ranks import ranks

# on 2 and 4 ranks: even, uneven, fewer rows than ranks, and a scalar that is whole everywhere
SHAPES = [(4, 6), (7, 3), (1, 5), (5,), ()]
SCALARS = ("step", "lookahead", "lookahead_step")
PLACEMENTS = [Shard(0), Shard(0), Shard(0), Shard(0), Replicate()]


def spread(params, mesh, placements):
    return [
        nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [placement]))
        for p, placement in zip(params, placements, strict=True)
    ]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def give_gradients(spread_params, params, t):
    """To both the gradients of step t at the whole parameters."""
    set_gradients(params, t)
    for p, q in zip(spread_params, params, strict=True):
        p.grad = distribute_tensor(q.grad.clone(), p.device_mesh, p.placements)


def content(params, optimizer):
    """Parameters and their state as wholes, path -> bits."""
    found = {}
    for i, p in enumerate(params):
        entries = {"value": p.detach(), **optimizer.state.get(p, {})}
        found.update({(i, k): bits(whole(v)) for k, v in entries.items()})
    return found


def same_as_whole(make, dtype, methods=tuple(METHODS)):
    """In every process: a run on shards leaves bit for bit what a run on the whole leaves."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for method in methods:
        params = helpers.parameters(dtype, SHAPES)
        parts = spread(params, mesh, PLACEMENTS)
        both = [getattr(helpers, make)(each, METHODS[method]) for each in (parts, params)]
        check_same(parts, params, *both)


def check_same(parts, params, optimizer, plain):
    def check():
        assert differing(content(parts, optimizer), content(params, plain)) == []

    for t in range(7):
        give_gradients(parts, params, t)
        for each in (optimizer, plain):
            each.step()
        # a bit that differs once does so to the end; putting wholes together takes most of the time
        if t in (3, 6):
            check()
            with optimizer.at_iterate(), plain.at_iterate():
                check()
            found, expected = optimizer.metrics(), plain.metrics()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)
    for p in parts:
        for key, value in optimizer.state[p].items():
            assert isinstance(value, DTensor) == (key not in SCALARS)


@pytest.mark.parametrize("make", ["adamw", "sgd", "wrap_adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_on_shards_is_that_of_the_whole(make, dtype):
    ranks()(2, same_as_whole, make, dtype)


def captured():
    """With numbers from the device, which on a CPU are the same."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = helpers.parameters(shapes=SHAPES)
    parts = spread(params, mesh, PLACEMENTS)
    both = [helpers.adamw(each, METHODS["ema"], capturable=True) for each in (parts, params)]
    check_same(parts, params, *both)


def test_a_capturable_step_on_shards_is_that_of_the_whole():
    ranks()(2, captured)


@pytest.mark.parametrize("make", ["adamw", "sgd"])
def test_complex_shards_are_stepped_as_the_whole(make):
    """Not in a ``Wrap``: torch's own optimizers cannot step them."""
    ranks()(2, same_as_whole, make, torch.complex64)


def objects_after(steps):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = helpers.parameters()
    parts = spread(params, mesh, [Shard(0), Shard(0), Replicate()])
    optimizer = helpers.adamw(parts, METHODS["ema"])
    counts = []
    for t in range(steps):
        give_gradients(parts, params, 0)
        optimizer.step()
        if t % 10 == 0:
            with optimizer.at_iterate():
                optimizer.state_dict()
            gc.collect()
            kinds = [type(o).__name__ for o in gc.get_objects()]
            counts.append([kinds.count(name) for name in ("DTensor", "DTensorSpec", "Parameter")])
    return counts


def test_no_tensor_stays_behind_over_100_steps():
    for counts in ranks()(2, objects_after, 100):
        assert counts[2:] == counts[1:2] * (len(counts) - 2)


def mixed_with_whole_ones():
    meshes = [init_device_mesh("cpu", shape) for shape in ((2,), (1, 2))]
    params, twins = helpers.parameters(shapes=SHAPES), helpers.parameters(shapes=SHAPES)
    parts = list(twins)
    parts[1] = nn.Parameter(distribute_tensor(twins[1].detach(), meshes[0], [Shard(0)]))
    parts[2] = nn.Parameter(
        distribute_tensor(twins[2].detach(), meshes[1], [Replicate(), Shard(1)])
    )
    optimizer, plain = (helpers.adamw(each, METHODS["gpa"]) for each in (parts, params))
    for t in range(4):
        set_gradients(params, t)
        for p, q in zip(parts, params, strict=True):
            p.grad = q.grad.clone()
            if isinstance(p, DTensor):
                p.grad = distribute_tensor(p.grad, p.device_mesh, p.placements)
        for each in (optimizer, plain):
            each.step()
        assert differing(content(parts, optimizer), content(params, plain)) == []


def test_spread_and_whole_parameters_may_be_mixed():
    ranks()(2, mixed_with_whole_ones)
