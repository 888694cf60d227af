# SPDX-License-Identifier: MIT
"""Parameters that are matrices of unlike size below each other: queries, keys and values."""

import io

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import helpers
from emanest import SOAP, Aurora, EMANesterov, Muon, NorMuon
from helpers import METHODS, bits, content, differing, one_thread  # noqa: F401
from helpers import run as train
from muon_runs import each_backend
from ranks import ranks
from test_shards import content as content_of_parts
from test_shards import give_gradients, spread, whole

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = {"Muon": Muon, "NorMuon": NorMuon, "Aurora": Aurora, "SOAP": SOAP}
LR = 0.05
each_class = pytest.mark.parametrize("name", CLASSES)
of_muon = pytest.mark.parametrize("name", ["Muon", "NorMuon"])

# tall and wide blocks, whose scales differ; equal ones beside each other and apart
SPLIT = (12, 4, 4)
RUNS = {
    "queries, keys and values": ({}, SPLIT, [(20, 8), (20, 8)]),
    "the larger last": ({}, (4, 12, 4), [(20, 8), (20, 5)]),
    "a kernel": ({}, (5, 1), [(6, 3, 2, 2)]),
    "a scale that is not one": ({"adjust_lr_fn": "match_rms_adamw"}, SPLIT, [(20, 8)]),
    "a stack": ({"stack": True}, SPLIT, [(3, 20, 8), (1, 20, 8), (20, 8)]),
    "a stack of none": ({"stack": True}, SPLIT, [(0, 20, 8), (2, 20, 8)]),
    "a stack of kernels": ({"stack": True}, (5, 1), [(2, 6, 3, 2)]),
}
# of SOAP alone: a side without bases in some blocks, in others not
SHORT = {"max_precond_dim": 8, "precondition_frequency": 2}


def options_of(name, options):
    others = {k: v for k, v in options.items() if k != "adjust_lr_fn"}
    return {**others, **SHORT} if name == "SOAP" else options


def blocks(tensor, split, stack):
    """What a parameter's tensor has for each of its matrices."""
    members = tensor.unbind() if stack and tensor.dim() > 2 else [tensor]
    return [block for member in members for block in member.split(list(split))]


@pytest.mark.parametrize("run", RUNS)
@each_backend
@each_class
def test_each_block_is_stepped_as_a_parameter_of_its_own(name, backend, run):
    options, split, shapes = RUNS[run]
    stack = options.get("stack", False)
    fused = helpers.parameters(shapes=shapes)
    alone = [nn.Parameter(b.clone()) for p in fused for b in blocks(p.detach(), split, stack)]
    options = {**options_of(name, options), "lookahead": METHODS["ema"], "backend": backend}
    one = CLASSES[name](fused, LR, split=split, **{"stack": False, **options})
    many = CLASSES[name](alone, LR, **{**options, "stack": False})
    for t in range(5):
        helpers.set_gradients(fused, t)
        grads = [b.clone() for p in fused for b in blocks(p.grad, split, stack)]
        for p, g in zip(alone, grads, strict=True):
            p.grad = g
        one.step()
        many.step()
    found = [b for p in fused for b in blocks(p.detach(), split, stack)]
    assert [bits(b) for b in found] == [bits(p) for p in alone]
    names = {"exp_avg", "exp_avg_sq"} if name == "SOAP" else {"momentum_buffer"}
    names |= {"second_momentum_buffer"} if name == "NorMuon" else set()
    for key in names | {"exp_avg_update"}:
        held = [b for p in fused for b in blocks(one.state[p][key], split, stack)]
        assert [bits(b) for b in held] == [bits(many.state[p][key]) for p in alone]


@each_backend
@each_class
def test_matrices_beside_them_are_stepped_as_before(name, backend):
    """Of another group that is iterated together with theirs, and of blocks of their size."""
    (fused,), plain = (
        helpers.parameters(shapes=[(20, 8)]),
        helpers.parameters(shapes=[(12, 8), (4, 8)]),
    )
    alone = [nn.Parameter(p.detach().clone()) for p in plain]
    groups = [{"params": [fused], "split": SPLIT}, {"params": plain}]
    options = {"lookahead": METHODS["ema"], "backend": backend}
    one, other = CLASSES[name](groups, LR, **options), CLASSES[name](alone, LR, **options)
    for t in range(4):
        helpers.set_gradients([*plain, fused], t)
        for p, q in zip(alone, plain, strict=True):
            p.grad = q.grad.clone()
        one.step()
        other.step()
    assert [bits(p) for p in plain] == [bits(p) for p in alone]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("stack", [False, True])
@each_class
def test_larger_blocks_on_any_device_are_stepped_alike(name, stack, device):
    """But for the products, which may round by the size of a batch on a GPU."""
    split, shapes = (96, 32, 32), [(3, 160, 64) if stack else (160, 64)] * 2
    start = helpers.parameters(shapes=shapes)
    fused = [nn.Parameter(p.detach().to(device)) for p in start]
    alone = [nn.Parameter(b.clone()) for p in fused for b in blocks(p.detach(), split, stack)]
    options = {} if name == "SOAP" else {"ns_dtype": "float32"}
    one = CLASSES[name](fused, LR, split=split, stack=stack, **options)
    many = CLASSES[name](alone, LR, stack=False, **options)
    for t in range(4):
        for p, g in zip(fused, helpers.gradients(start, t), strict=True):
            p.grad = g.to(device)
        grads = [b.clone() for p in fused for b in blocks(p.grad, split, stack)]
        for p, g in zip(alone, grads, strict=True):
            p.grad = g
        one.step()
        many.step()
    found = [b for p in fused for b in blocks(p.detach(), split, stack)]
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)


@each_class
def test_equal_blocks_are_those_of_an_integer(name):
    """Whatever form the sequence has; state has the same shapes, too."""
    forms = [3, (4, 4, 4), [4, 4, 4], np.array([4, 4, 4])]
    found = [helpers.parameters(shapes=[(12, 8)]) for _ in forms]
    made = [CLASSES[name](p, LR, split=form) for p, form in zip(found, forms, strict=True)]
    for optimizer in made:
        train(optimizer, range(4))
    assert [o.param_groups[0]["split"] for o in made] == [3, *[(4, 4, 4)] * 3]
    for other in made[1:]:
        assert all("/split" in path for path in differing(content(made[0]), content(other)))


def test_state_of_unequal_blocks_lies_one_after_the_other():
    def shapes(shape, **options):
        (p,) = helpers.parameters(shapes=[shape])
        optimizer = SOAP([p], LR, **options)
        train(optimizer, range(1))
        return [tuple(optimizer.state[p][name].shape) for name in ("L", "Q_L", "R", "Q_R")]

    left, right = 12**2 + 2 * 4**2, 3 * 8**2
    assert shapes((20, 8), split=SPLIT) == [(left,)] * 2 + [(right,)] * 2
    assert shapes((3, 20, 8), split=SPLIT, stack=True) == [(3, left)] * 2 + [(3, right)] * 2
    short = shapes((20, 8), split=SPLIT, max_precond_dim=8)
    assert short == [(2 * 4**2,)] * 2 + [(right,)] * 2


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "error", "message"),
    [
        ((12, 4), ValueError, r"split=\(12, 4\) has 16 rows, but parameter 0 of group 0, \(20, 8\),"
         " has 20: give a number of rows for each block, or an integer"),
        ((12, 4, 4, 4), ValueError, r"split=\(12, 4, 4, 4\) has 24 rows, but .* has 20"),
        ((16, 4, 0), ValueError, r"split\[2\] must be at least 1, got 0"),
        ((24, -4), ValueError, r"split\[1\] must be at least 1, got -4"),
        ((16.0, 4), TypeError, r"split\[0\] must be an integer, got 16.0 \(float\)"),
        ((True, 19), TypeError, r"split\[0\] must be an integer, got True \(bool\)"),
        ((), ValueError, r"split must have a number of rows for each block, got \(\)"),
        ("12,4,4", TypeError, "split must be an integer or a sequence of numbers of rows, such as "
         r"\(q, kv, kv\), got '12,4,4' \(str\)"),
        (None, TypeError, "split must be an integer or a sequence"),
        (2.0, TypeError, "split must be an integer or a sequence"),
        ({12, 8}, TypeError, "split must be an integer or a sequence"),
    ],
)  # fmt: skip
@each_class
def test_bad_blocks_are_named_and_change_nothing(name, split, error, message):
    params = helpers.parameters(shapes=[(20, 8)])
    with pytest.raises(error, match=message):
        CLASSES[name](params, LR, split=split)
    optimizer = CLASSES[name](params, LR, split=SPLIT)
    train(optimizer, range(2))
    before = content(optimizer)
    (late,) = helpers.parameters(shapes=[(20, 8)])
    with pytest.raises(error, match=message.replace("group 0", "group 1")):
        optimizer.add_param_group({"params": [late], "split": split})
    group = optimizer.param_groups[0]
    group["split"] = split
    with pytest.raises(error, match=message.replace("parameter 0 of group 0", "a parameter")):
        train(optimizer, [2])
    group["split"] = SPLIT
    assert differing(content(optimizer), before) == []
    train(optimizer, [2])


@of_muon
def test_blocks_may_change_between_steps(name):
    """State has the shape of the parameter, or of its rows; here it remembers nothing."""
    options = {"momentum": 0.0, **({"beta2": 0.0} if name == "NorMuon" else {})}
    changed, fresh = (helpers.parameters(shapes=[(20, 8)]) for _ in range(2))
    optimizer = CLASSES[name](changed, LR, split=SPLIT, **options)
    train(optimizer, range(2))
    fresh[0].data.copy_(changed[0].data)
    # a list, as a user would set it
    optimizer.param_groups[0]["split"] = [4, 16]
    train(optimizer, [2])
    assert optimizer.param_groups[0]["split"] == (4, 16)
    train(CLASSES[name](fresh, LR, split=(4, 16), **options), [2])
    assert bits(fresh[0]) == bits(changed[0])


@pytest.mark.parametrize("split", [(4, 12, 4), (10, 10), 2, 5])
def test_what_state_is_shaped_by_does_not_change(split):
    optimizer = SOAP(helpers.parameters(shapes=[(20, 8)]), LR, split=SPLIT)
    train(optimizer, range(2))
    before = content(optimizer)
    optimizer.param_groups[0]["split"] = split
    with pytest.raises(ValueError, match=r"split=.* made with another: set it back"):
        train(optimizer, [2])
    optimizer.param_groups[0]["split"] = SPLIT
    assert differing(content(optimizer), before) == []
    train(optimizer, [2])


# ---- checkpoints --------------------------------------------------------------------------------


def written(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_class
def test_a_run_resumes_exactly(name):
    shapes = [(20, 8), (3, 20, 8)]

    def made(split):
        params, lookahead = helpers.parameters(shapes=shapes), EMANesterov(0.5, 0.9)
        options = options_of(name, {"stack": True})
        return CLASSES[name](params, LR, split=split, lookahead=lookahead, **options)

    # what was saved replaces what was said
    whole_run, first, second = made(SPLIT), made(SPLIT), made(2)
    train(whole_run, range(6))
    train(first, range(3))
    for p, q in zip(*map(helpers.params_of, (second, first)), strict=True):
        p.data.copy_(q.data)
    second.load_state_dict(written(first))
    train(second, range(3, 6))
    assert differing(content(whole_run), content(second)) == []


@each_class
def test_a_checkpoint_with_an_integer_still_loads(name):
    """Also where the new optimizer says the same with a sequence; the integer comes back."""
    old, new = (
        CLASSES[name](helpers.parameters(shapes=[(12, 8)]), LR, split=split)
        for split in (3, (4, 4, 4))
    )
    train(old, range(3))
    for p, q in zip(*map(helpers.params_of, (new, old)), strict=True):
        p.data.copy_(q.data)
    new.load_state_dict(written(old))
    for each in (old, new):
        train(each, range(3, 5))
    assert differing(content(old), content(new)) == []


@each_class
def test_a_checkpoint_whose_blocks_do_not_fit_is_refused(name):
    saved, mine = (
        CLASSES[name](helpers.parameters(shapes=[(20, 8)]), LR, split=split)
        for split in (SPLIT, (10, 10))
    )
    train(saved, range(2))
    state = written(saved)
    state["param_groups"][0]["split"] = (12, 4)
    before = content(mine)
    with pytest.raises(ValueError, match=r"split=\(12, 4\) has 16 rows"):
        mine.load_state_dict(state)
    assert differing(content(mine), before) == []


# ---- many processes -----------------------------------------------------------------------------

# cut in the middle of a block, between blocks, along columns, not at all
SPREAD = [((20, 8), Shard(0)), ((20, 6), Shard(0)), ((20, 8), Shard(1)), ((20, 8), Replicate())]
STACKS = [((4, 20, 8), Shard(0)), ((2, 20, 6), Shard(1)), ((3, 20, 8), Shard(2)),
          ((2, 20, 8), Replicate()), ((20, 8), Shard(0))]  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def step_on_shards(name, folder):
    """What the processes leave as wholes, checked against one process without ``DTensor``."""
    return [step_some(name, *each, folder) for each in ((SPREAD, {}), (STACKS, {"stack": True}))]


def step_some(name, kinds, options, folder):
    shapes, placements = zip(*kinds, strict=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = helpers.parameters(shapes=shapes)
    parts = spread(params, mesh, placements)
    # scales of each block, which differ
    options = {**options, "split": SPLIT, "ns_dtype": "float32", "lookahead": METHODS["ema"]}
    sharded, plain = (CLASSES[name](each, LR, **options) for each in (parts, params))
    for t in range(3):
        give_gradients(parts, params, t)
        sharded.step()
        plain.step()
    with torch.no_grad():
        for p, q in zip(parts, params, strict=True):
            torch.testing.assert_close(whole(p), q.detach(), **CLOSE)
    found = content_of_parts(parts, sharded)
    again = CLASSES[name](parts, LR, **{**options, "split": 1})
    where = f"{folder}/{len(shapes)}"
    dcp.save({"optimizer": sharded.state_dict()}, checkpoint_id=where)
    state = again.state_dict()
    for key, entries in sharded.state_dict()["state"].items():
        state["state"][key] = {k: empty(v) for k, v in entries.items()}
    state = {"optimizer": state}
    dcp.load(state, checkpoint_id=where)
    again.load_state_dict(state["optimizer"])
    assert again.param_groups[0]["split"] == SPLIT
    assert differing(content_of_parts(parts, again), found) == []
    return found


def empty(value):
    return torch.zeros_like(value) if isinstance(value, (torch.Tensor, DTensor)) else value


@pytest.mark.parametrize("name", ["Muon", "NorMuon", "Aurora"])
def test_the_number_of_processes_does_not_matter(name, tmp_path):
    """Bit for bit; one process on whole matrices differs by rounding. Saved and loaded there."""
    one, *others = (
        ranks()(world, step_on_shards, name, str(tmp_path / str(world))) for world in (1, 2, 4)
    )
    for runs in (runs for world in others for runs in world):
        for found, expected in zip(runs, one[0], strict=True):
            assert differing(found, expected) == []


def soap_on_shards():
    """Matrices that lie here as wholes have the bits of one process."""
    kinds = [((20, 8), Replicate()), ((4, 20, 8), Shard(0)), ((1, 20, 8), Shard(0))]
    shapes, placements = zip(*kinds, strict=True)
    params = helpers.parameters(shapes=shapes)
    parts = spread(params, init_device_mesh("cpu", (dist.get_world_size(),)), placements)
    sharded, plain = (
        SOAP(each, LR, split=SPLIT, stack=True, precondition_frequency=2)
        for each in (parts, params)
    )
    for t in range(4):
        give_gradients(parts, params, t)
        sharded.step()
        plain.step()
    assert differing(content_of_parts(parts, sharded), content_of_parts(params, plain)) == []


def test_whole_matrices_on_a_mesh_have_the_bits_of_one_process():
    ranks()(2, soap_on_shards)
