# SPDX-License-Identifier: MIT
"""Stacks of matrices: experts in one parameter, each of which is stepped by itself."""

import io
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.nn.utils.parametrizations import weight_norm

import helpers
from emanest import EMANesterov, Muon, split_params
from emanest.matrix import directions, newton_schulz
from helpers import (
    METHODS,
    bits,
    content,
    differing,
    one_thread,  # noqa: F401
)
from helpers import run as train
from muon_runs import CLASSES, LR, each_backend, each_class, of_muon
from ranks import ranks
from test_shards import content as content_of_parts
from test_shards import give_gradients, spread

pytestmark = pytest.mark.usefixtures("one_thread")

# wide, tall, kernels, one alone, none at all, a single row each, and a matrix that is no stack
SHAPES = [(3, 8, 12), (4, 12, 8), (2, 8, 3, 2), (1, 8, 12), (0, 4, 4), (3, 1, 5), (8, 12)]
STACKED = [shape for shape in SHAPES if len(shape) > 2]
EVEN = [shape for shape in SHAPES if shape[-2] % 2 == 0 and shape[1] % 2 == 0]

# name -> options, shapes, and what becomes of the parameters
RUNS = {
    "plain": ({}, SHAPES, torch.clone),
    "no symmetric scale": ({"adjust_lr_fn": "spectral_norm"}, SHAPES, torch.clone),
    "split": ({"split": 2}, EVEN, torch.clone),
    "transposed": ({}, SHAPES, lambda t: t.mT.contiguous().mT),
    "transposed and split": ({"split": 2}, EVEN, lambda t: t.mT.contiguous().mT),
    "experts innermost": ({}, SHAPES, lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0)),
    "bfloat16": ({}, SHAPES, torch.Tensor.bfloat16),
}


def experts(p, tensor=None):
    """What belongs to each member of a stack, laid out as it is there."""
    tensor = p.detach() if tensor is None else tensor
    return tensor.unbind() if p.dim() > 2 else [tensor]


def step_each_alone(name, backend, options, shapes, made, method="ema", steps=4):
    """Each expert, and its state, has the bits of a parameter of its own."""
    stacks = [nn.Parameter(made(p.detach())) for p in helpers.parameters(shapes=shapes)]
    alone = [nn.Parameter(e.clone()) for p in stacks for e in experts(p)]
    options = {**options, "lookahead": METHODS[method], "backend": backend}
    one = CLASSES[name](stacks, LR, stack=True, **options)
    many = CLASSES[name](alone, LR, stack=False, **options)
    for t in range(steps):
        helpers.set_gradients(stacks, t)
        grads = [g.clone() for p in stacks for g in experts(p, p.grad)]
        for p, g in zip(alone, grads, strict=True):
            p.grad = g
        one.step()
        many.step()
    each = [e for p in stacks for e in experts(p)]
    assert [bits(e) for e in each] == [bits(p) for p in alone]
    names = one.state[stacks[0]].keys() - {"step", "lookahead"}
    assert names >= {"momentum_buffer", "exp_avg_update"}
    for key in names:
        held = [e for p in stacks for e in experts(p, one.state[p][key])]
        assert [bits(e) for e in held] == [bits(many.state[p][key]) for p in alone]


@pytest.mark.parametrize("run", RUNS)
@each_backend
@of_muon
def test_an_expert_is_stepped_as_a_parameter_of_its_own(name, backend, run):
    step_each_alone(name, backend, *RUNS[run])


@each_class
def test_batches_are_bounded_and_change_no_bit(name, monkeypatch):
    """Also within one stack, and of what the iteration overwrites (float32) or not (float64)."""
    sizes = []

    def recorded(x, *others):
        sizes.append(x.numel())
        return iterate(x, *others)

    iterate = newton_schulz.iterate
    monkeypatch.setattr(newton_schulz, "iterate", recorded)
    monkeypatch.setattr(directions, "BATCH", 200)
    for ns_dtype in ("float32", "float64"):
        # 5 x 7: matrices do not end where memory is aligned
        step_each_alone(name, None, {"ns_dtype": ns_dtype}, [*SHAPES, (7, 5, 7)], torch.clone)
    assert max(sizes) <= 200
    assert {n for n in sizes if n % 35 == 0} >= {5 * 35, 2 * 35}


@of_muon
def test_a_matrix_is_one_whatever_is_said_of_stacks(name):
    params = [helpers.parameters(shapes=[(8, 12), (6, 4)]) for _ in range(3)]
    for some, stack in zip(params, (None, True, False), strict=True):
        train(CLASSES[name](some, LR, stack=stack), range(3))
    assert len({tuple(map(bits, some)) for some in params}) == 1


@of_muon
def test_without_a_stack_a_kernel_is_flattened(name):
    shapes = [(8, 3, 5), (6, 2, 2, 2)]
    kernels, flat = (helpers.parameters(shapes=shapes) for _ in range(2))
    flat = [nn.Parameter(p.detach().flatten(1)) for p in flat]
    for some, stack in ((kernels, False), (flat, None)):
        optimizer = CLASSES[name](some, LR, stack=stack)
        for t in range(3):
            helpers.set_gradients(some, t)
            optimizer.step()
    assert [bits(p) for p in kernels] == [
        bits(p.view(s)) for p, s in zip(flat, shapes, strict=True)
    ]


def test_rows_of_each_matrix_have_a_value():
    params = helpers.parameters(shapes=SHAPES)
    optimizer = CLASSES["NorMuon"](params, LR, stack=True)
    train(optimizer, range(1))
    found = {tuple(p.shape): optimizer.state[p]["second_momentum_buffer"].shape for p in params}
    assert found == {s: (*s[:2], 1) if len(s) > 2 else (s[0], 1) for s in SHAPES}


# ---- what is not clear is an error --------------------------------------------------------------

FIXES = (
    r"has shape \(4, 8, 6\).*set stack=True in its group for 4 matrices \(8, 6\).*or stack=False "
    r"for one matrix \(4, 48\).*split_params\(model\)"
)


@of_muon
def test_three_dimensions_are_an_error_that_names_both_fixes(name):
    p, q = helpers.parameters(shapes=[(4, 8, 6), (4, 6)])
    with pytest.raises(ValueError, match=f"parameter 0 of group 0 {FIXES}"):
        CLASSES[name]([p])
    optimizer = CLASSES[name]([("w2", q)])
    with pytest.raises(ValueError, match=rf"'w1'\) {FIXES}"):
        optimizer.add_param_group({"params": [("w1", p)]})
    assert len(optimizer.param_groups) == 1
    for stack in (True, False):
        optimizer = CLASSES[name]([p], stack=stack)
        train(optimizer, range(1))
        optimizer.param_groups[0]["stack"] = None
        before = content(optimizer)
        with pytest.raises(ValueError, match=FIXES):
            train(optimizer, range(1))
        assert differing(content(optimizer), before) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stack": "yes"}, TypeError, "stack must be True or False, got 'yes'"),
        ({"stack": True, "split": 3}, ValueError, r"split=3 does not divide the 8 rows of parame"),
        ({"stack": False, "split": 8}, ValueError, r"split=8 does not divide the 4 rows of param"),
    ],
)
@of_muon
def test_bad_options_are_named(name, options, error, message):
    with pytest.raises(error, match=message):
        CLASSES[name](helpers.parameters(shapes=[(4, 8, 6)]), **options)


@pytest.mark.filterwarnings("ignore:emanest. parameters moved")
def test_the_state_of_rows_does_not_change_its_shape():
    """In NorMuon; the momenta of Muon and Aurora have the parameter's."""
    optimizers = [CLASSES[name](helpers.parameters(shapes=[(4, 4, 6)]), LR, stack=False)
                  for name in CLASSES]  # fmt: skip
    for optimizer in optimizers:
        train(optimizer, range(2))
        optimizer.param_groups[0]["stack"] = True
    muon, normuon, aurora = optimizers
    for optimizer in (muon, aurora):
        train(optimizer, range(2, 4))
    before = content(normuon)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"stack=True: .* made with another: set it back"):
            train(normuon, [2])
        assert differing(content(normuon), before) == []
    # nor where the state is moved, which is broadcast from (4, 1) to (4, 4, 1) without an error
    (p,) = helpers.params_of(normuon)
    p.data = p.data.double()
    with pytest.raises(RuntimeError, match=r"of shape \(4, 4, 1\) was replaced by .* \(4, 1\)"):
        train(normuon, [2])


# ---- checkpoints --------------------------------------------------------------------------------


@of_muon
def test_a_run_resumes_exactly(name):
    def made():
        params = helpers.parameters(shapes=SHAPES)
        return CLASSES[name](params, LR, stack=True, lookahead=EMANesterov(0.5, 0.9))

    whole, first, second = made(), made(), made()
    train(whole, range(6))
    train(first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    for p, q in zip(*map(helpers.params_of, (second, first)), strict=True):
        p.data.copy_(q.data)
    # what was saved replaces what was said
    second.param_groups[0]["stack"] = False
    second.load_state_dict(torch.load(file, weights_only=True))
    train(second, range(3, 6))
    assert differing(content(whole), content(second)) == []


@of_muon
def test_a_checkpoint_that_knows_no_stacks_leaves_the_option_as_it_is(name):
    flat = CLASSES[name](helpers.parameters(shapes=[(4, 6, 8)]), LR, stack=False)
    train(flat, range(2))
    saved = flat.state_dict()
    for group in saved["param_groups"]:
        del group["stack"]
    same, stacked = (
        CLASSES[name](helpers.parameters(shapes=[(4, 6, 8)]), LR, stack=s) for s in (False, True)
    )
    same.load_state_dict(saved)
    assert same.param_groups[0]["stack"] is False
    train(same, range(2, 3))
    if name == "NorMuon":
        with pytest.raises(ValueError, match=r"shape \(4, 1\) in .* needs \(4, 6, 1\)"):
            stacked.load_state_dict(saved)
    else:
        stacked.load_state_dict(saved)
        train(stacked, range(2, 3))
    assert stacked.param_groups[0]["stack"] is True


@of_muon
def test_an_optimizer_from_before_the_option_asks_before_it_steps(name):
    optimizer = CLASSES[name](helpers.parameters(shapes=[(4, 8, 6)]), LR, stack=False)
    train(optimizer, range(2))
    del optimizer.param_groups[0]["stack"], optimizer.defaults["stack"]
    old = pickle.loads(pickle.dumps(optimizer))
    before = content(old)
    with pytest.raises(ValueError, match=FIXES):
        train(old, [2])
    assert differing(content(old), before) == []
    for each in (optimizer, old):
        each.param_groups[0]["stack"] = False
        train(each, range(2, 4))
    assert helpers.same(optimizer, old)


# ---- models -------------------------------------------------------------------------------------


class Experts(nn.Module):
    """Weights as Transformers and torchtitan have them; every expert sees every input."""

    def __init__(self, count=3, width=16):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(count, width, 2 * width) / width**0.5)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(count, 2 * width))
        self.down_proj = nn.Parameter(torch.randn(count, width, width) / width**0.5)

    def forward(self, x):
        h = torch.einsum("bi,eio->ebo", x, self.gate_up_proj) + self.gate_up_proj_bias[:, None]
        gate, up = h.chunk(2, dim=-1)
        return torch.bmm(F.silu(gate) * up, self.down_proj).sum(0)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 16)
        self.experts = Experts()
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.experts(self.inner(x)))


class Signal(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3)
        self.body = nn.Conv1d(8, 8, 3)
        self.back = nn.ConvTranspose1d(8, 8, 2)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = self.back(self.body(self.stem(x[:, None, :].expand(-1, 3, -1)).relu()).relu())
        return self.out(x.mean(2))


@pytest.mark.parametrize(
    ("model", "stacks"),
    [
        (Mixture, {False: ["inner.weight"], True: ["experts.gate_up_proj", "experts.down_proj"]}),
        (Signal, {False: ["body.weight", "back.weight"]}),
    ],
)
@of_muon
def test_a_model_trains(name, model, stacks):
    torch.manual_seed(0)
    module = model()
    groups = split_params(module, verbose=False, adamw={"lr": 0.01})
    assert {g["stack"]: [n for n, _ in g["params"]] for g in groups if "base" not in g} == stacks
    optimizer = CLASSES[name](groups, 0.01, lookahead=EMANesterov(0.5, 0.9))
    x = torch.randn(32, 6)
    target, losses = x[:, :3] * x[:, 3:], []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(module(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


class Layer(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.w1 = nn.Parameter(torch.ones(shape))


class FSDPBilinear(nn.Bilinear):
    """As ``fully_shard`` makes it."""

    __module__ = "torch.distributed.fsdp"


@pytest.mark.filterwarnings("ignore:emanest. no parameter of the model goes to an optimizer of mat")
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Layer(2, 16, 16), "experts"),
        (Layer(2, 15, 16), "tensor"),
        (Layer(2, 16, 15), "tensor"),
        (Layer(1, 16, 16), "vector"),
        (Layer(2, 16, 16, 16), "tensor"),
        (FSDPBilinear(16, 16, 16, bias=False), "tensor"),
        (weight_norm(nn.Bilinear(16, 16, 16, bias=False)), "tensor"),
        (weight_norm(Layer(2, 16, 16), "w1"), "experts"),
    ],
)
def test_experts_are_known_by_owner_and_shape(model, reason, capsys):
    split_params(model)
    *_, row, _ = capsys.readouterr().out.splitlines()
    assert row.endswith(reason)


def test_a_rule_that_does_not_say_what_a_tensor_is_leaves_it_to_the_error():
    model = nn.Bilinear(16, 16, 8)
    for entries in ({}, {"split": 2}):
        groups = split_params(model, {"weight": {"base": "muon", **entries}}, verbose=False)
        with pytest.raises(ValueError, match=r"'weight'\) has shape .*stack=True.*stack=False"):
            Muon(groups)
        for stack in (True, False):
            rule = {"base": "muon", "stack": stack, **entries}
            optimizer = Muon(split_params(model, {"weight": rule}, verbose=False))
            train(optimizer, range(1))


# ---- many processes -----------------------------------------------------------------------------

# dimension -> shapes: even, uneven, fewer than processes
CUT = {0: [(4, 6, 8), (3, 8, 6), (1, 6, 6)], 1: [(3, 8, 6), (2, 5, 4)], 2: [(3, 6, 8), (2, 4, 3)]}
SPREAD = [*((shape, Shard(dim)) for dim, shapes in CUT.items() for shape in shapes)]
SPREAD += [((3, 6, 4), Replicate()), ((4, 3, 2, 2), Shard(0)), ((6, 8), Shard(0))]


def step_on_shards(name, runs, exact):
    """What the processes leave as wholes, checked against one process without ``DTensor``."""
    return [step_some_on_shards(name, *each, exact) for each in runs]


def step_some_on_shards(name, options, kinds, exact):
    shapes, placements = zip(*kinds, strict=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = helpers.parameters(shapes=shapes)
    parts = spread(params, mesh, placements)
    sharded, plain = (
        CLASSES[name](each, LR, stack=True, lookahead=METHODS["ema"], **options)
        for each in (parts, params)
    )
    for t in range(3):
        give_gradients(parts, params, t)
        sharded.step()
        plain.step()
    found, expected = content_of_parts(parts, sharded), content_of_parts(params, plain)
    if exact:
        assert differing(found, expected) == []
    for p, q in zip(parts, params, strict=True):
        torch.testing.assert_close(p.full_tensor(), q.detach(), rtol=1e-4, atol=1e-5)
    # a state dict of one process is taken apart
    sharded.load_state_dict(plain.state_dict())
    loaded = content_of_parts(parts, sharded)
    assert all(loaded[key] == expected[key] for key in expected if key[1] != "value")
    return found


@of_muon
def test_a_stack_may_be_cut_along_any_dimension(name):
    """Bit for bit the same on any number of processes."""
    halves = [(s, p) for s, p in SPREAD if s[1 if len(s) > 2 else 0] % 2 == 0]
    wide = {"ns_dtype": "float32"}
    runs = [(wide, SPREAD), ({**wide, "split": 2, "ns_form": "gram"}, halves)]
    one, *others = (ranks()(world, step_on_shards, name, runs, False) for world in (1, 2, 4))
    for all_found in (found for world in others for found in world):
        for found, expected in zip(all_found, one[0], strict=True):
            assert differing(found, expected) == []


@of_muon
def test_experts_that_lie_whole_have_the_bits_of_one_process(name):
    """Nothing is sent, and norms are those of the momentum pass."""
    kinds = [(s, p) for s, p in SPREAD if p == Shard(0) and len(s) > 2]
    ranks()(3, step_on_shards, name, [({}, kinds)], True)
