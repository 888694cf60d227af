# SPDX-License-Identifier: MIT
"""A new base is one file: AdaGrad with an accumulator for each row, below, is all that is written.

``test_triton`` runs what takes a back end in Triton's interpreter, too.
"""

import copy
import io
from pathlib import Path
from typing import Annotated

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import emanest
from emanest import backends
from emanest.matrix.shapes import rows
from emanest.optimizers.base import Base
from emanest.optimizers.optimizer import Optimizer
from emanest.options import LearningRate, options_of, own_options, suggesting
from emanest.rules import State
from emanest.values import by, real
from helpers import METHODS, content, differing, parameters, run, set_gradients
from ranks import ranks
from test_shards import give_gradients, spread, whole

ROOT = Path(__file__).parents[1]


class AdaGrad(Optimizer):
    """sum[row] += mean(g[row] ** 2);  y -= lr * g / (sqrt(sum[row]) + eps)."""

    @suggesting
    def __init__(
        self,
        params,
        lr: LearningRate = 1e-2,
        eps: Annotated[float, by(real, 0, 1, "(]")] = 1e-10,
        *,
        lookahead=None,
        backend=None,
        capturable=False,
    ):
        """See the class."""
        super().__init__(params, options_of(locals()), lookahead)


class _Directions:
    """Gradients, with a factor for each row."""

    def __init__(self, joint):
        self.params, (self.sums,) = joint.params, joint.columns(("sum",))
        self.eps = joint.parts[0].group["eps"]

    def __call__(self, gs, numbers, skip):
        scales = []
        for p, g, old in zip(self.params, gs, self.sums, strict=True):
            g = numbers[0] * g.reshape(*g.shape[:1] or (1,), g.shape[1:].numel()).to(old.dtype)
            square = g.square().sum(1)
            for dim, placement in enumerate(getattr(p, "placements", ())):
                if placement.is_shard() and placement.dim > 0:
                    dist.all_reduce(square, group=p.device_mesh.get_group(dim))
            new = old + (square / max(1, p.shape[1:].numel())).view_as(old)
            old.copy_(new if skip is None else torch.where(skip == 0, new, old))
            scales.append(1 / (old.flatten().sqrt() + self.eps))
        return gs, scales, numbers


def _check(name, p, group):
    if p.is_complex():
        raise ValueError(f"{name} has dtype {p.dtype}: AdaGrad here is for real parameters")


AdaGrad.bases = {
    "adagrad": Base(
        lambda group: "direction",
        lambda group, info: (info.lr, 0.0),
        *own_options(AdaGrad),
        directions=_Directions,
        state=(State("sum", rows),),
        check=_check,
    )
}


BASE = AdaGrad.bases["adagrad"]
NAMES = [name for name in backends.BACKENDS if backends.find(name, "cpu")[0]]
LR = 0.05


class Textbook(torch.optim.Optimizer):
    """The same, row by row."""

    def __init__(self, params, lr=LR):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                ys, gs = (each.unsqueeze(0) if p.dim() == 0 else each for each in (p, p.grad))
                sums = self.state[p].setdefault("sum", [0.0] * len(ys))
                for k, g in enumerate(gs):
                    sums[k] += sum(x * x for x in g.flatten().tolist()) / g.numel()
                    ys[k] -= group["lr"] * g / (sums[k] ** 0.5 + 1e-10)


def variant(**changes):
    """The same, but for some entries of its base."""
    return type("Variant", (AdaGrad,), {"bases": {"adagrad": BASE._replace(**changes)}})


def adagrad(params, method, **options):
    return AdaGrad(params, **{"lr": LR, **options}, lookahead=method)


def run_of(optimizer):
    """Parameters and state."""
    return {k: v for k, v in content(optimizer).items() if k.startswith(("/values", "/state"))}


def saved(optimizer):
    """A state dict that was in a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_textbook(backend, method, dtype, tolerance):
    shapes = [(3, 5), (7,), (), (2, 3, 2), (4, 1)]
    params, others = parameters(dtype, shapes), parameters(torch.float64, shapes)
    # what is transposed in memory has its factors elsewhere
    params[0].data = params[0].data.t().contiguous().t()
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.detach())
    method = method and METHODS[method]
    optimizer, textbook = adagrad(params, method, backend=backend), Textbook(others)
    textbook = textbook if method is None else emanest.Wrap(textbook, method)
    for t in range(7):
        set_gradients(others, t)
        for p, q in zip(params, others, strict=True):
            p.grad = q.grad.to(dtype)
        optimizer.step()
        textbook.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach().double(), q.detach(), rtol=0, atol=tolerance)
        sums = optimizer.state[p]["sum"]
        assert sums.shape == (*p.shape[:1], 1)
        expected = torch.tensor(textbook.state[q]["sum"], dtype=torch.float64)
        torch.testing.assert_close(sums.flatten().double(), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("backend", NAMES)
def test_it_is_the_textbook(backend, method):
    check_textbook(backend, method, torch.float64, 1e-13)


@pytest.mark.parametrize("backend", NAMES)
def test_it_is_the_textbook_to_the_digits_of_float32(backend):
    check_textbook(backend, "ema", torch.float32, 2e-6)


@pytest.mark.parametrize("method", ["ema", "snoo"])
def test_resume_is_exact(method):
    optimizer = adagrad(parameters(), METHODS[method])
    run(optimizer, range(4))
    same = copy.deepcopy(optimizer)
    params = [nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    again = adagrad(params, METHODS[method])
    again.load_state_dict(saved(optimizer))
    for each in (optimizer, same, again):
        run(each, range(4, 7))
    assert differing(run_of(again), run_of(optimizer)) == []
    assert differing(run_of(same), run_of(optimizer)) == []


def test_state_moves_with_its_parameter():
    """To another dtype, and to a bucket of fewer parameters."""
    optimizer = adagrad(parameters(), METHODS["ema"])
    run(optimizer, range(3))
    moved, *_ = params = optimizer.param_groups[0]["params"]
    before = [optimizer.state[p]["sum"].clone() for p in params]
    moved.data, moved.grad = moved.data.double(), None
    with pytest.warns(UserWarning, match="state follows"):
        run(optimizer, [3])
    for p, old in zip(params, before, strict=True):
        held = optimizer.state[p]["sum"]
        assert held.dtype == p.dtype
        assert held.shape == old.shape
        grown = p.grad.double().square().reshape(len(old), -1).mean(1)
        torch.testing.assert_close(held.flatten(), (old.flatten() + grown).to(p.dtype))


# ---- sharded ------------------------------------------------------------------------------------

SHAPES = [(4, 6), (7, 3), (1, 5), (5, 4), (3, 3, 2), (5,), (2, 2)]
PLACEMENTS = [Shard(0), Shard(0), Shard(0), Shard(1), Shard(2), Shard(0), Replicate()]


def square(p, group):
    """Shape of a matrix for the rows of a parameter."""
    return 0, (p.shape[0], p.shape[0])


def sharded():
    """In every process: shards, whole parameters, and both again after a load of the other's."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    cls = variant(state=(*BASE.state, State("left", square)))
    whole_params = parameters(torch.float64, SHAPES)
    parts = spread(whole_params, mesh, PLACEMENTS)
    both = parts, whole_params
    optimizers = [cls(params, lr=LR, lookahead=METHODS["ema"]) for params in both]
    for t in range(6):
        if t == 3:
            states = [each.state_dict() for each in optimizers]
            optimizers = [cls(params, lr=LR, lookahead=METHODS["ema"]) for params in both]
            for each, state in zip(optimizers, reversed(states), strict=True):
                each.load_state_dict(state)
        give_gradients(parts, whole_params, t)
        for each in optimizers:
            each.step()
    for p, q, placement in zip(*both, PLACEMENTS, strict=True):
        entries, expected = (o.state[each] for o, each in zip(optimizers, (p, q), strict=True))
        for found, value in [(p, q), *((entries[k], expected[k]) for k in expected)]:
            torch.testing.assert_close(whole(found).detach(), value.detach(), rtol=0, atol=1e-14)
        of_rows = placement if placement == Shard(0) else Replicate()
        assert entries["sum"].placements == (of_rows,)
        assert entries["sum"].shape == (*q.shape[:1], 1)
        assert entries["left"].placements == (Replicate(),)
        assert entries["left"].to_local().shape == (q.shape[0], q.shape[0])


def test_sharded_it_is_that_of_the_whole():
    ranks()(2, sharded)


# ---- what a base is told, and says --------------------------------------------------------------


def test_a_base_is_told_t_and_the_step_of_each_parameter():
    told = []

    def numbers(group, info):
        told.append((info.t, info.step, info.lr))
        return info.lr, 0.0

    params = parameters()
    optimizer = variant(numbers=numbers)(params, lr=LR)
    run(optimizer, range(2))
    set_gradients(params, 2)
    params[0].grad = None
    optimizer.step()
    told.clear()
    run(optimizer, [3])
    assert sorted(told) == [(3, 2.0, LR), (3, 3.0, LR)]


def test_capturable_changes_nothing_and_a_skipped_step_leaves_all():
    plain, captured = (adagrad(parameters(), METHODS["ema"], capturable=c) for c in (False, True))
    for each in (plain, captured):
        run(each, range(3))
    set_gradients(captured.param_groups[0]["params"], 3)
    captured.param_groups[0]["params"][0].grad.fill_(torch.nan)
    captured.found_inf = torch.ones(1)
    captured.step()
    del captured.found_inf
    for each in (plain, captured):
        run(each, range(3, 5))
    assert differing(run_of(plain), run_of(captured)) == []


def test_a_base_that_decides_on_the_host_cannot_be_captured():
    cls = variant(capturable=False)
    match = "capturable=True does not work with the base 'adagrad'"
    with pytest.raises(ValueError, match=match):
        cls(parameters(), capturable=True)
    optimizer = cls(parameters())
    run(optimizer, range(2))
    before = content(optimizer)
    optimizer.param_groups[0]["capturable"] = True
    with pytest.raises(ValueError, match=match):
        run(optimizer, [2])
    optimizer.param_groups[0]["capturable"] = False
    assert differing(content(optimizer), before) == []


@pytest.mark.parametrize("possible", [True, False])
def test_a_scalers_flag_stays_on_a_device_only_if_the_base_can(possible):
    params = [nn.Parameter(torch.ones(2, device="meta"))]
    assert variant(capturable=possible)(params)._step_supports_amp_scaling == possible


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"eps": 0}, ValueError, r"eps must be in \(0, 1\], got 0"),
        ({"eps": "small"}, TypeError, "eps must be a number, got 'small'"),
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1"),
        ({"epps": 1e-8}, TypeError, "'epps'; did you mean 'eps'"),
        ({"capturable": "yes"}, TypeError, "capturable must be True or False"),
    ],
)
def test_a_bad_option_is_an_error(options, error, match):
    with pytest.raises(error, match=match):
        AdaGrad(parameters(), **options)
    group = {"params": parameters(), **options}
    if "epps" not in options:
        with pytest.raises(error, match=match):
            AdaGrad([group])


def test_an_option_without_a_check_is_an_error():
    class Unchecked(AdaGrad):
        def __init__(self, params, lr: LearningRate = 1e-2, eps: float = 1e-8, *, lookahead=None):
            """See the class."""

    with pytest.raises(TypeError, match=r"Unchecked does not say how \['eps'\] are checked"):
        own_options(Unchecked)


def test_state_of_another_shape_is_an_error_and_nothing_is_loaded():
    optimizer = adagrad(parameters(), METHODS["ema"])
    run(optimizer, range(2))
    before, state = content(optimizer), saved(optimizer)
    state["state"][0]["sum"] = torch.ones(3, 5)
    with pytest.raises(ValueError, match=r"'sum' .* has shape \(3, 5\) .* needs \(3, 1\)"):
        optimizer.load_state_dict(state)
    assert differing(content(optimizer), before) == []
    optimizer.state[optimizer.param_groups[0]["params"][0]]["sum"] = torch.ones(3, 5)
    with pytest.raises(RuntimeError, match=r"'sum' of shape \(3, 1\) was replaced"):
        run(optimizer, [2])


def test_nothing_else_knows_it():
    """The package has no word of it, and the base is short."""
    text = Path(__file__).read_text()
    lines = text[text.index("class AdaGrad") : text.index("BASE = ")].splitlines()
    assert len(lines) <= 60
    known = [p.name for p in (ROOT / "emanest").rglob("*.py") if "adagrad" in p.read_text().lower()]
    assert known == []
