# SPDX-License-Identifier: MIT
"""Methods that act every k steps: when they do, and which of them are equal.

Numbers in the docstrings are those of the properties in ALGORITHMS, section 6.
"""

import pytest
import torch

import helpers
import textbook
import textbook_bases
from emanest import NALA, SNOO, LongHorizon, Lookahead
from helpers import BASES, flat, gradients, on, params_of, published, run, same, textbook_base

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]

each_base = pytest.mark.parametrize("base", BASES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_kind = pytest.mark.parametrize("wrapped", [False, True])

# method, steps after which the slow weights have moved, base updates in 23 steps
SYNCS = [
    (Lookahead(5, 0.5), [5, 10, 15, 20], 23),
    (Lookahead(1, 0.5), list(range(1, 24)), 23),
    (LongHorizon(7, 0.5), [7, 14, 21], 23),
    (SNOO(6, 0.7, 0.5), [6, 12, 18], 23),
    (NALA(5, 0.1, -0.5), [6, 12, 18], 20),
    (NALA(1, 0.1, 0.3), list(range(2, 23, 2)), 12),
]


def slow(optimizer, wrapped=False):
    key = "lookahead_x" if wrapped else "x"
    return flat(optimizer.state[p][key] for p in params_of(optimizer))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("method", "expected", "updates"), SYNCS)
@each_kind
def test_slow_weights_move_after_every_k_steps(method, expected, updates, wrapped):
    """29, 30, 31: exactly; NALA takes one gradient more. The first x is the parameters."""
    optimizer = on("adamw", method, wrapped=wrapped)
    params, moved = params_of(optimizer), []
    x = flat(params)
    for t in range(23):
        run(optimizer, [t])
        last, x = x, slow(optimizer, wrapped)
        moved += [t + 1] * (not torch.equal(x, last))
    assert moved == expected
    assert {optimizer.state[p]["step"].item() for p in params} == {updates}


# ---- Lookahead ----------------------------------------------------------------------------------


@each_base
@each_dtype
@each_kind
def test_alpha_1_is_the_base(base, dtype, wrapped):
    """29: bit for bit."""
    pulled = on(base, Lookahead(3, 1.0), dtype, wrapped)
    plain = on(base, None, dtype, wrapped)
    for t in range(12):
        run(pulled, [t])
        run(plain, [t])
        assert same(pulled, plain)


@each_base
@each_dtype
@each_kind
def test_alpha_0_returns_to_the_start(base, dtype, wrapped):
    """29: bit for bit, at syncs and only there."""
    optimizer, start = on(base, Lookahead(3, 0.0), dtype, wrapped), on(base, None, dtype)
    for t in range(12):
        run(optimizer, [t])
        assert same(optimizer, start) == (t % 3 == 2)


# ---- which are equal ----------------------------------------------------------------------------

# method; the textbook form of another method, or another form, on the parameters and a base
EQUALS = {
    "lookahead reversed": (
        Lookahead(5, 0.3),
        lambda params, base: textbook.LookaheadReversed(params, base, 5, 0.3),
    ),
    "snoo at rate 1 looks k steps ahead": (
        SNOO(5, 1.0, 0.4),
        lambda params, base: published(LongHorizon(5, 0.4), params, base),
    ),
    "snoo without momentum is lookahead": (
        SNOO(5, 0.7, 0.0),
        lambda params, base: published(Lookahead(5, 0.7), params, base),
    ),
    "snoo is muloco": (
        SNOO(5, 0.7, 0.5),
        lambda params, base: textbook.MuLoCo(params, base, 5, 0.7, 0.5),
    ),
}


@pytest.mark.parametrize("case", EQUALS)
@each_base
def test_slow_weights_agree(case, base):
    """29 and 30: y to 1e-13."""
    method, twin = EQUALS[case]
    optimizer = on(base, method)
    params = params_of(optimizer)
    twin = twin(params, textbook_base(base))
    for t in range(200):
        run(optimizer, [t])
        twin.step(gradients(twin.y, t), helpers.LR)
        close(flat(params), flat(twin.y))


def test_snoo_is_diloco_with_one_worker():
    """30: y to 1e-13."""
    optimizer = on("adamw", SNOO(5, 0.7, 0.9))
    params = params_of(optimizer)
    outer = textbook_bases.SGD(momentum=0.9, nesterov=True)
    twin = textbook.DiLoCo(params, [textbook_base("adamw")], outer, 5, 0.7)
    for t in range(200):
        run(optimizer, [t])
        twin.step([gradients(twin.y[0], t)], helpers.LR)
        close(flat(params), flat(twin.y[0]))


# ---- NALA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [-0.3, -0.5, -0.7])
@each_kind
def test_nala_interpolates(mu, wrapped):
    """31: y = (1 - |mu|) theta + |mu| phi to 1e-13; x stays phi, the parameters, exactly."""
    optimizer, plain = on("adamw", NALA(5, 0.1, mu), wrapped=wrapped), on("adamw", None)
    phi = flat(params_of(optimizer))
    run(optimizer, range(5))
    run(plain, range(5))
    theta = flat(params_of(plain))
    close(flat(params_of(optimizer)), (1 - abs(mu)) * theta + abs(mu) * phi)
    with optimizer.at_iterate():
        assert torch.equal(flat(params_of(optimizer)), phi)


@each_base
@each_kind
def test_nala_without_a_raw_step_is_lookahead(base, wrapped):
    """31: lr = 0 and mu = -a is Lookahead(1 - a), to 1e-13, a gradient apart in every cycle."""
    nala = on(base, NALA(5, 0.0, -0.3), wrapped=wrapped)
    lookahead = on(base, Lookahead(5, 0.7), wrapped=wrapped)
    for cycle in range(20):
        run(nala, range(5 * cycle, 5 * cycle + 5))
        # whatever gradient comes next
        run(nala, [1000 + cycle])
        run(lookahead, range(5 * cycle, 5 * cycle + 5))
        close(flat(params_of(nala)), flat(params_of(lookahead)))
        close(slow(nala, wrapped), slow(lookahead, wrapped))
