# SPDX-License-Identifier: MIT
"""Long runs keep to their memory, and what is deleted is gone at once."""

import gc
import itertools
import random
import resource
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from bad_input import EVERY, make, matrices
from helpers import METHODS, params_of, run, set_gradients

# enough for a run to have met every state that it will be in
SETTLED = 2_000
STEPS = 10_000


def resident():
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def in_use():
    gc.collect()
    everything = gc.get_objects()
    # type(): isinstance would wake lazy modules; and no fake tensors, which compilers keep
    tensors = [o for o in everything if type(o) in (torch.Tensor, nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return len(tensors), sum(storages.values()), len(everything)


def as_training_does(optimizer, steps):
    """Gradients that are missing at random, a schedule, evaluations, checkpoints."""
    chance = random.Random(0)
    params = params_of(optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    set_gradients(params, 0)
    grads = [p.grad for p in params]
    while True:
        for _ in range(steps):
            for p, g in zip(params, grads, strict=True):
                p.grad = None if chance.random() < 0.05 else g
            optimizer.step()
            scheduler.step()
            t = scheduler.last_epoch
            if t % 10 == 0:
                with optimizer.at_iterate():
                    pass
            if t % 100 == 0:
                saved = optimizer.state_dict()
            if t % 1000 == 0:
                optimizer.load_state_dict(saved)
        yield


SOAKS = [
    ("AdamW", "ema", {}),
    pytest.param("Wrap", "ema", {"inner": torch.optim.SGD}, marks=pytest.mark.slow),
    pytest.param("SGD", "snoo", {}, marks=pytest.mark.slow),
    pytest.param("Wrap", "nala", {}, marks=pytest.mark.slow),
    pytest.param("Muon", "ema", {}, marks=pytest.mark.slow),
    pytest.param("NorMuon", "gpa", {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "method", "options"), SOAKS)
def test_memory_is_flat_over_10_000_steps(name, method, options):
    optimizer = make(name, matrices(), lookahead=METHODS[method], lr=1e-4, **options)
    go_on = as_training_does(optimizer, SETTLED)
    seen = []
    for _ in range(STEPS // SETTLED):
        next(go_on)
        seen.append((resident(), *in_use()))
    resident_, tensors, bytes_, objects = map(list, zip(*seen, strict=True))
    assert len(set(tensors)) == len(set(bytes_)) == 1
    # what is kept at each step grows in every span, by 2,000 objects or 16 bytes for each; the
    # interpreter, and this test, take some of their own now and then
    assert min(growth(objects)) < 100
    assert min(growth(resident_)) < 16 * SETTLED
    assert all(p.isfinite().all() for p in params_of(optimizer))


def growth(values):
    return [b - a for a, b in itertools.pairwise(values)]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_deleted_optimizer_is_gone_at_once(name, mode):
    """With its state: nothing waits for the garbage collector."""
    optimizer = make(name, matrices())
    run(optimizer, range(3))
    optimizer.load_state_dict(optimizer.state_dict())
    run(optimizer, range(3, 5))
    getattr(optimizer, mode)()
    p = params_of(optimizer)[0]
    key = "lookahead_exp_avg_update" if name == "Wrap" else "exp_avg_update"
    watched = [weakref.ref(optimizer), weakref.ref(optimizer.state[p][key])]
    gc.collect()
    gc.disable()
    try:
        del optimizer
        assert [each() for each in watched] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("name", EVERY)
def test_parameters_are_not_kept_by_an_optimizer_that_is_gone(name):
    model = nn.Linear(4, 3, bias=False)
    optimizer = make(name, model.parameters())
    run(optimizer, range(2))
    watched = weakref.ref(model.weight)
    gc.collect()
    gc.disable()
    try:
        del optimizer, model
        assert watched() is None
    finally:
        gc.enable()
