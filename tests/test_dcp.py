# SPDX-License-Identifier: MIT
"""Distributed checkpoints of FSDP2 models: saved on 2 processes, loaded on 1, 2 and 4."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import distribute_tensor

import fsdp
from fsdp import MAKERS, content, train
from helpers import METHODS, differing, ulp
from ranks import ranks

# how a checkpoint lies on disk -> options
FORMS = {
    "nested": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
}
STEPS = (0, 1, 2, 7, 50)


def save(folder, make, method, form, mode, steps, more=3):
    """Save after so many steps, and go on for some more."""
    module = fsdp.sharded(fsdp.model())
    optimizer = MAKERS[make](module, method)
    train(module, optimizer, range(steps))
    getattr(optimizer, mode)()
    states = get_state_dict(module, optimizer, options=FORMS[form])
    dcp.save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder)
    optimizer.train()
    train(module, optimizer, range(steps, steps + more))
    return content(module, optimizer)


def load(folder, make, method, form, steps, more=3):
    """Load into another model, and go on for some more steps."""
    module = fsdp.sharded(fsdp.model(seed=1))
    optimizer = MAKERS[make](module, method)
    names = "model", "optimizer"
    states = dict(zip(names, get_state_dict(module, optimizer, options=FORMS[form]), strict=True))
    dcp.load(states, checkpoint_id=folder)
    set_state_dict(
        module,
        optimizer,
        model_state_dict=states["model"],
        optim_state_dict=states["optimizer"],
        options=FORMS[form],
    )
    optimizer.train()
    train(module, optimizer, range(steps, steps + more))
    return content(module, optimizer)


RUNS = [
    *[("adamw", "ema", steps) for steps in STEPS],
    ("sgd", "ema", 7),
    ("wrap", "ema", 7),
    ("wrap", "nala", 7),
    ("muon", "ema", 7),
    ("muon", "gpa", 2),
    ("normuon", "ema", 7),
    ("aurora", "ema", 7),
    *[("adamw", method, 7) for method in METHODS if method != "ema"],
]


def in_turn(cases, both=0):
    """Each case with each form; after the first, only one of the forms where time is short."""
    return [
        pytest.param(
            *(*case, form), marks=pytest.mark.slow if i >= both and (i + j) % len(FORMS) else ()
        )
        for i, case in enumerate(cases)
        for j, form in enumerate(FORMS)
    ]


@pytest.mark.parametrize(("make", "method", "steps", "form"), in_turn(RUNS, both=len(STEPS)))
def test_training_goes_on_bit_for_bit_on_any_number_of_processes(
    tmp_path, make, method, steps, form
):
    args = make, method, form
    first, _ = ranks()(2, save, tmp_path, *args, "train", steps)
    for world in (1, 4):
        for found in ranks()(world, load, tmp_path, *args, steps):
            assert differing(found, first) == []


def load_saying(*args):
    """What was loaded, and what was said about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load(*args, 0)
    return found, [str(each.message) for each in caught if "emanest" in str(each.message)]


@pytest.mark.parametrize(("method", "form"), in_turn([(method,) for method in METHODS]))
def test_saved_in_eval_mode_y_is_found_again_within_an_ulp_and_it_says_so(tmp_path, method, form):
    """Where x and the state determine y; methods with fast weights go on from the slow ones."""
    args = "adamw", method, form
    first, _ = ranks()(2, save, tmp_path, *args, "eval", 5, 0)
    (loaded, said), _ = ranks()(2, load_saying, tmp_path, *args, 5)
    determined = METHODS[method].points[1] is not None
    assert len(said) == 1
    words = "recomputed from x (within rounding)" if determined else "lost: training goes on from x"
    assert words in said[0]
    for key, expected in first.items():
        if key[1] == "value" and determined:
            y, found = tensor(expected), tensor(loaded[key])
            # away from zero; near it an ulp of y is less than one of x
            assert ((y - found).abs() <= ulp(y.abs().clamp(min=0.1))).all()


def tensor(content):
    _, shape, raw = content
    return torch.frombuffer(bytearray(raw), dtype=torch.float32).view(shape)


# ---- full state dicts ---------------------------------------------------------------------------


def save_full(path, make, method, steps):
    """One process writes an ordinary file."""
    module = fsdp.sharded(fsdp.model())
    optimizer = MAKERS[make](module, method)
    train(module, optimizer, range(steps))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states = get_state_dict(module, optimizer, options=options)
    if dist.get_rank() == 0:
        torch.save(states, path)
    train(module, optimizer, range(steps, steps + 3))
    return content(module, optimizer)


def load_full(path, make, method, steps):
    """One process reads it, the others are told."""
    module = fsdp.sharded(fsdp.model(seed=1))
    optimizer = MAKERS[make](module, method)
    states = torch.load(path, weights_only=True) if dist.get_rank() == 0 else ({}, {})
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    # set_state_dict would not load a model where its state dict is empty
    set_model_state_dict(module, states[0], options=options)
    set_optimizer_state_dict(module, optimizer, states[1], options=options)
    train(module, optimizer, range(steps, steps + 3))
    return content(module, optimizer)


@pytest.mark.parametrize(("make", "method"), [("adamw", "ema"), ("wrap", "snoo"), ("muon", "ema")])
def test_full_state_dicts_go_on_bit_for_bit(tmp_path, make, method):
    args = tmp_path / "full.pt", make, method, 5
    first, _ = ranks()(2, save_full, *args)
    for world in (1, 2):
        for found in ranks()(world, load_full, *args):
            assert differing(found, first) == []


def load_ordinary(path, make, method, steps):
    """A state dict of one process, loaded by ``load_state_dict`` itself in every process."""
    plain = fsdp.model()
    optimizer = MAKERS[make](plain, method)
    train(plain, optimizer, range(steps))
    module = fsdp.sharded(fsdp.model())
    spread = MAKERS[make](module, method)
    with torch.no_grad():
        for p, q in zip(module.parameters(), plain.parameters(), strict=True):
            p.copy_(distribute_tensor(q.detach().clone(), p.device_mesh, p.placements))
    spread.load_state_dict(optimizer.state_dict())
    for each in ((plain, optimizer), (module, spread)):
        train(*each, range(steps, steps + 3))
    return differing(content(module, spread), content(plain, optimizer))


@pytest.mark.parametrize(("make", "method"), [("adamw", "ema"), ("sgd", "gpa")])
def test_an_ordinary_state_dict_loads_onto_shards(make, method):
    assert ranks()(2, load_ordinary, None, make, method, 5) == [[], []]
