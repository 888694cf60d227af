# SPDX-License-Identifier: MIT
"""Muon over several processes: every matrix is put together once, and the result is the same."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import helpers
from helpers import METHODS, differing
from muon_runs import CLASSES
from ranks import ranks
from test_shards import content, give_gradients, spread, whole

LR = 0.05
# even, uneven, fewer rows than ranks, cut along columns, whole everywhere, a kernel
SHAPES = [(6, 9), (9, 6), (7, 4), (2, 5), (6, 8), (3, 4), (4, 3, 2, 2)]
PLACEMENTS = [*[Shard(0)] * 4, Shard(1), Replicate(), Shard(0)]


# more than rounding: the products of another process's share are the same, but for the norm
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
RUNS = [
    ("ema", {"ns_form": "gram", "ns_dtype": "float32", "nesterov": False}, SHAPES),
    # parts end in the middle of a matrix
    ("ema", {"split": 3}, [(9, 4), (6, 5)]),
]
# the lookahead comes after the search, which is what differs
FEW = ["ema", "nala"]


def train(name, methods):
    """What runs on all processes leave as wholes, each checked against a run on one."""
    runs = [*[(method, {}, SHAPES) for method in methods], *RUNS]
    return [train_one(name, *each) for each in runs]


def train_one(name, method, options, shapes):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = helpers.parameters(torch.float32, shapes)
    parts = spread(params, mesh, PLACEMENTS[: len(shapes)])
    if method == "schedule free":
        options = {**options, "momentum": 0.0}
    optimizer, plain = (
        CLASSES[name](each, LR, lookahead=METHODS[method], **options) for each in (parts, params)
    )
    for t in range(4):
        give_gradients(parts, params, t)
        for each in (optimizer, plain):
            each.step()
        with torch.no_grad():
            for p, q in zip(parts, params, strict=True):
                torch.testing.assert_close(whole(p), q.detach(), **CLOSE)
    optimizer.eval()
    for value in (v for p in parts for v in optimizer.state[p].values()):
        if isinstance(value, DTensor):
            expected = distribute_tensor(value.full_tensor(), mesh, value.placements)
            assert value.to_local().shape == expected.to_local().shape
    return content(parts, optimizer)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("Muon", FEW),
        ("NorMuon", FEW),
        # what it does otherwise comes before the lookahead
        ("Aurora", []),
        *(pytest.param(name, list(METHODS), marks=pytest.mark.slow) for name in CLASSES),
    ],
)
def test_the_number_of_processes_does_not_matter(name, methods):
    """Bit for bit; and one process on whole matrices differs by rounding."""
    one, *others = (ranks()(world, train, name, methods) for world in (1, 2, 4))
    for runs in (runs for world in others for runs in world):
        for found, expected in zip(runs, one[0], strict=True):
            assert differing(found, expected) == []
