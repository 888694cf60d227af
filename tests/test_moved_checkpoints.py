# SPDX-License-Identifier: MIT
"""A checkpoint written on one back end is loaded on another, and the run goes on there."""

import itertools

import pytest
import torch
from torch import nn

import helpers
from emanest import backends
from helpers import (
    content,
    differing,
    run,
    values,
)
from optimizer_database import DATABASE, each_lookahead

BACKENDS = [name for name in ("cpp", "eager") if backends.find(name, "cpu")[0]]

each_move = pytest.mark.parametrize(("source", "target"), list(itertools.permutations(BACKENDS, 2)))


def made(entry, lookahead, params, backend):
    optimizer = entry.make(params, lookahead, lr=helpers.LR, backend=backend)
    assert {group["backend"] for group in optimizer.param_groups} == {backend}
    return optimizer


@each_move
@pytest.mark.parametrize("entry", [e for e in DATABASE.values() if not e.wraps], ids=repr)
@each_lookahead
def test_a_run_goes_on_elsewhere(source, target, entry, lookahead):
    """Bit for bit as if the back end had been switched without a checkpoint.

    Those that orthogonalise aside, also as if it had not been switched at all.
    """
    shapes, mode = [(3, 4), (4, 2)], "train" if source == "cpp" else "eval"
    optimizer, stayed = (
        made(entry, lookahead, helpers.parameters(torch.float32, shapes), source) for _ in range(2)
    )
    for each in (optimizer, stayed):
        run(each, range(4))
        getattr(each, mode)()
    moved = made(entry, lookahead, [nn.Parameter(v) for v in values(optimizer)], target)
    moved.load_state_dict(optimizer.state_dict())
    assert differing(content(moved), content(optimizer)) == ["/param_groups/0/backend"]
    assert moved.param_groups[0]["backend"] == target
    optimizer.param_groups[0]["backend"] = target
    for each in (moved, optimizer, stayed):
        each.train()
        run(each, range(4, 9))
    assert differing(content(moved), content(optimizer)) == []
    if entry.supports_complex:
        assert differing(content(moved), content(stayed)) == ["/param_groups/0/backend"]


@each_move
@pytest.mark.parametrize("entry", [e for e in DATABASE.values() if e.wraps], ids=repr)
@each_lookahead
def test_a_wrapped_run_goes_on_elsewhere(source, target, entry, lookahead, monkeypatch):
    """The groups of a Wrap name no back end; the environment does."""
    monkeypatch.setenv("EMANEST_BACKEND", source)
    optimizer = entry.make(helpers.parameters(), lookahead, lr=helpers.LR)
    run(optimizer, range(4))
    monkeypatch.setenv("EMANEST_BACKEND", target)
    moved = entry.make([nn.Parameter(v) for v in values(optimizer)], lookahead, lr=helpers.LR)
    moved.load_state_dict(optimizer.state_dict())
    run(moved, range(4, 9))
    monkeypatch.setenv("EMANEST_BACKEND", source)
    run(optimizer, range(4, 9))
    assert differing(content(moved), content(optimizer)) == []
