# SPDX-License-Identifier: MIT
"""``Wrap`` in a training loop: what the inner optimizer sees, checkpoints, groups, memory."""

import copy
import gc
import io

import pytest
import torch
from torch import nn, optim

import helpers
from emanest import EMANesterov, Lookahead, ScheduleFree, Wrap
from helpers import METHODS, content, differing, params_of, run, same, set_gradients

# not on every machine with a GPU, where the tests marked so run alone
other = pytest.importorskip("pytorch_optimizer")

LR = 0.05
SHAPES = [(4, 4), (8,)]

each_method = pytest.mark.parametrize("method", METHODS)


def parameters():
    return helpers.parameters(shapes=SHAPES)


def adamw(params, method=None, **options):
    beta1 = 0.0 if isinstance(method, ScheduleFree) else 0.9
    return optim.AdamW(params, lr=LR, betas=(beta1, 0.99), **options)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are tiny: threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- what the inner optimizer sees --------------------------------------------------------------


@each_method
def test_state_is_added_after_the_inner_optimizer_has_begun(method):
    """An optimizer of torch initialises a parameter only if its state is empty."""
    first, late, frozen = helpers.parameters(shapes=[(4,), (3,), (2,)])
    frozen.requires_grad_(False)
    inner = adamw([first, late, frozen], METHODS[method])
    optimizer = Wrap(inner, METHODS[method])
    seen = []
    inner.register_step_pre_hook(lambda *_: seen.append({p: [*s] for p, s in inner.state.items()}))
    for toggle in (optimizer.eval, optimizer.train, optimizer.state_dict, optimizer.resync):
        toggle()
    assert repr(optimizer)
    assert not inner.state
    for t in range(4):
        first.grad, late.grad = torch.ones(4), torch.ones(3) if t else None
        optimizer.step()
    assert not seen[0]
    assert late not in seen[1]
    assert "exp_avg" in seen[1][first]
    assert frozen not in inner.state
    assert inner.state[late]["step"] == len(seen) - 1


def test_nala_takes_the_raw_step_alone():
    """Each outer step has ``every`` steps of the inner optimizer and one that is not its own."""
    optimizer = Wrap([adamw([p]) for p in parameters()], METHODS["nala"])
    called = [[], []]
    for inner, steps in zip(optimizer.optimizers, called, strict=True):
        inner.register_step_pre_hook(lambda *_, steps=steps: steps.append(t))
    for t in range(12):
        set_gradients(params_of(optimizer), t)
        if t == 7:
            # misses the raw step: its next gradient is the raw one, beside a base step
            params_of(optimizer)[1].grad = None
        grads = [p.grad for p in params_of(optimizer)]
        optimizer.step()
        assert all(p.grad is g for p, g in zip(params_of(optimizer), grads, strict=True))
    assert called[0] == [t for t in range(12) if t not in (3, 7, 11)]
    # at 7 without a gradient, which does nothing
    assert called[1] == [t for t in range(12) if t not in (3, 8, 11)]
    counts = [int(optimizer.state[p]["step"]) for p in params_of(optimizer)]
    assert counts == [9, 8]


@each_method
def test_sparse_gradients_are_the_inner_optimizers_affair(method):
    def embedding(sparse):
        table = nn.Embedding(6, 3, sparse=sparse)
        with torch.no_grad():
            table.weight.copy_(torch.arange(18.0).reshape(6, 3) / 18)
        return table, Wrap(optim.SGD(table.parameters(), lr=LR), METHODS[method])

    (sparse, first), (dense, second) = embedding(True), embedding(False)
    for t in range(12):
        for table, optimizer in ((sparse, first), (dense, second)):
            optimizer.zero_grad()
            # no row twice: sums of several gradients may be taken in any order
            table(torch.tensor([t % 6, (t + 2) % 6])).square().sum().backward()
            optimizer.step()
        assert torch.equal(sparse.weight, dense.weight)


@each_method
def test_writes_through_data_are_seen_after_resync(method):
    written, told = (Wrap(adamw(parameters(), METHODS[method]), METHODS[method]) for _ in range(2))
    for optimizer in (written, told):
        run(optimizer, range(5))
    with torch.no_grad():
        for p in params_of(written):
            p.mul_(0.5)
    for p in params_of(told):
        p.data = p.data * 0.5
    told.resync()
    if method not in helpers.ALONG:
        for optimizer in (written, told):
            set_gradients(params_of(optimizer), 5)
            with pytest.warns(UserWarning, match="restarts from their new values"):
                optimizer.step()
    for optimizer in (written, told):
        run(optimizer, range(6, 12))
    assert differing(content(written), content(told)) == []


# ---- state --------------------------------------------------------------------------------------

# what torch and other packages keep beside plain moments
UNUSUAL = {
    "ADOPT": lambda params: other.ADOPT(params, lr=LR),
    "Muon": lambda params: optim.Muon(params[:1], lr=LR),
    "NorMuon": lambda params: other.NorMuon([{"params": params[:1], "use_muon": True}], lr=LR),
    "Prodigy": other.Prodigy,
    "SOAP": lambda params: other.SOAP(params, lr=LR, precondition_frequency=3),
    "SPAM": lambda params: other.SPAM(params, lr=LR, update_proj_gap=4),
    "Shampoo": lambda params: other.Shampoo(params, lr=LR, preconditioning_compute_steps=3),
}


def reread(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("inner", UNUSUAL)
def test_any_inner_optimizer_resumes_exactly(inner, mode):
    first, second = (Wrap(UNUSUAL[inner](parameters()), METHODS["ema"]) for _ in range(2))
    run(first, range(7))
    getattr(first, mode)()
    with torch.no_grad():
        torch._foreach_copy_(params_of(second), params_of(first))
    second.load_state_dict(reread(first.state_dict()))
    for optimizer in (first, second):
        optimizer.train()
        run(optimizer, range(7, 14))
    assert differing(content(first), content(second)) == []


def wrapped_warm(saved, method):
    inner = adamw(parameters(), method)
    inner.load_state_dict(copy.deepcopy(saved))
    return Wrap(inner, method)


def loaded(saved, method):
    optimizer = Wrap(adamw(parameters(), method), method)
    optimizer.load_state_dict(saved)
    return optimizer


def loaded_inside(saved, method):
    optimizer = Wrap(adamw(parameters(), method), method)
    run(optimizer, range(3))
    optimizer.optimizers[0].load_state_dict(copy.deepcopy(saved))
    return optimizer


@each_method
@pytest.mark.parametrize("load", [loaded, loaded_inside])
@pytest.mark.filterwarnings("ignore:emanest. the checkpoint has no lookahead state")
@pytest.mark.filterwarnings("ignore:emanest. .* restarts from their new values")
def test_a_checkpoint_of_the_inner_optimizer_starts_the_lookahead(method, load):
    """However it gets in, as if the optimizer that wrote it had been wrapped."""
    method = METHODS[method]
    bare = adamw(parameters(), method)
    run(bare, range(5))
    optimizers = [make(bare.state_dict(), method) for make in (wrapped_warm, load)]
    for optimizer in optimizers:
        with torch.no_grad():
            torch._foreach_copy_(params_of(optimizer), params_of(bare))
        run(optimizer, range(5, 12))
    assert same(*optimizers)


@each_method
def test_state_is_as_small_as_stated(method):
    """AdamW's two values, the method's, two clocks of 12 bytes together; one snapshot beside it."""
    method = METHODS[method]
    params = parameters()
    inner = adamw(params, method)
    set_gradients(params, 0)
    before = live_bytes()
    optimizer = Wrap(inner, method)
    optimizer.step()
    values = sum(p.numel() for p in params)
    own = len(method.state)
    steps = 4 * len(params)
    assert live_bytes() - before == 4 * values * (2 + own + 1) + steps + 12 * len(params)
    for entries in optimizer.state_dict()["state"].values():
        tensors = [v for v in entries.values() if v.dim()]
        assert len(tensors) == 2 + own
        assert entries.keys() == {
            *("step", "exp_avg", "exp_avg_sq", "lookahead", "lookahead_step"),
            *(f"lookahead_{name}" for name in method.state),
        }


def live_bytes():
    gc.collect()
    # not isinstance, which would wake up lazy objects of torch, nor fake tensors of its compiler
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


def test_groups_are_those_of_the_inner_optimizers():
    inner = [adamw([p]) for p in parameters()]
    optimizer = Wrap(inner, EMANesterov())
    inner[1].load_state_dict(inner[1].state_dict())  # torch makes new dicts
    groups = [group for each in inner for group in each.param_groups]
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    assert isinstance(optimizer, optim.Optimizer)


def test_a_group_may_have_a_method_of_its_own_or_none():
    params = helpers.parameters(shapes=[(4,), (4,), (4,)])
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "lookahead": Lookahead(2, 0.3)},
        {"params": params[2:], "lookahead": None},
    ]
    optimizer = Wrap(optim.SGD(groups, lr=LR), EMANesterov(0.5, 0.9))
    alone = helpers.parameters(shapes=[(4,), (4,), (4,)])
    expected = [
        Wrap(optim.SGD(alone[:1], lr=LR), EMANesterov(0.5, 0.9)),
        Wrap(optim.SGD(alone[1:2], lr=LR), Lookahead(2, 0.3)),
        optim.SGD(alone[2:], lr=LR),
    ]
    for t in range(8):
        run(optimizer, [t])
        set_gradients(alone, t)
        for each in expected:
            each.step()
    assert [helpers.bits(p) for p in params] == [helpers.bits(p) for p in alone]
