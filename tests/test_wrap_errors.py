# SPDX-License-Identifier: MIT
"""What cannot be wrapped says why, is not touched, and can be wrapped once it is mended."""

import copy

import pytest
import torch
from torch import nn, optim

import helpers
from emanest import EMANesterov, Lookahead, ScheduleFree, Wrap
from helpers import METHODS, content, differing, params_of, run

# not on every machine with a GPU, where the tests marked so run alone
other = pytest.importorskip("pytorch_optimizer")
schedulefree = pytest.importorskip("schedulefree")

LR = 0.05
EMA = METHODS["ema"]


def parameters():
    return helpers.parameters(shapes=[(4, 3), (3,)])


def sgd(params=None):
    return optim.SGD(params or parameters(), lr=LR, momentum=0.9)


def twice():
    inner = sgd()
    return [inner, inner]


def sharing():
    params = parameters()
    return [sgd(params), optim.AdamW(params[1:])]


def wrapped():
    inner = sgd()
    Wrap(inner, EMA)
    return inner


NOT_ONE = "optimizer must be a torch.optim.Optimizer or a list of them, got"
CLOSURE = "cannot be wrapped: it evaluates the loss itself"
GRADIENTS = "cannot be wrapped: it takes two gradients per step"
MODES = "cannot be wrapped: it has train and eval modes of its own"

# what is to be wrapped -> error
INNERS = {
    "None": (lambda: None, TypeError, f"{NOT_ONE} NoneType"),
    "a number": (lambda: 3, TypeError, f"{NOT_ONE} int"),
    "a module": (lambda: nn.Linear(2, 2), TypeError, f"{NOT_ONE} Linear"),
    "a class": (lambda: optim.SGD, TypeError, f"{NOT_ONE} type"),
    "a generator": (lambda: iter([sgd()]), TypeError, f"{NOT_ONE} list_iterator"),
    "a scheduler": (lambda: optim.lr_scheduler.StepLR(sgd(), 1), TypeError, f"{NOT_ONE} StepLR"),
    "parameters": (parameters, TypeError, f"{NOT_ONE} Parameter"),
    "no optimizers": (list, ValueError, "optimizer must be .*, got an empty list"),
    "one of two": (lambda: [sgd(), None], TypeError, f"{NOT_ONE} NoneType"),
    "the same twice": (twice, ValueError, "parameters belong to more than one of the optimizers"),
    "a parameter in two": (sharing, ValueError, "parameters belong to more than one"),
    "second wrapped": (lambda: [sgd(), wrapped()], ValueError, "this SGD was in a Wrap, or is"),
    "LBFGS, other": (lambda: other.LBFGS(parameters()), TypeError, f"LBFGS {CLOSURE}"),
    "FriendlySAM": (lambda: other.FriendlySAM(parameters(), optim.SGD), TypeError, GRADIENTS),
    "LookSAM": (lambda: other.LookSAM(parameters(), optim.SGD), TypeError, GRADIENTS),
    "BSAM": (lambda: other.BSAM(parameters(), num_data=9), TypeError, f"BSAM {GRADIENTS}"),
    "schedule-free, other": (lambda: other.ScheduleFreeSGD(parameters()), TypeError, MODES),
    "SPlus": (lambda: other.SPlus(parameters()), TypeError, f"SPlus {MODES}"),
}


def written(inner):
    """The groups and state of what was to be wrapped, whatever it is."""
    each = inner if isinstance(inner, list) else [inner]
    found = [o for o in each if isinstance(o, optim.Optimizer)]
    return copy.deepcopy([([*o.param_groups], dict(o.state)) for o in found])


@pytest.mark.parametrize(("make", "error", "match"), INNERS.values(), ids=INNERS)
def test_what_cannot_be_wrapped_is_refused_and_untouched(make, error, match):
    inner = make()
    before = written(inner)
    with pytest.raises(error, match=match):
        Wrap(inner, EMA)
    assert str(written(inner)) == str(before)


# lookahead, options of the inner group -> error, and what makes it right
GROUPS = {
    "a name": ("EMANesterov", {}, ValueError, "lookahead must be one of .*mean 'ema_nesterov'"),
    "a class": (EMANesterov, {}, TypeError, r"the class: write emanest.EMANesterov\(\)"),
    "a dict": ({"stepsize": 0.5}, {}, TypeError, 'a mapping of its "name" and settings'),
    "stepsize": (EMA, {"lookahead_stepsize": 1.0}, ValueError, "stepsize must be in .*got 1.0"),
    "decay": (EMA, {"lookahead_decay": "x"}, TypeError, "decay must be a number, got 'x'"),
    "window": (EMA, {"lookahead_rest": 0}, ValueError, "rest must be above warmup"),
    "own name": (EMA, {"lookahead": "ema"}, ValueError, "lookahead must be one of .*'ema'"),
    "own junk": (EMA, {"lookahead": 3}, TypeError, "lookahead must be a method .*got 3"),
    "momentum": (ScheduleFree(), {}, ValueError, "momentum=0, got momentum=0.9"),
    "own momentum": (EMA, {"lookahead": ScheduleFree()}, ValueError, "got momentum=0.9"),
    "capturable": (Lookahead(3), {"capturable": True}, ValueError, "capturable.*Lookahead"),
}


@pytest.mark.parametrize(("method", "options", "error", "match"), GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("position", [0, 1])
def test_a_bad_lookahead_is_refused_at_once_and_can_be_mended(
    method, options, error, match, position
):
    groups = [{"params": [p]} for p in parameters()]
    groups[position] |= options
    inner = sgd(groups)
    before = written(inner)
    with pytest.raises(error, match=match):
        Wrap(inner, method)
    assert str(written(inner)) == str(before)
    for key in options:
        del inner.param_groups[position][key]
    optimizer, plain = Wrap(inner, EMA), Wrap(sgd([{"params": [p]} for p in parameters()]), EMA)
    run(optimizer, range(3))
    run(plain, range(3))
    assert differing(content(optimizer), content(plain)) == []


def test_the_method_is_not_optional():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'lookahead'"):
        Wrap(sgd())


def test_keys_of_others_are_no_near_misses():
    """Prodigy has ``beta3`` where Adam has ``betas``, and OneCycleLR adds ``max_momentum``."""
    first, second, third = helpers.parameters(shapes=[(4,), (3,), (2,)])
    inner = [optim.AdamW([first]), other.Prodigy([second]), sgd([third])]
    for each in inner[::2]:
        optim.lr_scheduler.OneCycleLR(each, 0.1, total_steps=9)
    optimizer = Wrap(inner, EMA)  # a warning is an error here
    assert {"betas", "beta3", "max_momentum"} <= {k for g in optimizer.param_groups for k in g}


def test_with_several_optimizers_a_group_has_no_obvious_owner():
    first, second = parameters()
    optimizer = Wrap([sgd([first]), sgd([second])], EMA)
    before = content(optimizer)
    with pytest.raises(
        ValueError, match="Wrap holds 2 optimizers: call add_param_group on the one"
    ):
        optimizer.add_param_group({"params": helpers.parameters(shapes=[(2,)])})
    assert differing(content(optimizer), before) == []


class Signs(optim.Optimizer):
    """An optimizer without a learning rate."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=1e-3)


def test_a_group_without_lr_is_refused_until_it_has_one():
    """AliG of pytorch_optimizer is such a one."""
    inner = Signs(parameters())
    before = written(inner)
    with pytest.raises(ValueError, match=r"group 0 of Signs has no 'lr'.* give its groups 'lr': 1"):
        Wrap(inner, EMA)
    assert str(written(inner)) == str(before)
    inner.param_groups[0]["lr"] = 1.0
    optimizer = Wrap(inner, EMA)
    run(optimizer, range(3))
    assert [optimizer.state[p]["lookahead"].item() for p in params_of(optimizer)] == [0.5, 0.5]
    before = content(optimizer)
    late = helpers.parameters(shapes=[(2,)])
    with pytest.raises(ValueError, match="group 1 of Signs has no 'lr'"):
        optimizer.add_param_group({"params": late})
    assert differing(content(optimizer), before) == []
    optimizer.add_param_group({"params": late, "lr": 0.5})
    run(optimizer, range(3, 5))


BAD_GROUPS = {
    "a negative lr": ({"lr": -1}, ValueError, "Invalid learning rate: -1.0 .lr of group 1"),
    "lr NaN": ({"lr": float("nan")}, ValueError, "Invalid learning rate: nan"),
    "a string": ({"lr": "fast"}, TypeError, "lr of group 1 must be a float"),
}


@pytest.mark.parametrize(("entries", "error", "match"), BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_a_bad_late_group_is_refused_and_nothing_is_added(entries, error, match):
    optimizer = Wrap(sgd(), EMA)
    run(optimizer, range(2))
    before = content(optimizer)
    with pytest.raises(error, match=match):
        optimizer.add_param_group({"params": helpers.parameters(shapes=[(2,)]), **entries})
    assert differing(content(optimizer), before) == []
    run(optimizer, [2])


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_repeated_parameter_of_a_late_group_counts_once():
    optimizer = Wrap(sgd(), EMA)
    (late,) = helpers.parameters(shapes=[(2,)])
    optimizer.add_param_group({"params": [late, late]})
    run(optimizer, range(2))
    assert optimizer.param_groups[1]["params"] == [late]


def test_a_near_miss_in_a_late_group_is_told():
    optimizer = Wrap(sgd(), EMA)
    with pytest.warns(UserWarning, match="did you mean 'lookahead_stepsize'"):
        optimizer.add_param_group({"params": parameters(), "lookahead_stepsze": 0.1})


def test_a_wrap_that_is_gone_and_a_copy_are_told_from_a_live_one():
    inner = sgd()
    optimizer = Wrap(inner, EMA)
    copied = copy.deepcopy(inner)
    with pytest.raises(ValueError, match="this SGD is wrapped already: step its Wrap"):
        Wrap(inner, EMA)
    del optimizer
    for each in (inner, copied):
        with pytest.raises(ValueError, match="this SGD was in a Wrap, or is the copy of one"):
            Wrap(each, EMA)
