# SPDX-License-Identifier: MIT
"""Muon and NorMuon over steps: state, checkpoints, failures, bad input."""

import copy
import pickle

import pytest
import torch
from torch import nn

import emanest
from emanest import EMANesterov, Muon, NorMuon
from emanest.matrix import newton_schulz
from helpers import (
    METHODS,
    bits,
    content,
    differing,
    gradients,
    one_thread,  # noqa: F401
)
from helpers import run as train
from muon_runs import CLASSES, LR, close, each_backend, each_class, matrices, of_muon

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- state, modes, scaling ----------------------------------------------------------------------


@of_muon
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alike(name, clone):
    optimizer = CLASSES[name](matrices(torch.float32), LR, lookahead=EMANesterov())
    train(optimizer, range(3))
    other = clone(optimizer)
    for each in (optimizer, other):
        train(each, range(3, 6))
    pairs = zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True)
    assert all(bits(a) == bits(b) for a, b in pairs)


@of_muon
def test_a_checkpoint_of_another_shape_is_refused(name):
    optimizer = CLASSES[name](matrices(torch.float32), LR)
    train(optimizer, range(2))
    saved = optimizer.state_dict()
    saved["state"][0]["momentum_buffer"] = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"'momentum_buffer' of parameter 0 .* shape \(3, 4\)"):
        optimizer.load_state_dict(saved)


@of_muon
def test_a_parameter_without_a_gradient_stays(name):
    params = matrices(torch.float32)
    optimizer = CLASSES[name](params, LR, lookahead=EMANesterov())
    train(optimizer, range(2))
    before = bits(params[2])
    for p, g in zip(params, gradients(params, 2), strict=True):
        p.grad = g
    params[2].grad = None
    optimizer.step()
    assert bits(params[2]) == before
    assert bits(params[0]) != before
    assert optimizer.state[params[2]]["step"] == 2


@of_muon
def test_a_gradient_scaler_changes_nothing(name):
    plain, scaled = (
        CLASSES[name](matrices(torch.float32), LR, lookahead=EMANesterov()) for _ in range(2)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    for t in range(4):
        for optimizer, factor in ((plain, 1.0), (scaled, 4.0)):
            params = optimizer.param_groups[0]["params"]
            for p, g in zip(params, gradients(params, t), strict=True):
                p.grad = g * factor
        plain.step()
        # lazily initialised
        scaler.scale(torch.ones(()))
        scaler.step(scaled)
        scaler.update()
    pairs = zip(plain.param_groups[0]["params"], scaled.param_groups[0]["params"], strict=True)
    assert all(bits(a) == bits(b) for a, b in pairs)


def test_options_say_how_the_iteration_runs():
    params = matrices(torch.float32)[:2]
    with pytest.raises(ValueError, match="ns_form='gram' loses all digits in bfloat16: take ns_d"):
        Muon(params, ns_form="gram", ns_dtype="bfloat16")
    found = {}
    for form in ("standard", "gram"):
        p = matrices(torch.float32)
        train(Muon(p, LR, ns_form=form, ns_dtype="float32"), range(3))
        found[form] = [each.detach() for each in p]
    close(found["gram"], found["standard"], atol=1e-4)


# (device, form, AMX) -> dtype of the iteration for float32 matrices
WORKING = {
    ("cpu", None, True): torch.bfloat16,
    ("cpu", "gram", True): torch.float32,
    ("cpu", None, False): torch.float32,
    ("cuda", None, False): torch.float16,
}


@pytest.mark.parametrize(("device", "form", "amx"), WORKING)
def test_the_iteration_runs_in_the_fastest_dtype_that_will_do(monkeypatch, device, form, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    working_dtype = emanest.matrix.newton_schulz.working_dtype
    found = working_dtype(torch.device(device), torch.float32, form)
    assert found == WORKING[device, form, amx]
    assert working_dtype(torch.device(device), torch.float64, form) == torch.float64


# ---- failures ----------------------------------------------------------------------------------


@of_muon
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ns_coefficients", "polar", "ns_coefficients must be one of"),
        ("ns_form", "gramm", "ns_form must be one of"),
        ("ns_steps", 0, "ns_steps must be at least 1"),
        ("ns_dtype", "int8", "ns_dtype must be one of"),
        ("split", 5, "split=5 does not divide the 8 rows"),
        ("split", 0, "split must be at least 1"),
        ("adjust_lr_fn", "rms", "adjust_lr_fn must be one of"),
        ("momentum", 1.0, "momentum must be below 1"),
        ("eps", -1.0, "Invalid epsilon value"),
    ],
)
def test_an_option_that_went_bad_is_named_before_anything_moves(name, option, value, message):
    params = matrices(torch.float32)
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = CLASSES[name](groups, LR, lookahead=EMANesterov())
    train(optimizer, range(2))
    good, before = optimizer.param_groups[1][option], content(optimizer)
    optimizer.param_groups[1][option] = value
    with pytest.raises(ValueError, match=message):
        train(optimizer, [2])
    optimizer.param_groups[1][option] = good
    assert differing(content(optimizer), before) == []


def test_a_dtype_may_be_given_between_steps():
    params = matrices(torch.float32)
    optimizer = Muon(params, LR)
    optimizer.param_groups[0]["ns_dtype"] = torch.float64
    train(optimizer, range(1))


@each_class
def test_a_search_that_fails_has_moved_no_parameter(name, monkeypatch):
    """Of any bucket: memory may run out at the second."""
    params = [*matrices(torch.float32)[:2], *matrices(torch.float64)[2:]]
    optimizer = CLASSES[name](params, LR, lookahead=METHODS["lookahead"])
    train(optimizer, range(2))
    before = [bits(p) for p in params]

    def fail(x, *_):
        if x.dtype == torch.float64:
            raise torch.OutOfMemoryError
        return iterate(x, *_)

    iterate = newton_schulz.iterate
    with monkeypatch.context() as patch:
        patch.setattr(newton_schulz, "iterate", fail)
        with pytest.raises(torch.OutOfMemoryError):
            train(optimizer, [2])
    assert [bits(p) for p in params] == before
    # and no warning of parameters that somebody edited
    train(optimizer, [2])


@each_backend
@each_class
def test_autocast_changes_no_bit(name, backend):
    plain, cast = (
        CLASSES[name](matrices(torch.float32), LR, lookahead=EMANesterov(), backend=backend)
        for _ in range(2)
    )
    train(plain, range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(cast, range(3))
    assert differing(content(plain), content(cast)) == []


# ---- errors -------------------------------------------------------------------------------------


@of_muon
@pytest.mark.parametrize(
    "late", [torch.ones(3), torch.ones(3, dtype=torch.complex64)], ids=["vector", "complex"]
)
def test_what_is_no_matrix_is_refused_when_it_takes_the_place_of_one(name, late):
    optimizer = CLASSES[name](matrices(torch.float32), LR, lookahead=METHODS["ema"])
    train(optimizer, range(2))
    params = optimizer.param_groups[0]["params"]
    kept, params[0] = params[1:], nn.Parameter(late)
    params[0].grad = late
    before = [bits(p) for p in kept]
    with pytest.raises(ValueError, match="real matrices"):
        optimizer.step()
    assert torch.equal(params[0].detach(), late)
    assert [bits(p) for p in kept] == before
    assert optimizer.param_groups[0]["lookahead_t"] == 2


@of_muon
@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_the_wrong_rank_names_split_params(name, shape):
    named = [
        ("layer.weight", nn.Parameter(torch.ones(3, 4))),
        ("layer.bias", nn.Parameter(torch.ones(shape))),
    ]
    with pytest.raises(ValueError, match=r"'layer.bias'.* has shape .*split_params\(model\)"):
        CLASSES[name](named)
    optimizer = CLASSES[name]([named[0][1]])
    with pytest.raises(ValueError, match="parameter 0 of group 1 has shape"):
        optimizer.add_param_group({"params": [named[1][1]]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"momentum": 1.0}, ValueError, "momentum must be below 1"),
        ({"momentum": -0.1}, ValueError, "momentum must be a finite number at least 0"),
        ({"nesterov": "yes"}, TypeError, "nesterov must be True or False"),
        ({"ns_steps": 0}, ValueError, "ns_steps must be at least 1, got 0"),
        ({"ns_coefficients": "kellr"}, ValueError, "ns_coefficients must be one of"),
        (
            {"adjust_lr_fn": "rms"},
            ValueError,
            "adjust_lr_fn must be .*'unit_rms'.* got 'rms'",
        ),
        ({"split": 0}, ValueError, "split must be at least 1, got 0"),
        ({"split": 5}, ValueError, r"split=5 does not divide the 8 rows of parameter 0 of group 0"),
        ({"ns_form": "fast"}, ValueError, "ns_form must be one of"),
        ({"ns_dtype": torch.int8}, ValueError, "ns_dtype must be one of"),
        ({"eps": -1.0}, ValueError, "Invalid epsilon value"),
        ({"lr": -1.0}, ValueError, "Invalid learning rate"),
        ({"weight_decay": -1.0}, ValueError, "Invalid weight_decay value"),
        ({"differentiable": True}, ValueError, "differentiable=True is not supported"),
        ({"backend": "cublas"}, ValueError, "backend must be None or one of"),
    ],
)
def test_bad_options_are_named(option, error, message):
    with pytest.raises(error, match=message):
        Muon(matrices(torch.float32), **option)


def test_bad_decay_of_the_second_average_is_named():
    with pytest.raises(ValueError, match=r"beta2 must be in \[0, 1\), got 1.0"):
        NorMuon(matrices(torch.float32), beta2=1.0)


def test_no_eps_is_refused_where_rows_of_zeros_are_divided_by_it():
    with pytest.raises(ValueError, match="NorMuon divides rows of zeros by eps: it must be above"):
        NorMuon(matrices(torch.float32), eps=0.0)


@of_muon
def test_the_checkpoint_of_another_base_is_refused(name):
    optimizer, other = (
        CLASSES[name](matrices(torch.float32)),
        emanest.AdamW(matrices(torch.float32)),
    )
    train(other, range(2))
    with pytest.raises(ValueError, match=r"group 0 of the checkpoint was stepped by 'adamw', this"):
        optimizer.load_state_dict(other.state_dict())


def test_complex_matrices_are_refused():
    with pytest.raises(ValueError, match=r"only real matrices here; .*split_params"):
        Muon([nn.Parameter(torch.ones(3, 4, dtype=torch.complex64))])
