"""A step that cannot be taken says why and changes nothing; afterwards training goes on."""

import pytest
import torch
from torch import nn

from emanest import SGD, SNOO, AdamW, EMANesterov, Wrap
from helpers import content, differing


def parameter(*shape, **options):
    return nn.Parameter(torch.ones(*(shape or (3,)), **options))


def ready(lookahead=None, steps=2, **options):
    """An optimizer of two groups after some steps, with gradients for the next."""
    groups = [{"params": [parameter(4), parameter(2, 3)]}, {"params": [parameter()], "lr": 0.02}]
    optimizer = AdamW(groups, lr=0.01, lookahead=lookahead or EMANesterov(0.5, 0.9), **options)
    for _ in range(steps):
        give_gradients(optimizer)
        optimizer.step()
    give_gradients(optimizer)
    return optimizer


def give_gradients(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, 0.5)


def sparse(optimizer):
    p = optimizer.param_groups[1]["params"][0]
    p.grad = torch.ones(3).to_sparse()


def entry(index, key, value):
    def spoil(optimizer):
        optimizer.param_groups[index][key] = value

    return spoil


def not_finite(optimizer):
    for group in optimizer.param_groups:
        group["nonfinite"] = "raise"
    optimizer.param_groups[0]["params"][1].grad[0, 0] = torch.nan


def reshape(optimizer):
    p = optimizer.param_groups[0]["params"][1]
    p.grad = None
    p.data = torch.ones(5)
    p.grad = torch.ones(5)


def eval_mode(optimizer):
    optimizer.eval()


# what goes wrong -> error
SPOILS = {
    "sparse": (sparse, RuntimeError, "AdamW does not support sparse gradients: parameter 0 of gr"),
    "lr text": (entry(1, "lr", "0.1"), TypeError, "lr of group 1 must be a float.*got '0.1'"),
    "lr nan": (entry(1, "lr", torch.nan), ValueError, "Invalid learning rate: nan .lr of group 1"),
    "lr negative": (entry(0, "lr", -1.0), ValueError, "Invalid learning rate: -1.0 .lr of group 0"),
    "stepsize": (entry(0, "lookahead_stepsize", 3.0), ValueError, "stepsize must be in .*got 3.0"),
    "decay": (entry(1, "lookahead_decay", 1.0), ValueError, r"decay must be in \[0, 1\), got 1.0"),
    "method": (entry(1, "lookahead", "ema"), ValueError, "lookahead must be one of .*got 'ema'"),
    "callable": (
        entry(1, "lookahead_stepsize", lambda t: 7.0),
        ValueError,
        r"stepsize\(3\) must be in .*got 7.0",
    ),
    "callable of text": (
        entry(1, "lookahead_stepsize", lambda t: "far"),
        TypeError,
        r"stepsize\(3\) must be a number, got 'far'",
    ),
    "not finite": (not_finite, RuntimeError, "non-finite gradient.*parameter 1 of group 0"),
    "shape": (reshape, RuntimeError, r"changed shape from \(2, 3\) to \(5,\)"),
    "eval mode": (eval_mode, RuntimeError, r"step\(\) in eval mode.*call train\(\)"),
}


@pytest.mark.parametrize(("spoil", "error", "match"), SPOILS.values(), ids=SPOILS)
def test_a_step_that_cannot_be_taken_changes_nothing(spoil, error, match):
    optimizer = ready()
    spoil(optimizer)
    before = content(optimizer)
    with pytest.raises(error, match=match):
        optimizer.step()
    assert differing(content(optimizer), before) == []


@pytest.mark.parametrize("spoil", [s for s, *_ in SPOILS.values() if s not in (reshape,)])
def test_the_first_step_that_fails_leaves_no_state(spoil):
    optimizer = ready(steps=0)
    if spoil is not eval_mode:
        spoil(optimizer)
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("name", ["sparse", "lr nan", "stepsize", "not finite", "eval mode"])
def test_training_goes_on_after_a_refused_step(name):
    optimizer, plain = ready(), ready()
    groups = [dict(g) for g in optimizer.param_groups]
    SPOILS[name][0](optimizer)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        optimizer.step()
    optimizer.train()
    for group, old in zip(optimizer.param_groups, groups, strict=True):
        group.update({k: old[k] for k in ("lr", "lookahead_stepsize", "nonfinite")})
    for each in (optimizer, plain):
        give_gradients(each)
        each.step()
    assert differing(content(optimizer), content(plain)) == []


def test_a_closure_that_is_not_callable_changes_nothing():
    optimizer = ready()
    before = content(optimizer)
    with pytest.raises(TypeError, match="not callable"):
        optimizer.step(closure=3)
    assert differing(content(optimizer), before) == []


def test_parameters_on_the_meta_device_are_refused_at_the_step():
    p = parameter(device="meta")
    optimizer = AdamW([p])
    p.grad = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError, match="on the meta device: materialise the model"):
        optimizer.step()


def test_inference_tensors_are_refused_at_the_step():
    with torch.inference_mode():
        p = torch.ones(3)
    optimizer = AdamW([p])
    with torch.inference_mode():
        p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"made in inference mode.*clone\(\)"):
        optimizer.step()


@pytest.mark.parametrize("make", [AdamW, SGD, lambda g: Wrap(torch.optim.SGD(g), SNOO(3))])
def test_parameters_that_share_memory_are_refused(make):
    whole = torch.ones(10)
    first, second = nn.Parameter(whole[:6]), nn.Parameter(whole[4:])
    optimizer = make([{"params": [first]}, {"params": [second]}])
    first.grad, second.grad = torch.ones(6), torch.ones(6)
    with pytest.raises(ValueError, match=r"shapes \(6,\) and \(6,\) share memory"):
        optimizer.step()
    assert torch.equal(whole, torch.ones(10))
    assert not optimizer.state


def test_parts_of_one_tensor_that_do_not_overlap_are_fine():
    whole = torch.ones(10)
    parts = [nn.Parameter(whole[:6]), nn.Parameter(whole[6:])]
    columns = torch.ones(4, 4)
    parts += [nn.Parameter(columns[:, :2]), nn.Parameter(columns[:, 2:])]
    optimizer = SGD(parts, lr=0.5)
    for p in parts:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(whole, torch.full((10,), 0.5))
    assert torch.equal(columns, torch.full((4, 4), 0.5))
