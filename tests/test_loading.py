# SPDX-License-Identifier: MIT
"""What a load takes over of a checkpoint's groups: entries, names of parameters, methods."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim import lr_scheduler

import emanest
import helpers
from emanest import SNOO, EMANesterov
from helpers import METHODS, content, differing, params_of, run, values
from optimizer_database import DATABASE, each_entry

LR = 0.01
EMA = METHODS["ema"]
SHAPES = [(3, 4), (4, 2)]

BASES = {"adamw": helpers.adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}
each_base = pytest.mark.parametrize("base", BASES)
few_bases = pytest.mark.parametrize("base", ["adamw", "wrap"])


def muon_and_adamw(params, lookahead, lr):
    groups = [{"params": params[:1]}, {"params": params[1:], "base": "adamw", "lr": 2 * lr}]
    return emanest.Muon(groups, lr, lookahead=lookahead)


MAKERS = {**{e.name: e.make for e in DATABASE.values()}, "Muon and AdamW": muon_and_adamw}


@torch.no_grad()
def loaded(optimizer, saved, at):
    """An optimizer that has loaded a checkpoint and the parameters that belong to it."""
    optimizer.load_state_dict(saved)
    for p, value in zip(params_of(optimizer), at, strict=True):
        p.copy_(value)
    return optimizer


def range_test(optimizer):
    """Grow the learning rate from next to nothing, and leave the scheduler's entries behind."""
    for group in optimizer.param_groups:
        group["lr"] = 1e-7
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 10.0**t)
    run(optimizer, range(8), each=scheduler.step)
    assert {group["initial_lr"] for group in optimizer.param_groups} == {1e-7}


# ---- entries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("lookahead", [None, EMA], ids=["none", "ema"])
def test_after_a_range_test_a_checkpoint_goes_on_as_in_a_new_optimizer(make, lookahead):
    """A scheduler made then starts from the rates of the checkpoint, as with torch's optimizers."""
    optimizers = [make(helpers.parameters(shapes=SHAPES), lookahead, lr=LR) for _ in range(2)]
    used, new = optimizers
    run(used, range(3))
    saved, at = copy.deepcopy(used.state_dict()), values(used)
    range_test(used)
    rates = [group["lr"] for group in saved["param_groups"]]
    for optimizer in optimizers:
        loaded(optimizer, saved, at)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 20)
        assert scheduler.base_lrs == rates
        run(optimizer, range(3, 6), each=scheduler.step)
    assert differing(content(used), content(new)) == []
    assert not all(map(torch.equal, values(used), at))


# optimizer -> torch's that wrote the checkpoint
WRITERS = {name: DATABASE[name] for name in ("AdamW", "SGD", "Muon", "Wrap AdamW", "Wrap SGD")}


@pytest.mark.parametrize("entry", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("method", ["ema", "lookahead"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.filterwarnings("ignore:emanest. the checkpoint has no lookahead state")
def test_a_checkpoint_of_torch_starts_the_lookahead_in_a_used_optimizer_as_in_a_new_one(
    entry, method, mode
):
    """Clock, mode and largest learning rate too."""
    theirs = entry.reference(helpers.parameters(shapes=SHAPES), lr=LR)
    run(theirs, range(3))
    used, new = (
        entry.make(helpers.parameters(shapes=SHAPES), METHODS[method], lr=LR) for _ in range(2)
    )
    range_test(used)
    getattr(used, mode)()
    for optimizer in (used, new):
        loaded(optimizer, theirs.state_dict(), values(theirs))
        run(optimizer, range(3, 9))
    assert differing(content(used), content(new)) == []


@each_entry
def test_entries_that_no_option_has_go_as_in_torch(entry):
    optimizer = entry.make(helpers.parameters(shapes=SHAPES), EMA, lr=LR)
    theirs = entry.reference(helpers.parameters(shapes=SHAPES), lr=LR)
    for each in (optimizer, theirs):
        run(each, range(2))
        saved = copy.deepcopy(each.state_dict())
        for group in each.param_groups:
            group |= {"note": "mine", 3: [1], "lookahead_note": 1, "initial_lr": 1.0, "swa_lr": 2.0}
        each.load_state_dict(saved)
    kept = [
        {"note", 3, "lookahead_note", "initial_lr", "swa_lr"} & g.keys()
        for g in theirs.param_groups
    ]
    assert kept == [set()]
    for group in optimizer.param_groups:
        assert not {"note", 3, "lookahead_note", "initial_lr", "swa_lr"} & group.keys()


@few_bases
def test_settings_and_clock_that_a_checkpoint_lacks_stay_as_constructed(base):
    method = EMANesterov(0.3, 0.9, warmup=2, rest=9, init="debias")
    source, target = (BASES[base](helpers.parameters(), method) for _ in range(2))
    run(source, range(3))
    older = copy.deepcopy(source.state_dict())
    for group in older["param_groups"]:
        for key in ("lookahead_init", "lookahead_warmup", "lookahead_rest", "train_mode"):
            del group[key]
    loaded(target, older, values(source))
    assert differing(content(target), content(source)) == []


@few_bases
def test_an_entry_of_the_user_that_is_a_callable_comes_back(base):
    source, target = (BASES[base](helpers.parameters(), EMA) for _ in range(2))
    for optimizer in (source, target):
        optimizer.param_groups[0]["rate_at"] = len
    target.load_state_dict(source.state_dict())
    assert target.param_groups[0]["rate_at"] is len


# ---- names --------------------------------------------------------------------------------------


def inside():
    """A model one of whose modules is compiled, inside another wrapper."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[1] = torch.compile(checkpoint_wrapper(model[1]))
    return nn.DataParallel(model)


WRAPPED = {
    "plain": lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)),
    "compiled": lambda: torch.compile(WRAPPED["plain"]()),
    "parallel": lambda: nn.DataParallel(WRAPPED["plain"]()),
    "compiled, parallel": lambda: nn.DataParallel(WRAPPED["compiled"]()),
    "checkpointed": lambda: checkpoint_wrapper(WRAPPED["plain"]()),
    "inside": inside,
}


@few_bases
@pytest.mark.parametrize("source", WRAPPED)
def test_names_are_the_same_without_the_wrappers_of_torch(base, source):
    """And stay those of this program's model."""
    first = BASES[base](WRAPPED[source]().named_parameters(), EMA)
    run(first, range(2))
    for wrapped in WRAPPED.values():
        second = BASES[base](wrapped().named_parameters(), EMA)
        names = second.param_groups[0]["param_names"]
        loaded(second, first.state_dict(), values(first))
        assert (
            second.param_groups[0]["param_names"]
            == names
            == [n for n, _ in wrapped().named_parameters()]
        )
        paths = {path.split("/")[3] for path in differing(content(first), content(second))}
        assert paths <= {"param_names"}


FSDP1 = "_fsdp_wrapped_module."
SEVEN = [f"layer{i}.weight" for i in range(7)]
SHORT = [name.removeprefix("layer") for name in SEVEN]

# names in the checkpoint, in the optimizer -> what the error says of them, or None
NAMES = {
    "FSDP1": ([f"{FSDP1}a.{FSDP1}w", "b"], ["module.a.w", "module.b"], None),
    "same": (["a", "b"], ["a", "b"], None),
    "places": (
        ["a", "b"],
        ["b", "a"],
        " in their order: saved 'a', here 'b'; saved 'b', here 'a'; g",
    ),
    "places, wrapped": (
        ["module.a", "b"],
        ["b", "a"],
        " in their order: saved 'module.a', here 'b'",
    ),
    "one": (["a", "b"], ["a", "c"], ": saved 'b', here 'c'; if only names .* remove 'param_names'"),
    "a name of its own": (["a.module"], ["a"], ": saved 'a.module', here 'a'; if"),
    "many": (SEVEN, SHORT, ": saved 'layer0.weight', .*, here '4.weight'; and 2 more; if"),
    "no strings": ([1, None], ["a", "b"], ": saved 1, here 'a'; saved None, here 'b'; if"),
}


@few_bases
@pytest.mark.parametrize(("there", "here", "match"), NAMES.values(), ids=NAMES)
def test_names_that_differ_are_listed(base, there, here, match):
    source, target, untouched = (
        BASES[base](zip(names, helpers.parameters(shapes=[(2,)] * len(names)), strict=True), EMA)
        for names in (SEVEN[: len(there)], here, here)
    )
    for optimizer, steps in ((source, 3), (target, 2), (untouched, 2)):
        run(optimizer, range(steps))
    saved = copy.deepcopy(source.state_dict())
    saved["param_groups"][0]["param_names"] = there
    if match is None:
        target.load_state_dict(saved)
        assert target.param_groups[0]["param_names"] == list(here)
        return
    with pytest.raises(ValueError, match=f"names of group 0 differ from the checkpoint's{match}"):
        target.load_state_dict(saved)
    assert differing(content(target), content(untouched)) == []
    for group in saved["param_groups"]:
        del group["param_names"]
    # the way out that the message names
    target.load_state_dict(saved)


# ---- methods ------------------------------------------------------------------------------------


def grouped(base, *methods):
    params = helpers.parameters()
    groups = [{"params": [p], "lookahead": m} for p, m in zip(params, methods, strict=True)]
    return BASES[base](groups, EMA)


def load_and_catch(optimizer, saved):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(saved)
    assert all(w.filename == __file__ for w in caught), "a warning is of the user's line"
    return [str(w.message) for w in caught]


SNOO3 = METHODS["snoo"]
# methods of the checkpoint's groups, of the optimizer's -> what is said
BROUGHT = {
    "another": ([SNOO3] * 3, [EMA] * 3, "SNOO in place of EMANesterov in groups [0, 1, 2];"),
    "one to none": ([EMA] * 3, [None] * 3, "EMANesterov in place of none in groups [0, 1, 2];"),
    "several": (
        [SNOO3, None, EMA],
        [EMA, None, None],
        "SNOO in place of EMANesterov in groups [0]; EMANesterov in place of none in groups [2];",
    ),
    "other settings": ([SNOO(5, 0.1)] * 3, [SNOO3] * 3, None),
    "none": ([None] * 3, [None] * 3, None),
}


@each_base
@pytest.mark.parametrize(("there", "here", "said"), BROUGHT.values(), ids=BROUGHT)
def test_a_checkpoint_that_brings_another_method_says_so_once(base, there, here, said):
    """And at the first load only: then it is this optimizer's."""
    source, target = grouped(base, *there), grouped(base, *here)
    run(source, range(4))
    messages = load_and_catch(target, source.state_dict())
    assert len(messages) == (said is not None)
    assert all(said in message for message in messages)
    assert load_and_catch(target, source.state_dict()) == []
    loaded(target, source.state_dict(), values(source))
    for optimizer in (source, target):
        run(optimizer, range(4, 8))
    assert differing(content(source), content(target)) == []


@each_base
def test_a_method_that_is_told_of_as_an_error_is_not_loaded(base):
    source, target = grouped(base, *[SNOO3] * 3), grouped(base, *[EMA] * 3)
    for optimizer, steps in ((source, 4), (target, 2)):
        run(optimizer, range(steps))
    before = content(target)
    with pytest.raises(UserWarning, match="another lookahead"):
        target.load_state_dict(source.state_dict())
    assert differing(content(target), before) == []


@each_base
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("method", ["ema", "gpa", "snoo"])
def test_the_method_of_the_optimizer_is_kept_in_the_way_that_is_said(base, mode, method):
    """It starts afresh from the state of the base, whatever an earlier one has left of its own."""
    source = grouped(base, *[SNOO3] * 3)
    run(source, range(4))
    getattr(source, mode)()
    saved = copy.deepcopy(source.state_dict())
    for group in saved["param_groups"]:
        group["lookahead"] = None
    bare = copy.deepcopy(saved)
    for entries in bare["state"].values():
        for key in ("x", "outer_momentum_buffer", "y"):
            entries.pop(f"lookahead_{key}" if base == "wrap" else key, None)
        entries["lookahead"] = 0.0
    optimizers = [
        BASES[base]([{"params": [p]} for p in helpers.parameters()], METHODS[method])
        for _ in range(2)
    ]
    for optimizer, state_dict in zip(optimizers, (saved, bare), strict=True):
        messages = load_and_catch(optimizer, state_dict)
        assert ["starts afresh" in message for message in messages] == [True]
        with torch.no_grad():
            for p, value in zip(params_of(optimizer), values(source), strict=True):
                p.copy_(value)
        optimizer.train()
        assert all(map(torch.equal, values(optimizer), values(source)))
        run(optimizer, range(4, 9))
    assert differing(*map(content, optimizers)) == []
    assert {g["lookahead"] for g in optimizers[0].param_groups} == {METHODS[method].name}
