# SPDX-License-Identifier: MIT
"""SOAP over steps: checkpoints, evaluations, bad gradients, other bases, processes."""

import io

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import emanest
import helpers
from emanest import SOAP, EMANesterov, split_params
from helpers import (
    METHODS,
    bits,
    content,
    differing,
    one_thread,  # noqa: F401
)
from helpers import run as train
from ranks import ranks
from soap_runs import LR, SHAPES, soap
from test_device_steps import scaler_step
from test_shards import content as content_of_parts
from test_shards import give_gradients, spread
from test_split import Model

pytestmark = pytest.mark.usefixtures("one_thread")


def loaded(optimizer, saved, **options):
    """Another optimizer at the same point, from a file."""
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    params = [nn.Parameter(v) for v in helpers.values(optimizer)]
    other = SOAP(params, 1.0, lookahead=METHODS["ema"], **options)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


# ---- runs ---------------------------------------------------------------------------------------


def test_a_run_resumes_exactly():
    """Before bases are found, before, at and after a QR, and late."""
    whole, resumed, contents = soap(SHAPES), {}, {}
    for t in range(54):
        if t in (0, 1, 9, 10, 11, 50):
            resumed[t] = loaded(whole, whole.state_dict())
        train(whole, [t])
        contents[t] = content(whole)
    for t, optimizer in resumed.items():
        train(optimizer, range(t, t + 4))
        assert differing(content(optimizer), contents[t + 3]) == []


def test_evaluations_change_no_run():
    plain, evaluated = (soap(precondition_frequency=2) for _ in range(2))
    train(plain, range(7))
    for t in range(7):
        train(evaluated, [t])
        with evaluated.at_iterate():
            evaluated.state_dict()
    assert differing(content(plain), content(evaluated)) == []


def test_the_layout_of_a_parameter_does_not_matter():
    """Square: of a null space the products' rounding would decide."""
    plain, turned = soap([(6, 6), (6, 6)]), soap([(6, 6), (6, 6)])
    for p in helpers.params_of(turned):
        p.data = p.data.T.contiguous().T
    for optimizer in (plain, turned):
        train(optimizer, range(12))
    found, expected = helpers.values(turned), helpers.values(plain)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_narrow_parameters_have_float32_state_and_its_run():
    narrow = soap(dtype=torch.bfloat16)
    params = [nn.Parameter(p.detach().float()) for p in helpers.params_of(narrow)]
    wide = SOAP(params, LR, stack=False, lookahead=METHODS["ema"])
    for t in range(12):
        helpers.set_gradients(helpers.params_of(narrow), t)
        for p, q in zip(helpers.params_of(narrow), params, strict=True):
            q.grad = p.grad.float()
        narrow.step()
        wide.step()
        for p, q in zip(helpers.params_of(narrow), params, strict=True):
            assert bits(p.detach()) == bits(q.detach().bfloat16())
            # rounded alike, so that the next step starts at the same point
            q.data.copy_(p.detach())
            held, expected = narrow.state[p], wide.state[q]
            assert {k: bits(v) for k, v in held.items()} == {
                k: bits(v) for k, v in expected.items()
            }
            assert held["Q_L"].dtype == torch.float32


@pytest.mark.parametrize("step", [0, 4, 10])
def test_a_step_that_overflows_never_happened(step):
    """With a scaler or ``nonfinite="skip"``: at the first step, between QRs and at one."""
    plain, scaled, skipping = soap(), soap(), soap(nonfinite="skip")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    scaler.scale(torch.ones(()))
    for t in range(12):
        if t == step:
            for optimizer in (scaled, skipping):
                before = content(optimizer)
                helpers.set_gradients(helpers.params_of(optimizer), t)
                helpers.params_of(optimizer)[1].grad[0, 0] = torch.inf
                scaler.step(optimizer) if optimizer is scaled else optimizer.step()
                assert differing(content(optimizer), before) == []
            scaler.update(4.0)
        for optimizer in (plain, scaled, skipping):
            params = helpers.params_of(optimizer)
            helpers.set_gradients(params, t)
            if optimizer is scaled:
                for p in params:
                    p.grad *= 4
                scaler.step(optimizer)
                scaler.update(4.0)
            else:
                optimizer.step()
        assert differing(content(plain), content(scaled)) == []
    unlike = {path.rpartition("/")[2] for path in differing(content(plain), content(skipping))}
    assert unlike <= {"nonfinite"}


def test_gradients_may_be_unscaled_by_the_step_itself():
    """As a GradScaler has it done on a GPU; L and R are those of the plain gradients."""
    plain, scaled = soap(), soap()
    for t in range(12):
        scaler_step(plain, t, 1.0, overflow=False)
        if t in (0, 4, 10):
            before = content(scaled)
            scaler_step(scaled, t, 4.0, overflow=True)
            assert differing(content(scaled), before) == []
        scaler_step(scaled, t, 2.0**t, overflow=False)
        assert differing(content(plain), content(scaled)) == []


@pytest.mark.parametrize("step", [0, 5, 10])
def test_a_matrix_with_bad_gradients_is_lost_and_no_other(step):
    """As with AdamW; ``eigh`` of what is not finite would be an error."""
    plain, spoilt = soap([(6, 4)] * 3 + [(5,)]), soap([(6, 4)] * 3 + [(5,)])
    for t in range(13):
        for optimizer in (plain, spoilt):
            helpers.set_gradients(helpers.params_of(optimizer), t)
        if t == step:
            helpers.params_of(spoilt)[1].grad[0, 0] = torch.nan
        plain.step()
        spoilt.step()
    for i, (p, q) in enumerate(zip(*map(helpers.params_of, (plain, spoilt)), strict=True)):
        if i == 1:
            assert q.isnan().all()
        else:
            assert bits(p) == bits(q)
            assert [bits(v) for v in plain.state[p].values()] == [
                bits(v) for v in spoilt.state[q].values()
            ]


# ---- several bases in one optimizer -------------------------------------------------------------

BASES = {
    "soap": {"base": "soap", "betas": (0.9, 0.9), "precondition_frequency": 3},
    "muon": {"base": "muon", "momentum": 0.9},
    "normuon": {"base": "normuon"},
    "aurora": {"base": "aurora", "ns_steps": 2},
    "adamw": {"base": "adamw"},
}


@pytest.mark.parametrize("name", ["SOAP", "Muon", "NorMuon", "Aurora"])
def test_groups_of_any_base_are_stepped_as_by_its_own_optimizer(name):
    def params():
        return helpers.parameters(shapes=[(6, 4), (5, 5)])

    classes = {
        **{"soap": "SOAP", "muon": "Muon", "normuon": "NorMuon"},
        **{"aurora": "Aurora", "adamw": "AdamW"},
    }
    options = {"lr": LR, "lookahead": METHODS["ema"]}
    groups = [{"params": params(), "lr": LR, **own} for own in BASES.values()]
    mixed = getattr(emanest, name)(groups, **options)
    train_alike = []
    for own, group in zip(BASES.values(), mixed.param_groups, strict=True):
        cls = getattr(emanest, classes[own["base"]])
        alone = cls([{"params": params(), **own}], **options)
        train_alike.append((group, alone))
    # gradients by the place in a group
    for t in range(8):
        for group, alone in train_alike:
            helpers.set_gradients(group["params"], t)
            helpers.set_gradients(helpers.params_of(alone), t)
            alone.step()
        mixed.step()
    for group, alone in train_alike:
        assert [bits(p) for p in group["params"]] == [bits(p) for p in helpers.params_of(alone)]


def test_a_model_is_split_between_soap_and_adamw():
    groups = split_params(Model(), muon={"base": "soap", "lr": LR}, verbose=False)
    optimizer = emanest.Muon(groups, lookahead=EMANesterov(0.5, 0.9))
    train(optimizer, range(3))
    kinds = {group["base"]: group["params"] for group in optimizer.param_groups}
    assert set(kinds) == {"soap", "adamw"}
    assert all("Q_L" in optimizer.state[p] for p in kinds["soap"])
    assert all("Q_L" not in optimizer.state[p] for p in kinds["adamw"])


def test_a_basis_of_zeros_is_found_while_its_neighbour_is_kept():
    """In one batch; the one that has none waits a step, as at its first."""
    params = helpers.parameters(shapes=[(4, 4), (4, 4)])
    optimizer = SOAP(params, LR, precondition_frequency=50, weight_decay=0.0)
    train(optimizer, range(3))
    first, second = params
    for name in ("Q_L", "Q_R"):
        optimizer.state[first][name].zero_()
    # parameters are looked at anew
    optimizer.load_state_dict(optimizer.state_dict())
    before = [p.detach().clone() for p in (first, second)]
    kept = optimizer.state[second]["Q_L"].clone()
    train(optimizer, [3])
    assert torch.equal(first, before[0])
    assert not torch.equal(second, before[1])
    assert torch.equal(optimizer.state[second]["Q_L"], kept)
    basis = optimizer.state[first]["Q_L"]
    torch.testing.assert_close(basis.mT @ basis, torch.eye(4, dtype=basis.dtype))


# ---- processes ----------------------------------------------------------------------------------

# shapes and how they lie: whole everywhere, or a stack cut between its matrices
KINDS = [
    ((6, 4), Replicate()),
    ((4, 3, 2, 2), Replicate()),
    ((4, 5, 3), Shard(0)),
    ((5,), Shard(0)),
]


def run_on_a_mesh(folder):
    """As wholes, bit for bit; and from a distributed checkpoint."""
    shapes, placements = zip(*KINDS, strict=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = helpers.parameters(shapes=shapes)
    parts = spread(params, mesh, placements)

    def made(params, lr=LR):
        groups = [
            {"params": [p], "stack": len(s) == 3} for p, s in zip(params, shapes, strict=True)
        ]
        return SOAP(groups, lr, precondition_frequency=3, lookahead=METHODS["ema"])

    optimizer, plain = made(parts), made(params)
    for t in range(5):
        give_gradients(parts, params, t)
        optimizer.step()
        plain.step()
    assert differing(content_of_parts(parts, optimizer), content_of_parts(params, plain)) == []
    dcp.save(optimizer.state_dict(), checkpoint_id=folder)
    others = [nn.Parameter(p.detach().clone()) for p in parts]
    other = made(others, 1.0)
    # a fresh optimizer has no state yet to load into
    for p in others:
        p.grad = torch.zeros_like(p)
    twin = helpers.values(other)
    other.step()
    for p, value in zip(others, twin, strict=True):
        p.data.copy_(value)
    found = other.state_dict()
    dcp.load(found, checkpoint_id=folder)
    other.load_state_dict(found)
    for t in range(5, 9):
        give_gradients(parts, params, t)
        for p, q in zip(others, parts, strict=True):
            p.grad = q.grad.clone()
        for each in (optimizer, other, plain):
            each.step()
    assert differing(content_of_parts(parts, optimizer), content_of_parts(params, plain)) == []
    assert differing(content_of_parts(others, other), content_of_parts(params, plain)) == []


def test_whole_matrices_on_a_mesh_are_stepped_as_plain_ones_and_saved(tmp_path):
    ranks()(2, run_on_a_mesh, tmp_path)
