# SPDX-License-Identifier: MIT
"""Loading what does not fit is an error that changes nothing."""

import copy

import pytest
import torch

import helpers
from bad_input_saved import GROUP, drop, put
from helpers import content, differing, run

BASES = {"adamw": helpers.adamw, "wrap": helpers.wrap_adamw}


# what is wrong -> how it comes about, and what the message says of it; of what every optimizer
# refuses alike there is a table in bad_input_saved
EMA = {
    "decay": (put(*GROUP, "lookahead_decay", to=2.0), "decay must be in"),
    "stepsize": (put(*GROUP, "lookahead_stepsize", to=1.5), "stepsize must be in"),
    "empty window": (put(*GROUP, "lookahead_rest", to=0), "the window .* is empty"),
    "peak": (put(*GROUP, "lookahead_peak", to="high"), "lookahead_peak"),
    "no peak": (drop(*GROUP, "lookahead_peak"), "lookahead_peak"),
}
ADAMW = {
    "betas": (put(*GROUP, "betas", to=0.9), "betas"),
    "no lr": (put(*GROUP, "lr", to=None), "lr must be"),
    "unknown base": (
        put(*GROUP, "base", to="adam"),
        "group 0 of the checkpoint was stepped by 'adam', this optimizer's by 'adamw'",
    ),
    "unknown policy": (put(*GROUP, "nonfinite", to="ignore"), "nonfinite must be one of"),
    "no exp_avg": (drop("state", 1, "exp_avg"), "no \\['exp_avg'\\] for parameter 1 of group 0"),
    "no step": (drop("state", 1, "step"), "no \\['step'\\] for parameter 1 of group 0"),
    "shape of exp_avg": (put("state", 1, "exp_avg", to=torch.zeros(8)), "'exp_avg' of parameter 1"),
    "exp_avg a list": (put("state", 1, "exp_avg", to=[0.0] * 7), "'exp_avg' of parameter 1"),
    "step a vector": (put("state", 1, "step", to=torch.ones(2)), "'step' of parameter 1"),
    "step a string": (put("state", 1, "step", to="5"), "'step' of parameter 1"),
}


def state(prefix, name):
    """What can be wrong with the state of a method, and with the y kept in eval mode."""
    name, y = prefix + name, prefix + "y"
    return {
        f"shape of {name}": (put("state", 1, name, to=torch.zeros(8)), f"{name!r} of parameter 1"),
        f"{name} a number": (put("state", 1, name, to=1.0), f"{name!r} of parameter 1"),
        "shape of y": (put("state", 1, y, to=torch.zeros(8)), f"{y!r} of parameter 1"),
        "y a string": (put("state", 1, y, to="y"), f"{y!r} of parameter 1"),
        "ahead a vector": (put("state", 1, "lookahead", to=torch.ones(2)), "'lookahead' of par"),
        "ahead a string": (put("state", 1, "lookahead", to="far"), "'lookahead' of parameter 1"),
    }


WRONG = {
    ("adamw", "ema"): EMA | ADAMW | state("", "exp_avg_update"),
    ("wrap", "ema"): EMA | state("lookahead_", "exp_avg_update"),
    ("adamw", "snoo"): state("", "outer_momentum_buffer"),
    ("wrap", "lookahead"): state("lookahead_", "x"),
    ("adamw", "gpa"): state("", "z"),
}


@pytest.mark.parametrize(
    ("base", "method", "corrupt", "words"),
    [
        pytest.param(*case, *how, id="-".join((*case, what)))
        for case, rows in WRONG.items()
        for what, how in rows.items()
    ],
)
def test_a_bad_checkpoint_is_an_error_and_changes_nothing(base, method, corrupt, words):
    source, target = (BASES[base](helpers.parameters(), helpers.METHODS[method]) for _ in range(2))
    run(source, range(5))
    source.eval()
    saved = corrupt(copy.deepcopy(source.state_dict()))
    run(target, range(2))
    before = content(target)
    with pytest.raises((TypeError, ValueError), match=words):
        target.load_state_dict(saved)
    assert differing(content(target), before) == []
    untouched = BASES[base](helpers.parameters(), helpers.METHODS[method])
    run(untouched, range(2))
    for optimizer in (target, untouched):
        run(optimizer, [2])
    assert differing(content(target), content(untouched)) == []


def test_an_error_of_an_inner_optimizer_changes_nothing():
    """Not even the inner optimizers that come before it."""
    source, target, untouched = (
        helpers.wrap_two(helpers.parameters(), helpers.METHODS["ema"]) for _ in range(3)
    )
    run(source, range(5))
    saved = drop("state", 2, "step")(drop("state", 1, "step")(source.state_dict()))
    for optimizer in (target, untouched):
        run(optimizer, range(2))
    before = content(target)
    # torch's own error
    with pytest.raises(KeyError, match="step"):
        target.load_state_dict(saved)
    assert differing(content(target), before) == []
    for optimizer in (target, untouched):
        run(optimizer, [2])
    assert differing(content(target), content(untouched)) == []
