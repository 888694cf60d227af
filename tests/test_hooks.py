# SPDX-License-Identifier: MIT
"""Hooks of torch.optim, on every optimizer: which, how often, in what order, with what."""

import contextlib
import threading

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from emanest import NALA, EMANesterov, Wrap
from emanest.optimizers import inner
from helpers import METHODS, content, differing, parameters, params_of, set_gradients, values
from optimizer_database import DATABASE, Problem, each_entry, train

LOOKAHEAD = METHODS["ema"]


def made(entry, steps=2):
    problem = Problem()
    optimizer = entry.make(problem.params, LOOKAHEAD)
    train(problem, optimizer, steps)
    problem.backward()
    return optimizer


@contextlib.contextmanager
def recorded():
    """Names of the hooks that ran; all handles given to it are removed at the end."""
    seen, handles = [], []
    try:
        yield seen, handles
    finally:
        for handle in handles:
            handle.remove()


# ---- step ---------------------------------------------------------------------------------------


@each_entry
def test_step_hooks_run_once_around_a_step_in_torchs_order(entry):
    """Those of the optimizers inside a Wrap, too; the global ones are the Wrap's alone."""
    optimizer = made(entry)
    inner = getattr(optimizer, "optimizers", [])
    with recorded() as (seen, handles):

        def hook(name, *owners):
            def run(who, args, kwargs):
                assert who in owners or not owners
                assert args[0] is who
                seen.append((name, who))

            return run

        handles += [
            register_optimizer_step_pre_hook(hook("global pre")),
            register_optimizer_step_post_hook(hook("global post")),
        ]
        for each in (optimizer, *inner):
            handles += [
                each.register_step_pre_hook(hook("pre", each)),
                each.register_step_post_hook(hook("post", each)),
            ]
        optimizer.step()
        around = [(name, o) for o in inner for name in ("pre", "post")]
        before = [("global pre", optimizer), ("pre", optimizer)]
        expected = [*before, *around, ("post", optimizer), ("global post", optimizer)]
        assert seen == expected
    optimizer.step()
    assert seen == expected


def test_a_step_that_was_cut_off_takes_no_hooks_from_others():
    """As by an interrupt between a line and its ``finally``."""
    token = inner._STEPPING.set(made(DATABASE["Wrap SGD"]))
    try:
        test_step_hooks_run_once_around_a_step_in_torchs_order(DATABASE["Wrap SGD"])
    finally:
        inner._STEPPING.reset(token)


class Doubled(torch.optim.SGD):
    """Torch runs global hooks twice for it, once an SGD has been made."""

    def step(self, closure=None):
        return super().step(closure)


def _scheduled(inner):
    torch.optim.lr_scheduler.StepLR(inner, 10)
    return inner


def _without_gradients(optimizer):
    optimizer.zero_grad()


def _overflown(optimizer):
    optimizer.found_inf = torch.ones(())


WRAPPED = {
    "one": lambda a, b: torch.optim.SGD([a, b]),
    "two": lambda a, b: [torch.optim.SGD([a]), torch.optim.AdamW([b], foreach=True)],
    "a subclass": lambda a, b: [torch.optim.SGD([a]), Doubled([b])],
    "scheduled": lambda a, b: _scheduled(torch.optim.SGD([a, b])),
}
STEPPED = {
    "as ever": lambda optimizer: None,
    "no gradients": _without_gradients,
    "an overflow": _overflown,
    "not by the inner": lambda optimizer: optimizer.step(),
}


@pytest.mark.parametrize("prepare", STEPPED.values(), ids=STEPPED)
@pytest.mark.parametrize("inner", WRAPPED.values(), ids=WRAPPED)
def test_global_hooks_run_once_per_step_of_a_wrap(inner, prepare):
    """Also where its optimizers do not step; with their optimizer where there is no Wrap."""
    # its second step is a raw one of the method
    optimizer = Wrap(inner(*parameters(shapes=[(3,), (2,)])), NALA(1, 1e-2, -0.4))
    set_gradients(params_of(optimizer), 0)
    prepare(optimizer)
    other = torch.optim.SGD(parameters())
    with recorded() as (seen, handles):
        handles += [
            register_optimizer_step_pre_hook(lambda who, *_: seen.append(("pre", who))),
            register_optimizer_step_post_hook(lambda who, *_: seen.append(("post", who))),
        ]
        for each in (optimizer, other):
            each.step()
        assert seen == [(name, who) for who in (optimizer, other) for name in ("pre", "post")]
        # the optimizers inside take steps again once they are on their own
        optimizers = optimizer.optimizers
        del seen[:], optimizer
        optimizers[0].step()
        assert seen == [("pre", optimizers[0]), ("post", optimizers[0])]


def test_a_step_of_a_wrap_takes_no_hooks_from_other_threads():
    """A hook of the inner optimizer, in the middle of its step, waits for another optimizer's."""
    inner, other = torch.optim.SGD(parameters()), torch.optim.SGD(parameters())
    optimizer = Wrap(inner, LOOKAHEAD)
    set_gradients(params_of(optimizer), 0)

    def step_other(*_):
        thread = threading.Thread(target=other.step)
        thread.start()
        thread.join()

    inner.register_step_post_hook(step_other)
    with recorded() as (seen, handles):
        handles.append(register_optimizer_step_pre_hook(lambda who, *_: seen.append(who)))
        optimizer.step()
    assert seen == [optimizer, other]


@each_entry
def test_hooks_of_a_step_see_it_before_and_after(entry):
    optimizer = made(entry)
    found = []
    optimizer.register_step_pre_hook(lambda *_: found.append(content(optimizer)))
    optimizer.register_step_post_hook(lambda *_: found.append(content(optimizer)))
    before = content(optimizer)
    optimizer.step()
    assert differing(found[0], before) == []
    assert differing(found[1], content(optimizer)) == []
    assert differing(*found) != []


@each_entry
@pytest.mark.parametrize("returned", [3, 0, (), (1, 2, 3)], ids=repr)
def test_a_hook_that_returns_neither_nothing_nor_arguments_is_an_error(entry, returned):
    optimizer = made(entry)
    optimizer.register_step_pre_hook(lambda *_: returned)
    before = content(optimizer)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()
    assert differing(content(optimizer), before) == []


@each_entry
def test_profilers_see_the_step(entry):
    """By the name that torch gives it, and through the hook that torch calls after it."""
    optimizer = made(entry)
    optimizer._optimizer_step_code = lambda: seen.append("step")
    seen = []
    activities = [torch.profiler.ProfilerActivity.CPU]
    # without the latter torch 2.11 warns
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        optimizer.step()
    name = f"Optimizer.step#{type(optimizer).__name__}.step"
    assert [event.count for event in profile.key_averages() if event.key == name] == [1]
    assert seen == ["step"]


# ---- state_dict and load_state_dict -------------------------------------------------------------


@each_entry
def test_state_dict_hooks_run_once_in_order_and_may_replace_it(entry):
    optimizer = made(entry)
    plain = optimizer.state_dict()
    seen = []

    def replace(who, state_dict):
        seen.append("post")
        assert who is optimizer
        return {"wrapped": state_dict}

    optimizer.register_state_dict_pre_hook(lambda who: seen.append("pre 2"))
    optimizer.register_state_dict_pre_hook(lambda who: seen.append("pre 1"), prepend=True)
    optimizer.register_state_dict_post_hook(replace)
    optimizer.register_state_dict_post_hook(lambda who, _: seen.append("post 0"), prepend=True)
    found = optimizer.state_dict()
    assert seen == ["pre 1", "pre 2", "post 0", "post"]
    assert found.keys() == {"wrapped"}
    assert found["wrapped"].keys() == plain.keys()


@each_entry
def test_a_state_dict_hook_may_edit_it(entry):
    optimizer = made(entry)
    before = content(optimizer)
    optimizer.register_state_dict_post_hook(lambda _, found: found.update(mine=3))
    handle = optimizer.register_state_dict_post_hook(lambda _, found: found["state"].clear())
    found = optimizer.state_dict()
    assert found.keys() == {"state", "param_groups", "mine"}
    assert found["state"] == {}
    handle.remove()
    assert differing(content(optimizer), before) == ["/mine"]


@each_entry
def test_a_hook_sees_the_state_dict_that_is_saved(entry):
    """Without the callables of groups, which no file can hold."""
    problem = Problem()
    optimizer = entry.make(problem.params, EMANesterov(lambda t: 0.5))
    seen = []
    optimizer.register_state_dict_post_hook(lambda _, found: seen.append(found))
    assert optimizer.state_dict() is seen[0]
    assert not any(callable(v) for g in seen[0]["param_groups"] for v in g.values())


@each_entry
def test_load_hooks_run_once_in_order_and_may_replace_it(entry):
    optimizer = made(entry)
    saved = optimizer.state_dict()
    twin = entry.make([torch.nn.Parameter(v) for v in values(optimizer)], LOOKAHEAD)
    seen = []

    def unwrap(who, state_dict):
        seen.append("pre 2")
        assert who is twin
        return state_dict["wrapped"]

    def after(who):
        seen.append("post 2")
        assert differing(content(twin), content(optimizer)) == []

    twin.register_load_state_dict_pre_hook(unwrap)
    twin.register_load_state_dict_pre_hook(lambda *_: seen.append("pre 1"), prepend=True)
    twin.register_load_state_dict_post_hook(after)
    twin.register_load_state_dict_post_hook(lambda _: seen.append("post 1"), prepend=True)
    twin.load_state_dict({"wrapped": saved})
    assert seen == ["pre 1", "pre 2", "post 1", "post 2"]
    # the hook that the loading itself registers is gone
    assert len(twin._optimizer_load_state_dict_pre_hooks) == 2


@each_entry
def test_a_load_hook_that_fails_changes_nothing(entry):
    optimizer, source = made(entry), made(entry, steps=5)
    before = content(optimizer)

    def fail(*_):
        raise ZeroDivisionError

    optimizer.register_load_state_dict_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        optimizer.load_state_dict(source.state_dict())
    assert differing(content(optimizer), before) == []
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


@each_entry
def test_what_a_load_hook_makes_is_checked(entry):
    optimizer = made(entry)
    before = content(optimizer)
    optimizer.register_load_state_dict_pre_hook(lambda *_: {"state": {}})
    with pytest.raises(ValueError, match="not an optimizer state dict: missing 'param_groups'"):
        optimizer.load_state_dict(optimizer.state_dict())
    assert differing(content(optimizer), before) == []


@each_entry
def test_handles_remove_their_hooks(entry):
    optimizer = made(entry)
    seen = []
    handles = [
        register(lambda *_: seen.append(1))
        for register in (
            optimizer.register_step_pre_hook,
            optimizer.register_step_post_hook,
            optimizer.register_state_dict_pre_hook,
            optimizer.register_state_dict_post_hook,
            optimizer.register_load_state_dict_pre_hook,
            optimizer.register_load_state_dict_post_hook,
        )
    ]
    for handle in handles:
        handle.remove()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == []
