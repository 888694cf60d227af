# SPDX-License-Identifier: MIT
"""Checkpoints that hold less than training needs: no y, or a base optimizer's state alone."""

import collections
import copy

import pytest
import torch

import emanest
import helpers
import textbook
import textbook_bases
from emanest import Wrap
from helpers import ALONG, LR, METHODS, content, differing, params_of, run, same, ulp, values

BASES = {"adamw": helpers.adamw, "wrap": helpers.wrap_adamw}

each_method = pytest.mark.parametrize("method", METHODS)


@each_method
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_y_that_is_lost_is_found_again_within_an_ulp(method, base, dtype):
    # away from zero, where y has the scale of x and z
    params = [torch.nn.Parameter(p.detach() + 4) for p in helpers.parameters(dtype, [(30, 50)])]
    optimizer = BASES[base](params, METHODS[method])
    run(optimizer, range(5))
    (y,) = values(optimizer)
    optimizer.eval()
    (x,) = values(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][0]["lookahead_y" if base == "wrap" else "y"]
    p = torch.nn.Parameter(x.clone())
    loaded = BASES[base]([p], METHODS[method])
    loaded.load_state_dict(saved)
    recomputed = method in (*ALONG, "gpa", "schedule free")
    how = "recomputed from x" if recomputed else "lost: training goes on from x"
    with pytest.warns(UserWarning, match=how) as caught:
        loaded.train()
    assert len(caught) == 1
    assert (p - (y if recomputed else x)).abs().div(ulp(y)).max() <= recomputed
    # the second time y is there
    loaded.eval()
    loaded.train()


@torch.no_grad()
def fill(params, optimizer):
    for p, value in zip(params, values(optimizer), strict=True):
        p.copy_(value)


TORCH = {
    "adamw": (torch.optim.AdamW, emanest.AdamW, {"betas": (0.8, 0.9), "weight_decay": 0.1}),
    "amsgrad": (torch.optim.AdamW, emanest.AdamW, {"amsgrad": True, "maximize": True}),
    "sgd": (torch.optim.SGD, emanest.SGD, {"weight_decay": 0.1}),
    "momentum": (torch.optim.SGD, emanest.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "nesterov": (torch.optim.SGD, emanest.SGD, {"momentum": 0.9, "nesterov": True}),
}


@pytest.mark.parametrize(("torchs", "ours", "options"), TORCH.values(), ids=TORCH)
def test_a_checkpoint_of_torch_goes_on_as_torch(torchs, ours, options):
    theirs = torchs(helpers.parameters(torch.float64), lr=LR, **options)
    run(theirs, range(7))
    optimizer = ours([torch.nn.Parameter(p) for p in values(theirs)])
    optimizer.load_state_dict(theirs.state_dict())
    for each in (theirs, optimizer):
        run(each, range(7, 50))
    torch.testing.assert_close(values(optimizer), values(theirs), rtol=0, atol=1e-12)


# without momentum, for Schedule-Free
STILL = {"betas": (0.0, 0.99), "weight_decay": 0.0}


def make(base, method):
    params = helpers.parameters(torch.float64)
    if base == "wrap":
        return Wrap(torch.optim.AdamW(params, lr=LR, **STILL), method)
    return emanest.AdamW(params, lr=LR, **STILL, lookahead=method)


@each_method
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("source", ["torch", "ours"])
@pytest.mark.parametrize("last", ["optimizer", "parameters"])
def test_what_a_checkpoint_lacks_starts_afresh(method, base, source, last):
    """Positions are where the parameters are at the first step, whatever is loaded last."""
    params = helpers.parameters(torch.float64)
    first = torch.optim.AdamW(params, lr=LR, **STILL) if source == "torch" else make(base, None)
    plain = textbook.Plain(params, textbook_bases.AdamW(**STILL))
    for t in range(7):
        plain.step(helpers.gradients(plain.y, t), LR)
        run(first, [t])
    second = make(base, METHODS[method])
    if last == "optimizer":
        fill(params_of(second), first)
    with pytest.warns(UserWarning, match="no lookahead state .* starts afresh") as caught:
        second.load_state_dict(first.state_dict())
    assert len(caught) == 1
    if last == "parameters":
        fill(params_of(second), first)
    expected = helpers.published(METHODS[method], plain.y, plain.base)
    # the clock is ours: torch has none
    expected.t = 7 if source == "ours" else 0
    # bias corrections follow a parameter's own updates, which a Wrap has counted or not
    expected.updates = [0 if (source, base) == ("torch", "wrap") else 7] * len(params)
    for t in range(7, 20):
        expected.step(helpers.gradients(expected.y, t), LR)
        run(second, [t])
        torch.testing.assert_close(values(second), expected.y, rtol=0, atol=1e-12)


# ---- __setstate__ -------------------------------------------------------------------------------

SET = {
    "adamw": helpers.adamw,
    "sgd": helpers.sgd,
    "wrap": helpers.wrap_adamw,
    "wrap two": helpers.wrap_two,
}
# what frameworks hand it, and what changes nothing
PARTIAL = {
    "nothing": lambda optimizer: {},
    "state": lambda optimizer: {"state": optimizer.state},
    "param_groups": lambda optimizer: {"param_groups": optimizer.param_groups},
    "both": lambda optimizer: {k: getattr(optimizer, k) for k in ("state", "param_groups")},
    "defaults": lambda optimizer: {"defaults": optimizer.defaults},
    "state and defaults": lambda optimizer: {
        k: getattr(optimizer, k) for k in ("state", "defaults")
    },
    "an attribute": lambda optimizer: {"note": 3},
}


@pytest.mark.parametrize("partial", PARTIAL)
@pytest.mark.parametrize("base", SET)
@pytest.mark.parametrize("method", ["ema", "snoo"])
def test_set_state_keeps_what_it_is_not_given(base, method, partial):
    optimizer, twin = (SET[base](helpers.parameters(), METHODS[method]) for _ in range(2))
    for each in (optimizer, twin):
        run(each, range(4))
    given = PARTIAL[partial](optimizer)
    keys = set(given)
    optimizer.__setstate__(given)
    assert given.keys() == keys
    assert vars(optimizer).get("note") == given.get("note")
    assert differing(content(optimizer), content(twin)) == []
    for each in (optimizer, twin):
        run(each, range(4, 8))
    assert differing(content(optimizer), content(twin)) == []


@pytest.mark.parametrize("base", SET)
@pytest.mark.parametrize("how", [lambda s: {"state": s}, lambda s: {"state": s, "note": 3}])
def test_set_state_begins_again_with_a_state_that_is_empty(base, how):
    """As where ``optimizer.state`` is replaced; the groups, and their clock, go on."""
    optimizer, twin = (SET[base](helpers.parameters(), METHODS["ema"]) for _ in range(2))
    for each in (optimizer, twin):
        run(each, range(4))
    optimizer.__setstate__(how(collections.defaultdict(dict)))
    twin.state = collections.defaultdict(dict)
    assert not optimizer.state
    for each in (optimizer, twin):
        run(each, range(4, 7))
    assert differing(content(optimizer), content(twin)) == []


@pytest.mark.parametrize("base", ["adamw", "wrap"])
def test_set_state_takes_groups_of_torch(base):
    """They get the lookahead of this optimizer, at its start, and their own options."""
    optimizer, twin = (SET[base](helpers.parameters(), METHODS["ema"]) for _ in range(2))
    theirs = torch.optim.AdamW(params_of(optimizer), lr=2 * LR, betas=(0.9, 0.99), weight_decay=0)
    optimizer.__setstate__({"param_groups": theirs.param_groups})
    twin.param_groups[0]["lr"] = 2 * LR
    for each in (optimizer, twin):
        run(each, range(4))
    assert same(optimizer, twin)


REFUSED = {
    "a group more": lambda optimizer: {"param_groups": [*optimizer.param_groups] * 2},
    "no method": lambda optimizer: {
        "param_groups": [{**g, "lookahead": "junk"} for g in optimizer.param_groups]
    },
    "state, and no method": lambda optimizer: {
        "state": collections.defaultdict(dict),
        "param_groups": [{**g, "lookahead": "junk"} for g in optimizer.param_groups],
    },
}


@pytest.mark.parametrize(
    ("base", "refused"),
    [(b, r) for b in SET for r in REFUSED if b == "wrap two" or r != "a group more"],
)
def test_set_state_that_fails_changes_nothing(base, refused):
    optimizer, twin = (SET[base](helpers.parameters(), METHODS["ema"]) for _ in range(2))
    for each in (optimizer, twin):
        run(each, range(4))
    with pytest.raises(ValueError, match=r"4 param_groups for optimizers with \[1, 1\]|got 'junk'"):
        optimizer.__setstate__(REFUSED[refused](optimizer))
    assert differing(content(optimizer), content(twin)) == []
    for each in (optimizer, twin):
        run(each, range(4, 7))
    assert differing(content(optimizer), content(twin)) == []


@pytest.mark.parametrize("base", SET)
def test_state_may_be_set_to_itself(base):
    optimizer = SET[base](helpers.parameters(), METHODS["ema"])
    run(optimizer, range(2))
    before = content(optimizer)
    optimizer.state = optimizer.state
    assert differing(content(optimizer), before) == []
