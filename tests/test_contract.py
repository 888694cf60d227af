# SPDX-License-Identifier: MIT
"""The shape of an optimizer: signatures, attributes, late groups, what torch refuses."""

import inspect

import pytest
import torch

import emanest
from emanest.values import check_params
from helpers import METHODS, bits, params_of, set_gradients
from optimizer_database import (
    DATABASE,
    Problem,
    each_entry,
    each_lookahead,
    train,
)

# ---- signatures and attributes ------------------------------------------------------------------


def signature(function):
    return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]


def defaults(function):
    return [p.default for p in inspect.signature(function).parameters.values()]


PUBLIC = [
    name
    for name, member in vars(torch.optim.Optimizer).items()
    if inspect.isfunction(member) and not name.startswith("_")
]


@each_entry
@pytest.mark.parametrize("method", PUBLIC)
def test_methods_have_torchs_arguments_and_defaults(entry, method):
    found, base, namesake = (
        getattr(cls, method) for cls in (entry.optim_cls, torch.optim.Optimizer, entry.reference)
    )
    assert signature(found) == signature(base)
    assert defaults(found) == defaults(namesake)


@each_entry
def test_every_attribute_of_a_torch_optimizer_is_there(entry):
    """Those that its constructor sets, those of its class, and those of a fresh copy."""
    torchs, optimizer = entry.reference(Problem().params), entry.make(Problem().params, None)
    for each in (torchs, optimizer):
        each.zero_grad()
    # what only torch's own Adam looks at
    assert set(dir(torchs)) - set(dir(optimizer)) <= {"_init_group"}
    for name, value in vars(torchs).items():
        assert type(getattr(optimizer, name)) is type(value) or name in ("state", "param_groups")
    assert isinstance(optimizer.param_groups, list)
    assert (
        optimizer._zero_grad_profile_name
        == f"Optimizer.zero_grad#{type(optimizer).__name__}.zero_grad"
    )
    assert type(optimizer).step.hooked


def test_every_option_of_torch_is_an_option_here():
    # AdamW in another basis has no largest second moment to keep
    without = {emanest.SOAP: {"amsgrad"}}
    for entry in DATABASE.values():
        if not entry.wraps:
            theirs = entry.reference(Problem().params).defaults
            ours = entry.make(Problem().params, None).defaults
            # says that torch's AdamW is not its Adam
            lacking = {"decoupled_weight_decay", *without.get(entry.optim_cls, ())}
            assert theirs.keys() - ours.keys() <= lacking


# ---- groups that come late ----------------------------------------------------------------------


@each_entry
@each_lookahead
def test_a_group_may_come_at_any_time(entry, lookahead):
    """Before the first step, after some, in eval mode; frozen before: it starts where it is."""
    for steps in (0, 3):
        for mode in ("train", "eval"):
            first, late = Problem(), Problem()
            late.bias.requires_grad_(False)
            optimizer = entry.make(first.params, lookahead)
            train(first, optimizer, steps)
            known = [bits(p) for p in first.params]
            getattr(optimizer, mode)()
            late.bias.requires_grad_(True)
            # a Wrap around several leaves it to the one that shall step it
            owner = getattr(optimizer, "optimizers", [optimizer])[-1]
            owner.add_param_group({"params": [late.bias], "lr": 0.01})
            assert [g["train_mode"] for g in optimizer.param_groups] == [mode == "train"] * len(
                optimizer.param_groups
            )
            optimizer.train()
            assert [bits(p) for p in first.params] == known
            start = bits(late.bias)
            assert start == bits(Problem().bias)
            for t in range(3):
                set_gradients(params_of(optimizer), t)
                optimizer.step()
            assert bits(late.bias) != start
            assert set(optimizer.state) == {*first.params, late.bias}
            assert optimizer.state_dict()["param_groups"][-1]["lr"] == 0.01


@each_entry
@each_lookahead
def test_a_parameter_may_be_frozen_and_thawed(entry, lookahead):
    """While it is frozen it has no gradient: the others do not notice, bit for bit."""
    problem, other = Problem(), Problem()
    optimizer, twin = entry.make(problem.params, lookahead), entry.make(other.params, lookahead)
    for t in range(9):
        problem.bias.requires_grad_(t not in (3, 4, 5))
        for each in (problem, other):
            set_gradients(each.params, t)
        if not problem.bias.requires_grad:
            problem.bias.grad = None
        before = bits(problem.bias)
        optimizer.step()
        twin.step()
        if t >= entry.waits:
            assert (bits(problem.bias) == before) == (not problem.bias.requires_grad)
        assert bits(problem.weight) == bits(other.weight)


# ---- what torch refuses -------------------------------------------------------------------------

# torch's row -> why it is none here, or the other words for it
TAKEN = {
    "lr as Tensor doesn't work with foreach & not capturable": "the step is one pass anyway",
}
WORDS = {
    "betas must be either both floats or both Tensors": (
        TypeError,
        r"betas\[\d\] must be a number",
    ),
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": (
        TypeError,
        r"betas\[0\] must be a number",
    ),
    "only support 2D parameters": (ValueError, "split_params"),
    "only support `original` and `match_rms_adamw`": (ValueError, "adjust_lr_fn must be one of"),
    "unsupported adjust_lr_fn": (ValueError, "adjust_lr_fn must be one of"),
    "does not support complex parameters": (ValueError, "only real matrices"),
}
# torch only warns of it, and then updates twice
WRAPPED = {
    "a param group cannot have duplicate parameters": (ValueError, "would be updated twice"),
}
# kernels are welcome, a vector is not
INSTEAD = {"only support 2D parameters": [torch.rand(5)]}

ERRORS = [
    pytest.param(entry, row, id=f"{entry}: {row.optimizer_error_input.desc}")
    for entry in DATABASE.values()
    for row in entry.optim_error_inputs_func("cpu", torch.float32)
    if entry.name != "Wrap two"
]


# where a Wrap refuses, torch has warned before
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize(("entry", "row"), ERRORS)
def test_what_torch_refuses_is_refused(entry, row):
    """In torch's words where it is the same thing; the words of a Wrap are those of torch."""
    desc, kwargs = row.optimizer_error_input.desc, row.optimizer_error_input.kwargs
    params = row.optimizer_error_input.params
    params = Problem().params if params is None else params
    error, words = row.error_type, row.error_regex
    if entry.wraps:
        error, words = WRAPPED.get(desc, (error, words))

        def construct():
            inner = entry.reference(params, **kwargs)
            return emanest.Wrap(inner, METHODS["ema"])

    else:
        params = INSTEAD.get(desc, params)
        error, words = WORDS.get(desc, (error, words))

        def construct():
            return entry.optim_cls(params, lookahead=METHODS["ema"], **kwargs)

    if desc in TAKEN and not entry.wraps:
        assert construct().param_groups
    elif issubclass(error, Warning):
        with pytest.warns(error, match=words):
            construct()
    else:
        with pytest.raises(error, match=words):
            construct()


def test_a_set_of_parameters_is_handed_on_as_one():
    """So that torch, which does so from 2.15 on, can warn of its order."""
    params = {torch.nn.Parameter(torch.zeros(2))}
    assert check_params(params) is params
