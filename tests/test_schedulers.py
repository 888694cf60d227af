# SPDX-License-Identifier: MIT
"""Schedulers of torch on every optimizer with every lookahead: they set numbers, nothing else."""

import copy
import itertools

import pytest
import torch
from torch.optim import lr_scheduler

import emanest
from emanest import NAG, EMANesterov, ScheduleFree, Wrap
from helpers import bits, content, differing, parameters, run, set_gradients
from optimizer_database import DATABASE, LOOKAHEADS, SCHEDULERS, Problem, each_entry, each_lookahead

LR = 0.001
# what a scheduler may write into a group
NUMBERS = ("lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas", "swa_lr")

# every optimizer and every lookahead; in the slow tests each with each
PAIRS = [
    pytest.param(
        entry,
        lookahead,
        id=f"{entry}-{name}",
        marks=[]
        if entry.name in ("AdamW", "Wrap two") or name in ("no lookahead", "ema")
        else [pytest.mark.slow],
    )
    for entry in DATABASE.values()
    for name, lookahead in LOOKAHEADS.items()
]
each_scheduler = pytest.mark.parametrize("name", SCHEDULERS)


def scheduler_of(name, optimizer, entry, lookahead):
    if name != "one cycle":
        return SCHEDULERS[name](optimizer)
    # Schedule-Free and NAG on SGD have no momentum to cycle; two optimizers have two words for it
    brought = NAG if entry.reference is torch.optim.SGD else ()
    fixed = isinstance(lookahead, (ScheduleFree, brought)) or entry.name == "Wrap two"
    return SCHEDULERS[name](optimizer, cycle_momentum=not fixed)


def advance(scheduler, t):
    measured = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    scheduler.step(*[1.0 + t] * measured)


def made(entry, lookahead, lr=LR):
    problem = Problem()
    return problem, entry.make(problem.params, lookahead, lr=lr)


@pytest.mark.parametrize(("entry", "lookahead"), PAIRS)
@each_scheduler
def test_a_schedule_is_numbers_set_by_hand(entry, lookahead, name):
    """Bit for bit; they are those that an optimizer of torch gets from the same scheduler."""
    problem, optimizer = made(entry, lookahead)
    twin_problem, twin = made(entry, lookahead)
    # without a lookahead, and with the momentum that this one leaves
    still = entry.still if isinstance(lookahead, ScheduleFree) else {}
    clock = entry.make(Problem().params, None, lr=LR, **still)
    schedulers = [scheduler_of(name, o, entry, lookahead) for o in (optimizer, clock)]
    first, rates = problem.loss().item(), set()
    for t in range(6):
        for group, numbers in zip(twin.param_groups, clock.param_groups, strict=True):
            group.update({k: numbers[k] for k in NUMBERS if k in numbers})
        rates.add(optimizer.param_groups[0]["lr"])
        for each, stepped in ((problem, optimizer), (twin_problem, twin)):
            each.backward()
            stepped.step()
        assert [bits(p) for p in problem.params] == [bits(p) for p in twin_problem.params]
        clock.step()
        for scheduler in schedulers:
            advance(scheduler, t)
    assert len(rates) > 1
    # and the run went in the right direction
    assert problem.loss().item() < first
    with optimizer.at_iterate():
        assert problem.loss().item() < first


@pytest.mark.parametrize("entry", [e for e in DATABASE.values() if not e.wraps], ids=repr)
@each_lookahead
@pytest.mark.parametrize("name", ["step", "one cycle", "plateau"])
def test_a_tensor_lr_is_its_value_under_a_schedule(entry, lookahead, name):
    """Which is written in place: schedulers and groups keep the tensor that they know."""
    problem, optimizer = made(entry, lookahead, torch.tensor(LR, dtype=torch.float64))
    twin_problem, twin = made(entry, lookahead)
    lr = optimizer.param_groups[0]["lr"]
    schedulers = [scheduler_of(name, o, entry, lookahead) for o in (optimizer, twin)]
    for t in range(5):
        for each, stepped in ((problem, optimizer), (twin_problem, twin)):
            set_gradients(each.params, t)
            stepped.step()
        assert optimizer.param_groups[0]["lr"] is lr
        for scheduler in schedulers:
            advance(scheduler, t)
        twin.param_groups[0]["lr"] = lr.item()
    assert [bits(p) for p in problem.params] == [bits(p) for p in twin_problem.params]


@each_entry
@pytest.mark.parametrize("name", ["no lookahead", "ema"])
def test_a_schedule_that_ends_at_zero_ends_the_run(entry, name):
    """Rates are read at every step: x stays where it is, bit for bit, whatever the gradients."""
    problem, optimizer = made(entry, LOOKAHEADS[name])
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: float(t < 2))
    points = []
    for t in range(7):
        set_gradients(problem.params, t)
        optimizer.step()
        scheduler.step()
        with optimizer.at_iterate():
            points.append([bits(p) for p in problem.params])
    # the first step at a rate of 0 is the third; y was ahead once more
    moved = [a != b for a, b in itertools.pairwise(points)]
    assert moved == [True, name == "ema", *[False] * 4]


# ---- a momentum that a scheduler switches on ----------------------------------------------------

BRINGING = {"nag": NAG(0.9), "schedule free": ScheduleFree(0.9)}
STILL = {
    "SGD": lambda look: emanest.SGD(parameters(), lr=LR, lookahead=look),
    "AdamW": lambda look: emanest.AdamW(parameters(), betas=(0.0, 0.9), lookahead=look),
    "Muon": lambda look: emanest.Muon(
        parameters(shapes=[(3, 5)]), momentum=0.0, nesterov=False, lookahead=look
    ),
    "Wrap": lambda look: Wrap(torch.optim.SGD(parameters(), lr=LR), look),
    "Wrap AdamW": lambda look: Wrap(torch.optim.AdamW(parameters(), betas=(0.0, 0.9)), look),
    "Wrap two": lambda look: Wrap([torch.optim.SGD([p], lr=LR) for p in parameters()], look),
}
CYCLIC = {
    "one cycle": lambda o, **options: lr_scheduler.OneCycleLR(o, LR, total_steps=9, **options),
    "cyclic": lambda o, **options: lr_scheduler.CyclicLR(o, LR, 2 * LR, **options),
}
each_cyclic = pytest.mark.parametrize("cyclic", CYCLIC.values(), ids=CYCLIC)


@each_cyclic
@pytest.mark.parametrize("make", STILL.values(), ids=STILL)
@pytest.mark.parametrize("method", BRINGING.values(), ids=BRINGING)
def test_two_momenta_are_an_error_where_the_base_was_to_have_none(method, make, cyclic):
    """It changes nothing, and comes in a copy and after a load, too."""
    optimizer = make(method)
    cyclic(optimizer, cycle_momentum=False)
    run(optimizer, range(2))
    saved = optimizer.state_dict()
    cyclic(optimizer)
    refused = pytest.raises(ValueError, match=r"=0\.9.* cycle_momentum=False")
    for each in (optimizer, copy.deepcopy(optimizer)):
        before = content(each)
        with refused:
            run(each, [2])
        assert differing(content(each), before) == []
    optimizer.load_state_dict(saved)
    run(optimizer, [2])
    cyclic(optimizer)
    with refused:
        run(optimizer, [3])


@each_cyclic
def test_a_momentum_that_is_cycled_before_a_wrap_is_no_momentum_of_the_base(cyclic):
    inner = torch.optim.SGD(parameters(), lr=LR)
    cyclic(inner)
    with pytest.raises(ValueError, match="NAG brings the momentum of a base that was made without"):
        Wrap(inner, NAG(0.9))
    Wrap(inner, EMANesterov())


@each_cyclic
@pytest.mark.parametrize(
    "make",
    [
        lambda p: emanest.SGD(p, lr=LR, momentum=0.9, lookahead=NAG(0.5)),
        lambda p: emanest.AdamW(p, lookahead=NAG(0.5)),
        lambda p: Wrap(torch.optim.SGD(p, lr=LR, momentum=0.9), NAG(0.5)),
        lambda p: emanest.SGD(p, lr=LR, lookahead=EMANesterov()),
    ],
    ids=["SGD", "AdamW", "Wrap", "another method"],
)
def test_a_momentum_of_the_base_may_be_cycled(make, cyclic):
    """A group that is added later has one, too."""
    first, *others = parameters()
    optimizer = make([first])
    optimizer.add_param_group({"params": others})
    scheduler = cyclic(optimizer)
    for t in range(3):
        run(optimizer, [t])
        scheduler.step()


def test_a_checkpoint_without_the_note_says_by_its_options_how_the_base_was_made():
    """One of an older version."""
    source = emanest.SGD(parameters(), lr=LR, momentum=0.9, lookahead=NAG(0.9))
    run(source, range(2))
    saved = source.state_dict()
    del saved["param_groups"][0]["lookahead_on_momentum"]
    optimizer = emanest.SGD(parameters(), lr=LR, lookahead=NAG(0.9))
    optimizer.load_state_dict(saved)
    run(optimizer, [2])
    assert optimizer.param_groups[0]["lookahead_on_momentum"]


def test_a_base_without_momentum_takes_none_from_a_checkpoint():
    """Nor would the run be that of the checkpoint, which had no second one."""
    source = torch.optim.SGD(parameters(), lr=LR, momentum=0.9)
    run(source, range(2))
    optimizer = emanest.SGD(parameters(), lr=LR, lookahead=NAG(0.9))
    before = content(optimizer)
    with pytest.raises(ValueError, match=r"made without one, and now has momentum=0\.9"):
        optimizer.load_state_dict(source.state_dict())
    assert differing(content(optimizer), before) == []
