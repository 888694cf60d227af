# SPDX-License-Identifier: MIT
"""Parameters that something else writes: in place, through ``.data``, or by changing dtype."""

import copy
import warnings

import pytest
import torch
from torch import nn

import emanest
import helpers
from emanest import Wrap
from helpers import ALONG, LR, METHODS, adamw, bits, content, differing, params_of, run, ulp, values

BASES = {"adamw": adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}

each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("base", BASES)
textbook_bases = pytest.mark.parametrize("base", ["adamw", "wrap"])
ignore_restarts = pytest.mark.filterwarnings("ignore:emanest. .* restarts from their new values")


def make(base, method, dtype=torch.float32, steps=0):
    optimizer = BASES[base](helpers.parameters(dtype), METHODS[method])
    run(optimizer, range(steps))
    return optimizer


def restart(textbook, new):
    """All positions of a textbook method at the new values."""
    for name in ("x", "y", "z", "last"):
        if hasattr(textbook, name):
            setattr(textbook, name, [v.clone() for v in new])
    if hasattr(textbook, "awaits_raw"):
        textbook.awaits_raw = [False for _ in new]


def shift(textbook, by):
    """Move x and y of a textbook method together."""
    for name in ("x", "y", "prev"):
        if hasattr(textbook, name):
            setattr(
                textbook, name, [v + d for v, d in zip(getattr(textbook, name), by, strict=True)]
            )


def follow(expected, method, new, change):
    """What an edit to the new values does to a textbook method."""
    if method in ALONG:
        shift(expected, change)
    else:
        restart(expected, new)


@torch.no_grad()
def edit(optimizer):
    """Write to every parameter, as training code does; return the new values and the change."""
    old = values(optimizer)
    for i, p in enumerate(params_of(optimizer)):
        p.mul_(0.5).add_(i + 1)
    new = values(optimizer)
    return new, [b - a for a, b in zip(old, new, strict=True)]


def edit_in_eval_mode(optimizer):
    optimizer.eval()
    change = edit(optimizer)
    optimizer.train()
    return change


def edit_data(optimizer):
    """Write where no trace is left, and say so."""
    old = values(optimizer)
    for i, p in enumerate(params_of(optimizer)):
        p.data.mul_(0.5).add_(i + 1)
    optimizer.resync()
    new = values(optimizer)
    return new, [b - a for a, b in zip(old, new, strict=True)]


def edit_data_in_eval_mode(optimizer):
    optimizer.eval()
    change = edit_data(optimizer)
    optimizer.train()
    return change


EDITS = [edit, edit_in_eval_mode, edit_data, edit_data_in_eval_mode]


def assert_goes_on(optimizer, expected, steps):
    """No evaluation in between: it would write to the parameters, too."""
    for t in steps:
        expected.step(helpers.gradients(expected.y, t), LR)
        run(optimizer, [t])
        torch.testing.assert_close(values(optimizer), expected.y, rtol=0, atol=1e-12)


def assert_at(optimizer, expected):
    torch.testing.assert_close(values(optimizer), expected.y, rtol=0, atol=1e-12)
    with optimizer.at_iterate():
        torch.testing.assert_close(values(optimizer), expected.x, rtol=0, atol=1e-12)


@each_method
@textbook_bases
@pytest.mark.parametrize("edit", EDITS)
@ignore_restarts
def test_a_run_goes_on_from_edits(method, base, edit):
    optimizer = make(base, method, torch.float64)
    expected = helpers.textbook_adamw(method, params_of(optimizer))
    assert_goes_on(optimizer, expected, range(3))
    follow(expected, method, *edit(optimizer))
    assert_goes_on(optimizer, expected, range(3, 5))
    follow(expected, method, *edit(optimizer))
    assert_goes_on(optimizer, expected, range(5, 12))
    assert_at(optimizer, expected)


@each_method
@textbook_bases
@ignore_restarts
def test_an_evaluation_sees_an_edit_and_does_not_hide_it(method, base):
    optimizer = make(base, method, torch.float64)
    expected = helpers.textbook_adamw(method, params_of(optimizer))
    assert_goes_on(optimizer, expected, range(5))
    follow(expected, method, *edit(optimizer))
    assert_at(optimizer, expected)
    assert_goes_on(optimizer, expected, range(5, 12))
    assert_at(optimizer, expected)


@each_method
@each_base
def test_only_methods_that_keep_positions_warn_of_edits_and_once(method, base):
    """Of all together, whatever their dtypes and groups."""
    narrow, wide = helpers.parameters(), helpers.parameters(torch.float64)
    groups = [{"params": [*narrow, *wide[:1]]}, {"params": wide[1:]}]
    optimizer = BASES[base](groups, METHODS[method])
    run(optimizer, range(5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in (5, 6):
            edit(optimizer)
            run(optimizer, [t])
    messages = [str(w.message) for w in caught]
    assert len(messages) == (method not in ALONG)
    assert all("6 parameters were written since the last step" in m for m in messages)


def test_every_method_is_told_of_and_so_is_a_lost_y():
    """Once each: what was said of one does not silence what is to be said of another."""
    groups = [
        {"params": helpers.parameters(), "lookahead": METHODS[name]} for name in ("snoo", "gpa")
    ]
    optimizer = adamw(groups, METHODS["ema"])
    run(optimizer, range(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in (4, 5, 6):
            edit(optimizer)
            run(optimizer, [t])
        optimizer.eval()
        saved = optimizer.state_dict()
        for entries in saved["state"].values():
            entries.pop("y", None)
        optimizer.load_state_dict(saved)
        optimizer.train()
    messages = [str(w.message) for w in caught]
    expected = ["SNOO restarts", "GPA restarts", "y is lost", "y is recomputed"]
    assert len(messages) == len(expected)
    assert all(words in message for words, message in zip(expected, messages, strict=True))


@each_method
@each_base
@pytest.mark.parametrize("mode", ["train", "eval"])
@ignore_restarts
def test_a_copy_sees_edits_as_the_optimizer_does(method, base, mode):
    optimizer = make(base, method, torch.float64, steps=5)
    getattr(optimizer, mode)()
    for each in (copied := copy.deepcopy(optimizer), optimizer):
        edit(each)
        each.train()
        run(each, range(5, 9))
    assert differing(content(copied), content(optimizer)) == []


# how far an implicit x moves with y alone: the weight of x in y
WEIGHTS = {"gpa": 0.7, "schedule free": 0.9}


@each_method
def test_data_edits_are_not_seen(method):
    """Without ``resync`` positions stay: y moves alone, and x only where it follows from y."""
    optimizer = make("adamw", method, torch.float64)
    expected = helpers.textbook_adamw(method, params_of(optimizer))
    assert_goes_on(optimizer, expected, range(3))
    for i, p in enumerate(params_of(optimizer)):
        p.data.add_(i + 1)
    if method in ALONG:
        shift(expected, range(1, 4))
    else:
        expected.y = [y + i + 1 for i, y in enumerate(expected.y)]
    if method in WEIGHTS:
        expected.x = [x + (i + 1) / WEIGHTS[method] for i, x in enumerate(expected.x)]
    assert_goes_on(optimizer, expected, range(3, 9))
    assert_at(optimizer, expected)


@pytest.mark.parametrize("of", [lambda t: t, lambda t: t.data], ids=["seen", "data"])
def test_steps_are_counted_from_what_state_says(of):
    """Collectives and NumPy write without a trace, as ``.data`` does."""
    optimizer = emanest.AdamW(helpers.parameters(), betas=(0.9, 0.99))
    expected = emanest.AdamW(helpers.parameters(), betas=(0.9, 0.99))
    run(optimizer, range(2))
    run(expected, range(2))
    state = expected.state_dict()
    for entries in state["state"].values():
        entries["step"] = torch.tensor(7.0)
    expected.load_state_dict(state)
    for p in params_of(optimizer):
        of(optimizer.state[p]["step"]).fill_(7)
    run(optimizer, range(2, 4))
    run(expected, range(2, 4))
    assert differing(content(optimizer), content(expected)) == []


def test_state_may_be_moved_to_shared_memory():
    """As for other processes: what is sent to one is moved, too."""
    moved, left = (emanest.AdamW(helpers.parameters()) for _ in range(2))
    for optimizer in (moved, left):
        run(optimizer, range(2))
    for entries in moved.state.values():
        for tensor in entries.values():
            tensor.share_memory_()
    for optimizer in (moved, left):
        run(optimizer, range(2, 4))
    assert differing(content(moved), content(left)) == []


@each_method
@each_base
def test_data_edits_in_eval_mode_are_not_seen(method, base):
    optimizer = make(base, method, steps=5)
    before = content(optimizer)
    optimizer.eval()
    for p in params_of(optimizer):
        p.data.zero_()
    optimizer.train()
    assert differing(content(optimizer), before) == []


@each_method
@each_base
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_loaded_in_eval_mode_are_the_new_x(method, base, dtype):
    model = nn.ParameterList(helpers.parameters(dtype))
    best = {name: torch.full_like(p, 3.0) for name, p in model.named_parameters()}
    optimizer = BASES[base](model.parameters(), METHODS[method])
    run(optimizer, range(5))
    optimizer.eval()
    model.load_state_dict(best)
    optimizer.train()
    with optimizer.at_iterate():
        for name, p in model.named_parameters():
            assert (p - best[name]).abs().max() <= (0 if method not in ALONG else ulp(p).max())


# ---- parameters that change dtype ---------------------------------------------------------------

# torch's own AdamW cannot go on from float32 state with bfloat16 gradients
MOVABLE = {
    "adamw": adamw,
    "sgd": helpers.sgd,
    "wrap": lambda params, method: Wrap(torch.optim.SGD(params, lr=LR), method),
}


@each_method
@pytest.mark.parametrize("base", MOVABLE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_state_survives_a_change_of_dtype(method, base, dtype):
    optimizer = MOVABLE[base](helpers.parameters(), METHODS[method])
    run(optimizer, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    params = [nn.Parameter(p.detach().to(dtype)) for p in params_of(optimizer)]
    nn.ParameterList(params_of(optimizer)).to(dtype)
    with pytest.warns(UserWarning, match=f"parameters moved from torch.float32 .* to {dtype}"):
        run(optimizer, [5])
    loaded = MOVABLE[base](params, METHODS[method])
    loaded.load_state_dict(saved)
    run(loaded, [5])
    assert differing(content(optimizer), content(loaded)) == []
    # back again, without another warning
    nn.ParameterList(params_of(optimizer)).float()
    run(optimizer, [6])


@each_method
def test_y_survives_a_change_of_dtype_in_eval_mode(method):
    optimizer = make("adamw", method, steps=5)
    ys = values(optimizer)
    optimizer.eval()
    nn.ParameterList(params_of(optimizer)).bfloat16()
    with pytest.warns(UserWarning, match="parameters moved"):
        optimizer.train()
    assert [bits(p) for p in params_of(optimizer)] == [bits(y.bfloat16()) for y in ys]
