# SPDX-License-Identifier: MIT
"""DDP, FSDP2, ZeroRedundancyOptimizer and optimizer-in-backward, on real processes."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer, _apply_optimizer_in_backward
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import emanest
import fsdp
import helpers
import test_shards
from emanest import EMANesterov
from fsdp import LR, MAKERS, content, train
from helpers import METHODS, bits, differing
from ranks import ranks

EMA = METHODS["ema"]


# ---- FSDP2 --------------------------------------------------------------------------------------


def fsdp_against_one(make, methods):
    for method in methods:
        plain, module = fsdp.model(), fsdp.sharded(fsdp.model())
        optimizer, spread = MAKERS[make](plain, method), MAKERS[make](module, method)
        for t in range(6):
            for each in ((plain, optimizer), (module, spread)):
                train(*each, [t])
                with each[1].at_iterate():
                    pass
                if t == 3:
                    edit(*each)
            assert differing(content(module, spread), content(plain, optimizer)) == []


def edit(module, optimizer):
    """Write x: other values, others in the first row alone, and those that were there."""
    optimizer.eval()
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            before = p.clone()
            p.mul_(0.5)
            if i % 3:
                # which lies in one process
                first = torch.zeros(p.shape, dtype=torch.bool)
                first[0] = i % 3 == 1
                if isinstance(p, DTensor):
                    first = distribute_tensor(first, p.device_mesh, p.placements)
                p.copy_(torch.where(first, p, before))
    optimizer.train()


@pytest.mark.parametrize("make", ["adamw", "sgd", "wrap"])
def test_fsdp2_is_one_process_bit_for_bit(make):
    """With the same data everywhere; evaluations and edits included."""
    ranks()(2, fsdp_against_one, make, list(METHODS))


def test_processes_agree_on_what_was_edited():
    """Whose matrices would otherwise be put together without some of them."""
    ranks()(2, fsdp_against_one, "muon", ["nala", "gpa"])


def part_replaced():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = helpers.parameters(shapes=[(4, 3)])
    parts = test_shards.spread(params, mesh, [Shard(0)])
    pairs = [(each, helpers.adamw(each, EMA)) for each in (parts, params)]
    for t in range(4):
        test_shards.give_gradients(parts, params, t)
        for _, optimizer in pairs:
            optimizer.step()
        found, expected = (test_shards.content(*each) for each in pairs)
        assert differing(found, expected) == []
        # another tensor with the same values
        parts[0]._local_tensor = parts[0]._local_tensor.detach().clone()


def test_a_part_that_was_put_in_place_of_another_is_stepped():
    """As casts and ``load_state_dict(assign=True)`` put one there."""
    ranks()(2, part_replaced)


# ---- flags that all must agree on ---------------------------------------------------------------


def one_bad_gradient(make, policy):
    module = fsdp.sharded(fsdp.model())
    cls = {"adamw": emanest.AdamW, "muon": emanest.Muon}[make]
    groups = emanest.split_params(module, verbose=False) if make == "muon" else None
    named = list(module.named_parameters())
    optimizer = cls(groups or named, lr=LR, lookahead=EMA, nonfinite=policy)
    train(module, optimizer, range(2))
    before = content(module, optimizer)

    def spoil(t):
        if dist.get_rank() == 1:
            named[2][1].grad._local_tensor[-1] = float("nan")

    if policy == "raise":
        with pytest.raises(RuntimeError, match=r"non-finite gradient .*'2.weight'"):
            train(module, optimizer, [2], spoil)
        optimizer.zero_grad()
    else:
        train(module, optimizer, [2], spoil)
    assert differing(content(module, optimizer), before) == []
    train(module, optimizer, range(2, 4))
    return content(module, optimizer)


@pytest.mark.parametrize("make", ["adamw", "muon"])
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_bad_gradient_of_one_process_stops_all(make, policy):
    one, other = ranks()(2, one_bad_gradient, make, policy)
    assert differing(one, other) == []


def overflow_in_one():
    module = fsdp.sharded(fsdp.model())
    optimizer = helpers.adamw(module.parameters(), EMA)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for t in range(4):
        before = content(module, optimizer)
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(t))
        scaler.scale(module(inputs).square().mean()).backward()
        if t == 2 and dist.get_rank() == 1:
            next(module.parameters()).grad._local_tensor[0] = float("inf")
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert (differing(content(module, optimizer), before) == []) == (t == 2)
    return content(module, optimizer)


def test_a_gradient_scaler_skips_in_all_processes():
    one, other = ranks()(2, overflow_in_one)
    assert differing(one, other) == []


# ---- DDP ----------------------------------------------------------------------------------------


def ddp(make, method):
    torch.manual_seed(dist.get_rank())
    module = DistributedDataParallel(fsdp.model(seed=dist.get_rank()), gradient_as_bucket_view=True)
    optimizer = MAKERS[make](module, method)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for t in range(50):
        module(torch.randn(4, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if t % 10 == 9:
            with optimizer.at_iterate():
                pass
    return content(module, optimizer)


@pytest.mark.parametrize(
    ("make", "method"), [("adamw", "ema"), ("sgd", "gpa"), ("wrap", "snoo"), ("muon", "ema")]
)
def test_ddp_keeps_processes_equal_over_50_steps(make, method):
    """From different data, and weights that are broadcast before the first step."""
    one, other = ranks()(2, ddp, make, method)
    assert differing(one, other) == []


# ---- ZeroRedundancyOptimizer --------------------------------------------------------------------


def zero(make, method):
    plain, module = fsdp.model(), fsdp.model()
    optimizer = MAKERS[make](plain, method)
    cls = type(optimizer)
    options = {k: v for k, v in optimizer.defaults.items() if k in ("lr", "betas", "weight_decay")}
    groups = module.parameters()
    if make == "muon":
        # it takes no names
        groups = fsdp.groups_of(module)
        groups = [{**g, "params": [p for _, p in g["params"]]} for g in groups]
    spread = ZeroRedundancyOptimizer(groups, cls, lookahead=METHODS[method], **options)
    both = [list(m.parameters()) for m in (module, plain)]
    for t in range(7):
        train(plain, optimizer, [t])
        train(module, spread, [t])
        assert list(map(bits, both[0])) == list(map(bits, both[1]))
        # each process has the x of its part, and hands it out
        with spread.optim.at_iterate(), optimizer.at_iterate():
            spread._sync_params()
            assert list(map(bits, both[0])) == list(map(bits, both[1]))
        spread._sync_params()
        assert list(map(bits, both[0])) == list(map(bits, both[1]))
    spread.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        states = spread.state_dict()["state"], optimizer.state_dict()["state"]
        found, expected = ({(i, k): bits(v) for i in s for k, v in s[i].items()} for s in states)
        assert differing(found, expected) == []


@pytest.mark.parametrize(("make", "method"), [*[("adamw", m) for m in METHODS], ("muon", "ema")])
def test_zero_redundancy_is_one_process_bit_for_bit(make, method):
    ranks()(2, zero, make, method)


# ---- optimizer-in-backward ----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_stepping_in_backward_is_the_normal_loop(method):
    options = {"lr": LR, "betas": (0.0, 0.99), "lookahead": METHODS[method]}
    plain, module = fsdp.model(), fsdp.model()
    optimizer = emanest.AdamW(plain.parameters(), **options)
    _apply_optimizer_in_backward(emanest.AdamW, module.parameters(), options)
    each = [o for p in module.parameters() for o in p._in_backward_optimizers]
    for t in range(7):
        train(plain, optimizer, [t])
        inputs = torch.Generator().manual_seed(t)
        x, y = torch.randn(4, 6, generator=inputs), torch.randn(4, 3, generator=inputs)
        nn.functional.mse_loss(module(x), y).backward()
        for own in each:
            with own.at_iterate():
                pass
        assert all(p.grad is None for p in module.parameters())
        assert [bits(p) for p in module.parameters()] == [bits(p) for p in plain.parameters()]


# ---- what cannot work says so -------------------------------------------------------------------


def on_two_dimensions():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    module = fully_shard(fsdp.model(), mesh=mesh)
    groups = emanest.split_params(module, verbose=False)
    with pytest.raises(ValueError, match=r"a mesh of 2 dimensions: .* 1-D meshes only"):
        emanest.Muon(groups, lr=LR)
    # element by element it makes no difference
    plain = fsdp.model()
    pairs = [(m, helpers.adamw(m.parameters(), EMA)) for m in (plain, module)]
    for t in range(4):
        for each in pairs:
            train(*each, [t])
    assert differing(content(*pairs[1]), content(*pairs[0])) == []


def test_on_two_dimensional_meshes_muon_is_refused_and_adamw_is_not():
    ranks()(4, on_two_dimensions)


def flattened(use_orig_params):
    module = FullyShardedDataParallel(
        fsdp.model(), use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    with pytest.raises(ValueError, match=r"flattened to shape .* by FSDP1.*fully_shard \(FSDP2\)"):
        emanest.Muon(module.parameters(), lr=LR)
    # element by element it makes no difference
    plain = fsdp.model()
    optimizer = helpers.adamw(plain.parameters(), EMA)
    flat = helpers.adamw(module.parameters(), EMA)
    for t in range(4):
        train(plain, optimizer, [t])
        train(module, flat, [t])
    pieces = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, [p.detach().flatten() for p in module.parameters()])
    # of each parameter the pieces follow each other; padding comes last
    whole = helpers.flat(plain.parameters())
    found = helpers.flat(piece for each in zip(*pieces, strict=True) for piece in each)
    assert bits(found[: len(whole)]) == bits(whole)


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused_by_muon_and_not_by_adamw(use_orig_params):
    ranks()(2, flattened, use_orig_params)


def partial_sums():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    optimizer = emanest.SGD([p], lr=LR)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="partial sum cannot be stepped; redistribute"):
        optimizer.step()
    assert len(optimizer.state) == 0


def test_partial_sums_are_refused():
    ranks()(2, partial_sums)


def other_placements():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    values, gradient = torch.randn(4, 6), torch.randn(4, 6)
    p = nn.Parameter(distribute_tensor(values.clone(), mesh, [Shard(0)]))
    q = nn.Parameter(values.clone())
    spread, plain = (emanest.AdamW([each], lookahead=EMANesterov()) for each in (p, q))
    for placement in (Shard(1), Replicate(), Shard(0)):
        p.grad = distribute_tensor(gradient.clone(), mesh, [placement])
        q.grad = gradient
        spread.step()
        plain.step()
        assert bits(p.detach().full_tensor()) == bits(q)


def test_a_gradient_that_lies_otherwise_than_its_parameter_is_brought_there():
    ranks()(2, other_placements)
