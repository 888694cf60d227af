# SPDX-License-Identifier: MIT
"""What goes wrong with the authors' wrapper, each shown not to happen here."""

import copy
import inspect
import math

import pytest
import torch
from torch import nn

import emanest
from bad_input import EMA, EVERY, make, matrices, ready
from emanest import EMANesterov, Wrap
from helpers import LR, bits, content, differing, gradients, params_of, run, set_gradients, values
from test_split import Model

each = pytest.mark.parametrize("name", EVERY)


def own(name):
    """The key of m."""
    return "lookahead_exp_avg_update" if name == "Wrap" else "exp_avg_update"


def aheads(optimizer):
    return [optimizer.state[p]["lookahead"].item() for p in params_of(optimizer)]


@each
def test_the_defaults_look_ahead(name):
    """1: there ``rest_step=0`` does nothing, in silence."""
    optimizer = make(name, matrices(), lookahead=EMANesterov())
    run(optimizer, range(3))
    assert aheads(optimizer) == [0.5] * 3
    ys = values(optimizer)
    with optimizer.at_iterate():
        assert not any(torch.equal(x, y) for x, y in zip(params_of(optimizer), ys, strict=True))
    with pytest.raises(ValueError, match=r"the window .* is empty"):
        EMANesterov(rest=0)


@each
def test_the_step_size_follows_lr_without_a_scheduler_and_by_group(name):
    """2: there it needs ``initial_lr``, and looks at the first group of the first optimizer."""
    optimizer = ready(name)
    for factor, group in zip((0.5, 0.25), optimizer.param_groups, strict=True):
        assert "initial_lr" not in group
        group["lr"] *= factor
    optimizer.step()
    assert aheads(optimizer) == pytest.approx([0.25, 0.125, 0.125], rel=1e-12)


def test_each_of_several_optimizers_has_its_own_ratio():
    first, second = matrices()[:2]
    inner = [torch.optim.SGD([first], lr=LR), torch.optim.AdamW([second], lr=LR)]
    optimizer = Wrap(inner, EMA)
    run(optimizer, range(2))
    inner[1].param_groups[0]["lr"] /= 4
    run(optimizer, [2])
    assert aheads(optimizer) == pytest.approx([0.5, 0.125], rel=1e-12)


@each
def test_micro_batches_are_one_step(name):
    """3: there each of them resets the step size that is logged."""
    parts, whole = ready(name), ready(name)
    for step in range(3):
        for optimizer, count in ((parts, 4), (whole, 1)):
            optimizer.zero_grad()
            for i in range(4):
                # backward of one in four micro-batches, or of all together
                for p in params_of(optimizer):
                    (p.pow(2).sum() * (i + 1) / 4).backward()
                if count == 4:
                    assert aheads(optimizer) == [0.5] * 3
            optimizer.step()
        assert differing(content(parts), content(whole)) == [], step


@each
def test_a_run_resumes_exactly_with_one_call(name):
    """4: there neither the step counter nor the inner optimizer is loaded."""
    method = EMANesterov(0.5, 0.9, warmup=4, rest=7)
    optimizer = ready(name, 3, lookahead=method)
    first, *others = [nn.Parameter(v) for v in values(optimizer)]
    groups = [{"params": [first]}, {"params": others, "lr": LR / 2}]
    resumed = make(name, groups, lookahead=EMANesterov(0.1, 0.5))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for t in range(3, 9):
        run(optimizer, [t])
        run(resumed, [t])
        assert differing(content(optimizer), content(resumed)) == []
        assert aheads(resumed) == [0.5 * (4 <= t + 1 < 7)] * 3


@each
def test_a_schedule_reaches_the_step_after_a_load(name):
    """5: there the inner optimizer keeps the groups of before."""
    optimizer = ready(name)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    scheduler.step()
    for group in getattr(optimizer, "optimizers", [optimizer])[0].param_groups:
        assert group["lr"] == 0
    ys = values(optimizer)
    run(optimizer, [4])
    # without an update x moves to where y was
    optimizer.eval()
    for x, y in zip(params_of(optimizer), ys, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


@each
def test_weights_may_arrive_after_construction(name):
    """6: there they become part of m, as one enormous update."""
    early = make(name, matrices())
    loaded = [torch.randn(p.shape) * 10 for p in params_of(early)]
    with torch.no_grad():
        for p, value in zip(params_of(early), loaded, strict=True):
            p.copy_(value)
    late = make(name, [nn.Parameter(value.clone()) for value in loaded])
    for optimizer in (early, late):
        run(optimizer, range(1))
    assert differing(content(early), content(late)) == []
    for p, value in zip(params_of(early), loaded, strict=True):
        update = early.state[p][own(name)] / (1 - EMA.decay)
        # the first step ends b * m ahead of x
        torch.testing.assert_close(p - value, update * (1 + 0.5 * 0.1), rtol=0, atol=1e-5)


@each
def test_a_parameter_without_a_gradient_stays(name):
    """7: there it drifts by b * m at every step."""
    optimizer = ready(name)
    p = params_of(optimizer)[1]
    before = bits(p), bits(optimizer.state[p][own(name)])
    for t in range(2, 8):
        set_gradients(params_of(optimizer), t)
        p.grad = None
        optimizer.step()
    assert (bits(p), bits(optimizer.state[p][own(name)])) == before


@each
def test_the_average_is_a_float32_tensor(name):
    """8: there it is a tuple in the dtype of the parameter, bfloat16 included."""
    optimizer = ready(name, dtype=torch.bfloat16)
    for p in params_of(optimizer):
        m = optimizer.state_dict()["state"][0][own(name)]
        assert type(m) is torch.Tensor
        assert optimizer.state[p][own(name)].dtype == torch.float32


@each
def test_the_loss_ahead_can_be_probed(name):
    """9: there the diagnostics call a method with an argument that it does not take."""
    optimizer = ready(name, dtype=torch.float64)

    def loss():
        return sum(p.detach().pow(2).sum() for p in params_of(optimizer))

    before, at_y = content(optimizer), loss().item()
    with optimizer.at_iterate():
        at_x = loss().item()
    found = emanest.probe_lookahead(optimizer, loss, [0.0, 0.5, 1.0])
    assert found[:2] == pytest.approx([at_x, at_y], rel=1e-12)
    assert not math.isclose(at_x, at_y, rel_tol=1e-6)
    assert differing(content(optimizer), before) == []


@each
def test_one_call_is_a_step_with_or_without_a_closure(name):
    """10: there ``step`` takes none, and raises unless another method was called before it."""
    plain, closed = ready(name), ready(name)
    assert list(inspect.signature(plain.step).parameters) == ["closure"]
    plain.step()
    assert closed.step(lambda: torch.tensor(3.0)).item() == 3.0
    assert differing(content(plain), content(closed)) == []


@pytest.mark.parametrize("tied", [False, True])
@each
def test_every_parameter_of_a_model_is_ahead_tied_or_not(name, tied):
    """11: there the token embedding is left out when the head does not share its weights."""
    model = Model(tied=tied)
    split = name in ("Muon", "NorMuon")
    params = emanest.split_params(model, verbose=False) if split else model.parameters()
    optimizer = make(name, params)
    found = params_of(optimizer)
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))
    for t in range(2):
        torch.manual_seed(t)
        words = torch.randint(32, (8, 4))
        optimizer.zero_grad()
        model(words).logsumexp(-1).mean().backward()
        optimizer.step()
    moved = [p for p in found if p.grad is not None and p.grad.any()]
    assert any(p is model.embed.weight for p in moved)
    assert aheads(optimizer) == [0.5] * len(found)
    assert all(optimizer.state[p][own(name)].any() for p in moved)


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@each
def test_gradients_are_only_read(name, nonfinite):
    """12: there Muon blends its momentum into them."""
    options = {} if name == "Wrap" else {"nonfinite": nonfinite}
    optimizer = ready(name, **options)
    for t in range(3):
        grads = gradients(params_of(optimizer), t)
        for p, g in zip(params_of(optimizer), grads, strict=True):
            p.grad = g
        before = [bits(g) for g in grads]
        optimizer.step()
        with optimizer.at_iterate():
            pass
        assert [bits(g) for g in grads] == before
        assert all(p.grad is g for p, g in zip(params_of(optimizer), grads, strict=True))


@each
def test_replicas_agree_without_a_word(name):
    """13: m is the same on all ranks, since equal gradients give equal bits, on any threads."""
    one = ready(name, 3)
    torch.set_num_threads(2)
    try:
        other = ready(name, 3)
    finally:
        torch.set_num_threads(1)
    assert differing(content(one), content(other)) == []
