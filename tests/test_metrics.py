# SPDX-License-Identifier: MIT
"""Figures about a run: those of its definition, computed only when asked for."""

import math

import pytest
import torch

import emanest
import helpers
from helpers import METHODS, adamw, content, differing, flat, params_of, run, values

BASES = {"adamw": adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}
NAMES = ["x_norm", "m_norm", "displacement_norm", "m_ratio", "displacement_ratio", "skipped_steps"]


def by_hand(optimizer, key):
    """From the parameters in both modes, and the state."""
    ys = flat(values(optimizer)).double()
    with optimizer.at_iterate():
        xs = flat(values(optimizer)).double()
    m = [s[key] for s in optimizer.state.values() if key in s]
    norm_of = {"x": xs.norm().item(), "m": flat(m).double().norm().item() if m else 0.0}
    norm_of["displacement"] = (ys - xs).norm().item()
    return {
        **{f"{name}_norm": norm for name, norm in norm_of.items()},
        **{f"{name}_ratio": norm_of[name] / norm_of["x"] for name in ("m", "displacement")},
        "skipped_steps": 0,
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_metrics_are_those_of_their_definition(base, method, dtype):
    optimizer = BASES[base](helpers.parameters(dtype), METHODS[method])
    run(optimizer, range(5))
    name = METHODS[method].state[0]
    key = {"exp_avg_update": name, "velocity": name}.get(name, "none")
    expected = by_hand(optimizer, f"lookahead_{key}" if base == "wrap" else key)
    assert (expected["m_norm"] > 0) == (method in helpers.ALONG)
    assert expected["displacement_norm"] > 0
    for enter in (optimizer.train, optimizer.eval):
        enter()
        before = content(optimizer)
        found = optimizer.metrics()
        assert list(found) == NAMES
        assert all(value.shape == () for value in found.values())
        for each, value in found.items():
            assert value.item() == pytest.approx(expected[each], rel=1e-12)
        assert differing(content(optimizer), before) == []


def test_groups_and_complex_parameters_are_added_up():
    one, two, three = helpers.parameters(torch.complex64)
    groups = [{"params": [one]}, {"params": [two], "lookahead": None}, {"params": [three]}]
    optimizer = adamw(groups, METHODS["ema"])
    run(optimizer, range(5))
    expected = by_hand_complex(optimizer)
    for each, value in optimizer.metrics().items():
        assert value.item() == pytest.approx(expected.get(each, 0), rel=1e-12)


def by_hand_complex(optimizer):
    ys = flat(values(optimizer)).to(torch.complex128)
    with optimizer.at_iterate():
        xs = flat(values(optimizer)).to(torch.complex128)
    m = flat([s["exp_avg_update"] for s in optimizer.state.values() if "exp_avg_update" in s])
    norms = [xs.norm().item(), m.to(torch.complex128).norm().item(), (ys - xs).norm().item()]
    return dict(zip(NAMES, [*norms, norms[1] / norms[0], norms[2] / norms[0]], strict=False))


def test_before_the_first_step_there_is_nothing_to_tell():
    found = adamw(helpers.parameters(), METHODS["ema"]).metrics()
    assert [found[name].item() for name in NAMES[:3]] == [0, 0, 0]
    assert all(math.isnan(found[name].item()) for name in NAMES[3:5])


@pytest.mark.parametrize("capturable", [False, True])
def test_skipped_steps_are_counted(capturable):
    options = {"nonfinite": "skip", "capturable": capturable}
    optimizer = adamw(helpers.parameters(), METHODS["ema"], **options)
    for t in range(7):
        helpers.set_gradients(params_of(optimizer), t)
        if t in (2, 3, 6):
            params_of(optimizer)[1].grad[0] = math.inf
        optimizer.step()
        if t == 4:
            optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.metrics()["skipped_steps"].item() == 3


@pytest.mark.parametrize("base", BASES)
def test_steps_that_a_gradient_scaler_skips_are_counted(base):
    optimizer = BASES[base](helpers.parameters(), METHODS["ema"])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for t in range(5):
        loss = sum(p.square().sum() for p in params_of(optimizer))
        scaler.scale(loss).backward()
        if t == 1:
            params_of(optimizer)[0].grad[0] = math.nan
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    # on a CPU the scaler asks whoever does not claim to look for himself
    asked = optimizer._step_supports_amp_scaling
    assert optimizer.metrics()["skipped_steps"].item() == (1 if asked else 0)


def test_nothing_is_computed_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("emanest.state.metrics._squares", lambda *_: pytest.fail("computed"))
    optimizer = adamw(helpers.parameters(), METHODS["ema"])
    run(optimizer, range(3), optimizer.state_dict)
    with pytest.raises(pytest.fail.Exception):
        optimizer.metrics()


def test_an_optimizer_without_a_lookahead_has_metrics_too():
    optimizer = emanest.SGD(helpers.parameters(), lr=0.1)
    run(optimizer, range(3))
    found = optimizer.metrics()
    assert found["x_norm"].item() == pytest.approx(flat(values(optimizer)).double().norm().item())
    assert found["displacement_norm"].item() == found["m_norm"].item() == 0
