# SPDX-License-Identifier: MIT
"""Without a lookahead, AdamW and SGD are more accurate than torch.optim's in narrow dtypes.

Both are compared with torch's float64 run on the same gradients. In float32 ours is no farther from
it. In bfloat16 and float16 it is closer, because its state is float32.
"""

import functools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from helpers import one_thread  # noqa: F401
from torch_options import OPTIONS, each_class, ours, torchs

STEPS, SEEDS, SIZE = 100, 4, 4096

# options that keep state, and the others
STATEFUL, STATELESS = (
    [
        (name, option)
        for name in OPTIONS
        for option, options in OPTIONS[name].items()
        if (name == "AdamW" or "momentum" in options) == keeps
    ]
    for keeps in (True, False)
)
each_narrow = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def inputs(dtype):
    """Weights of the size that networks start from, and gradients; one row for each seed."""
    rows = [
        torch.randn(1 + STEPS, SIZE, generator=torch.Generator().manual_seed(seed))
        for seed in range(SEEDS)
    ]
    start, *gradients = torch.stack(rows, 1)
    return (0.02 * start).to(dtype), [g.to(dtype) for g in gradients]


def final(cls, options, dtype, inputs):
    """The parameter and its state after the steps, in float64."""
    start, gradients = inputs
    p = nn.Parameter(start.to(dtype, copy=True))
    optimizer = cls([p], **options)
    for g in gradients:
        p.grad = g.to(dtype)
        optimizer.step()
    state = {k: v.double() for k, v in optimizer.state[p].items() if k not in ("step", "lookahead")}
    return {"parameter": p.detach().double(), **state}


def squared_errors(name, option, dtype):
    """What -> squared errors, ours and torch's; NaN, which torch's float16 yields, is infinite."""
    options, given = OPTIONS[name][option], inputs(dtype)
    exact = final(torchs(name), options, torch.float64, given)
    runs = [final(cls, options, dtype, given) for cls in (ours(name), torchs(name))]
    return {
        what: [((found[what] - value) ** 2).nan_to_num(nan=math.inf) for found in runs]
        for what, value in exact.items()
    }


def figures(what, mine, theirs):
    ratio = math.sqrt(mine / theirs) if theirs else math.inf
    return f"{what}: {ratio:.4f} of torch's error ({math.sqrt(mine):.3g})"


@pytest.mark.parametrize(("name", "option"), STATEFUL)
def test_float32_is_no_farther_from_float64_than_torch(name, option):
    mine, theirs = (e.sum() for e in squared_errors(name, option, torch.float32)["parameter"])
    assert mine <= theirs, figures("parameter", mine, theirs)


@pytest.mark.parametrize(("name", "option"), STATEFUL)
@each_narrow
def test_narrow_dtypes_are_closer_to_float64_than_torch(name, option, dtype):
    for what, errors in squared_errors(name, option, dtype).items():
        mine, theirs = (e.sum() for e in errors)
        # equal only for betas of 0, where every step is one of +-lr
        assert mine <= theirs, figures(what, mine, theirs)
        assert mine.isfinite()


@pytest.mark.parametrize(("name", "option"), STATELESS)
def test_float32_without_state_misses_torch_by_its_fused_product_only(name, option):
    """Torch rounds p - lr * g once where it has fused multiply-add; here u is rounded first."""
    mine, theirs = (e.sum() for e in squared_errors(name, option, torch.float32)["parameter"])
    assert mine <= 1.05**2 * theirs, figures("parameter", mine, theirs)


@pytest.mark.parametrize(("name", "option"), STATELESS)
@each_narrow
def test_without_state_nothing_is_farther_but_by_chance(name, option, dtype):
    """Both round the same number to the parameter's dtype: equal up to three standard errors."""
    mine, theirs = squared_errors(name, option, dtype)["parameter"]
    excess = mine - theirs
    standard_error = excess.std() / math.sqrt(excess.numel())
    assert excess.mean() <= 3 * standard_error, figures("parameter", mine.sum(), theirs.sum())


@pytest.fixture(scope="module")
def unfused():
    """Sums of the squared float32 errors where torch's kernels do not fuse products into sums."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "option"), STATEFUL + STATELESS)
def test_no_float32_value_is_farther_where_torch_fuses_no_products(name, option, unfused):
    for what, (mine, theirs) in unfused[name][option].items():
        assert mine <= theirs, figures(what, mine, theirs)


@each_class
def test_float32_gradients_of_bfloat16_parameters_keep_their_digits(name):
    """The averages are those of a float32 parameter, bit for bit."""
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    states = []
    for dtype in (torch.bfloat16, torch.float32):
        p = nn.Parameter(torch.zeros(999, dtype=dtype))
        p.grad_dtype = torch.float32
        optimizer = ours(name)([p], weight_decay=0.0, **momentum)
        torch.manual_seed(1)
        for _ in range(10):
            p.grad = torch.randn(999)
            optimizer.step()
        states.append(optimizer.state[p])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    sums = {
        name: {
            option: {
                what: [e.sum().item() for e in errors]
                for what, errors in squared_errors(name, option, torch.float32).items()
            }
            for option in OPTIONS[name]
        }
        for name in OPTIONS
    }
    json.dump(sums, sys.stdout)
