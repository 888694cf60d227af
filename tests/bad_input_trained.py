# SPDX-License-Identifier: MIT
"""Rows 48 to 53 and 64 to 70 of the table of bad inputs: edits, modes, what surrounds a step."""

import copy
import warnings

import pytest
import torch
from torch import nn

import emanest
from bad_input import (
    ELEMENTWISE,
    EMA,
    Row,
    assert_same,
    goes_on,
    make,
    matrices,
    not_stepped,
    ready,
    refused,
)
from emanest import Lookahead, Wrap
from helpers import (
    LR,
    METHODS,
    bits,
    content,
    differing,
    params_of,
    run,
    same,
    ulp,
    values,
)

# ---- edits (test_edits has each method against the textbook) ------------------------------------


def as_model(optimizer):
    return nn.ParameterList(params_of(optimizer))


def best(optimizer):
    return {n: torch.full_like(p, 3.0) for n, p in as_model(optimizer).named_parameters()}


def loaded_while_training(name):
    """Methods that keep positions restart from the new weights, and say so once."""
    optimizer = ready(name, lookahead=METHODS["lookahead"])
    for t in (2, 3):
        as_model(optimizer).load_state_dict(best(optimizer))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(optimizer, [t])
        assert len(caught) == (t == 2)
        assert all("Lookahead restarts from their new values" in str(w.message) for w in caught)
    with optimizer.at_iterate():
        # its slow weights: where it restarted
        assert all(torch.equal(p, torch.full_like(p, 3.0)) for p in params_of(optimizer))


def loaded_while_evaluating(name):
    """The new x, for any method."""
    for method in METHODS.values():
        if isinstance(method, emanest.ScheduleFree) and name not in ELEMENTWISE:
            continue
        options = {"betas": (0.0, 0.9)} if isinstance(method, emanest.ScheduleFree) else {}
        if name == "SGD":
            options = {}
        optimizer = ready(name, 4, lookahead=method, **options)
        optimizer.eval()
        as_model(optimizer).load_state_dict(best(optimizer))
        optimizer.train()
        with optimizer.at_iterate():
            for p in params_of(optimizer):
                assert ((p - 3.0).abs() <= ulp(torch.tensor(3.0))).all()


def edited_in_place(name):
    """EMA-Nesterov lets x move with y."""
    optimizer, twin = ready(name, dtype=torch.float64), ready(name, dtype=torch.float64)
    with torch.no_grad():
        for p in params_of(optimizer):
            p.add_(1.0)
    for each in (optimizer, twin):
        each.eval()
    for p, q in zip(params_of(optimizer), params_of(twin), strict=True):
        torch.testing.assert_close(p, q + 1, rtol=0, atol=1e-14)


def edited_through_data(name):
    """It leaves no trace, so one has to say it."""
    runs = [ready(name, lookahead=METHODS["lookahead"]) for _ in range(2)]
    with torch.no_grad():
        for p in params_of(runs[0]):
            p.mul_(2.0)
        for p in params_of(runs[1]):
            p.data.mul_(2.0)
    runs[1].resync()
    for each in runs:
        with pytest.warns(UserWarning, match="restarts from their new values"):
            run(each, range(2, 6))
    assert_same(*runs)


# ---- modes --------------------------------------------------------------------------------------


def first_step_in_eval_mode(name):
    """Allowed while there is no state: x is y."""
    optimizer, twin = ready(name, 0), ready(name, 0)
    optimizer.eval()
    optimizer.step()
    twin.step()
    twin.eval()
    assert same(optimizer, twin)
    goes_on_training(optimizer, twin)


def goes_on_training(*both):
    for each in both:
        each.train()
    goes_on(*both)


def twice(name):
    optimizer, twin = ready(name), ready(name)
    for each, calls in ((optimizer, 2), (twin, 1)):
        for _ in range(calls):
            each.eval()
    assert_same(optimizer, twin)
    for each, calls in ((optimizer, 2), (twin, 1)):
        for _ in range(calls):
            each.train()
    goes_on(optimizer, twin)
    goes_on(optimizer, ready(name, 5))


def raised_inside(name):
    optimizer, twin = ready(name), ready(name)

    def evaluate():
        with optimizer.at_iterate():
            assert not same(optimizer, twin)
            raise KeyError("validation")

    with pytest.raises(KeyError):
        evaluate()
    goes_on(optimizer, twin)


def saved_inside(name):
    optimizer, twin = ready(name), ready(name)
    with optimizer.at_iterate():
        saved = copy.deepcopy(optimizer.state_dict())
        xs = values(optimizer)
    assert {group["train_mode"] for group in saved["param_groups"]} == {False}
    first, *others = map(nn.Parameter, xs)
    fresh = make(name, [{"params": [first]}, {"params": others}])
    fresh.load_state_dict(saved)
    goes_on_training(fresh, twin)


# ---- closures, schedulers, scalers --------------------------------------------------------------


def closures(name):
    optimizer, twin = ready(name), ready(name)
    with refused(optimizer, TypeError, "not callable"):
        optimizer.step(closure=3)
    assert optimizer.step(lambda: None) is None
    twin.step()
    goes_on(optimizer, twin)


def closure_in_eval_mode(name):
    """It evaluates, and forgets to come back."""
    optimizer, twin = ready(name), ready(name)
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode: the parameters hold x"):
        optimizer.step(lambda: optimizer.eval())
    optimizer.train()
    goes_on(optimizer, twin)


def scheduled_inside(name):
    outside, inside = ready(name, 0), ready(name, 0)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2) for o in (outside, *inside.optimizers)]
    for t in range(6):
        for each, scheduler in zip((outside, inside), schedulers, strict=True):
            run(each, [t])
            scheduler.step()
    assert_same(outside, inside)
    assert outside.param_groups[0]["lr"] == pytest.approx(LR * 1e-3)


def scheduled_inside_without_gradients(name):
    """The scheduler's warning of steps in a wrong order, here an error, would be false."""
    optimizer = make(name, matrices())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.optimizers[0], 2)
    optimizer.step()
    scheduler.step()


def resumed_schedule(name):
    """Torch's error, which changes nothing."""
    optimizer, twin = ready(name), ready(name)
    with refused(optimizer, KeyError, "initial_lr.*not specified"):
        torch.optim.lr_scheduler.StepLR(optimizer, 2, last_epoch=5)
    goes_on(optimizer, twin)


def stepped_inside(name):
    """By hand, or by a scaler that was given the wrong one."""
    optimizer, twin = ready(name), ready(name)
    inner = optimizer.optimizers[0]
    with refused(optimizer, RuntimeError, "this AdamW is inside a Wrap.*call step.. of the Wrap"):
        inner.step()
    goes_on(optimizer, twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    with refused(optimizer, RuntimeError, "and give that to GradScaler.step"):
        scaler.step(inner)
    for each in (optimizer, copy.deepcopy(optimizer)):
        run(each, [5])
        with refused(each, RuntimeError, "inside a Wrap"):
            each.optimizers[0].step()
        each.load_state_dict(copy.deepcopy(each.state_dict()))
        with refused(each, RuntimeError, "inside a Wrap"):
            each.optimizers[0].step()
        assert len(each.optimizers[0]._optimizer_step_pre_hooks) == 1


def free_again(name):
    """Without its Wrap an optimizer steps itself."""
    optimizer = ready(name)
    inner = optimizer.optimizers[0]
    del optimizer
    before = [bits(p) for p in params_of(inner)]
    inner.step()
    assert before != [bits(p) for p in params_of(inner)]


# ---- two of them --------------------------------------------------------------------------------


def wrapped_twice(name):
    optimizer, twin = ready(name), ready(name)
    with refused(optimizer, ValueError, "this AdamW is wrapped already"):
        Wrap(optimizer.optimizers[0], EMA)
    goes_on(optimizer, twin)


def nested(name):
    optimizer, twin = ready(name), ready(name)
    with refused(optimizer, TypeError, f"{name} cannot be wrapped: it is ours: give it lookahead="):
        Wrap(optimizer, EMA)
    goes_on(optimizer, twin)


def side_by_side(name):
    """Not an error, since the first may be retired; each takes the other's steps for edits."""
    first = ready(name, lookahead=Lookahead(3, 0.5))
    second = make(name, params_of(first), lookahead=Lookahead(3, 0.5))
    run(second, [2])
    with pytest.warns(UserWarning, match="parameters were written since the last step"):
        run(first, [3])
    with pytest.warns(UserWarning, match="parameters were written since the last step"):
        run(second, [4])


def closure_needed():
    return torch.optim.LBFGS(matrices())


def sparse_only():
    return torch.optim.SparseAdam(matrices())


def own_modes():
    return pytest.importorskip("schedulefree").AdamWScheduleFree(matrices())


def two_gradients():
    return pytest.importorskip("pytorch_optimizer").SAM(matrices(), torch.optim.SGD, lr=LR)


def not_wrapped(inner, match):
    def check(name):
        each = inner()
        before = content(each)
        with pytest.raises(TypeError, match=f"{type(each).__name__} cannot be wrapped: it {match}"):
            Wrap(each, EMA)
        assert differing(content(each), before) == []

    return check


ROWS = [
    Row(48, "weights loaded while training", loaded_while_training),
    Row(48, "weights loaded while evaluating", loaded_while_evaluating),
    Row(49, "edits in place", edited_in_place),
    Row(49, "edits through .data", edited_through_data),
    Row(
        50,
        "a step in eval mode",
        not_stepped(
            lambda optimizer: optimizer.eval(),
            RuntimeError,
            r"step\(\) in eval mode.*call train\(\)",
            mend=lambda optimizer: optimizer.train(),
            steps=(2,),
        ),
    ),
    Row(50, "a first step in eval mode", first_step_in_eval_mode),
    Row(51, "eval and train twice", twice),
    Row(52, "an exception inside at_iterate", raised_inside),
    Row(53, "state_dict inside at_iterate", saved_inside),
    Row(64, "closures", closures),
    Row(64, "a closure that ends in eval mode", closure_in_eval_mode),
    Row(65, "a scheduler on the inner optimizer", scheduled_inside, ("Wrap",)),
    Row(65, "one without gradients", scheduled_inside_without_gradients, ("Wrap",)),
    Row(66, "last_epoch on a fresh run", resumed_schedule),
    Row(67, "a step of the inner optimizer", stepped_inside, ("Wrap",)),
    Row(67, "a step after the Wrap is gone", free_again, ("Wrap",)),
    Row(68, "wrapped twice", wrapped_twice, ("Wrap",)),
    Row(68, "nested", nested),
    Row(68, "side by side", side_by_side),
    *(
        Row(69, inner.__name__, not_wrapped(inner, match), ("Wrap",))
        for inner, match in [
            (closure_needed, "evaluates the loss itself, several times per step"),
            (sparse_only, "takes sparse gradients only"),
            (own_modes, "has train and eval modes of its own"),
            (two_gradients, "takes two gradients per step"),
        ]
    ),
]
