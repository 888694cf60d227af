# SPDX-License-Identifier: MIT
"""Runs drawn at random: shapes, dtypes, strides, groups, missing gradients, methods, modes."""

import copy
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import emanest
import helpers
import textbook_bases
from emanest import ScheduleFree, Wrap, backends
from helpers import METHODS, bits, content, differing
from helpers import one_thread as one_thread

LR = 0.05
MUONS = {
    f"{name}, stack={stack}": (name, {**options, "stack": stack})
    for name, options in (("Muon", {"weight_decay": 0.1}), ("NorMuon", {}))
    for stack in (False, True)
}
BASES = {**helpers.BASES, **MUONS}
BACKENDS = [name for name in ("cpp", "eager") if backends.find(name, "cpu")[0]]
DTYPES = [
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.complex64, torch.complex128),
]
# one step of one parameter near 1: as in test_rules; narrow parameters are rounded once
STEP_ERROR = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps / 2,
    torch.float16: torch.finfo(torch.float16).eps / 2,
}


def reversed_(t):
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def sliced(t):
    return torch.stack([t, t], dim=-1)[..., 0]


def offset(t):
    """Not at a multiple of 16 bytes."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def expanded(t):
    return t[:1].expand(t.shape) if t.dim() else t


# the same values in another memory order
LAYOUTS = {
    "dense": torch.Tensor.contiguous,
    "reversed": reversed_,
    "channels last": channels_last,
    "sliced": sliced,
    "offset": offset,
}
# of gradients also fewer values
GIVEN = {**LAYOUTS, "expanded": expanded}


@dataclass(frozen=True)
class Spec:
    """A parameter: its kind, and the group that it is in."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    given: str
    group: int


@dataclass(frozen=True)
class Run:
    """A base, a method, parameters, and what happens to them."""

    base: str
    method: str
    specs: list[Spec]
    seed: int
    steps: int
    missing: float  # chance that a gradient is missing
    factor: float  # of the second group's lr, and of every lr from step to step
    reload_at: int
    mode: str

    def options(self):
        name, options = BASES[self.base]
        if isinstance(METHODS[self.method], ScheduleFree):
            # it brings the momentum
            own = {"betas": (0.0, 0.99)} if name == "AdamW" else {"momentum": 0.0}
            return {**options, **own, **dict.fromkeys(options.keys() & {"nesterov"}, False)}
        return options

    @property
    def name(self):
        return BASES[self.base][0]

    def parameters(self):
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for spec in self.specs:
            wide = torch.complex128 if spec.dtype.is_complex else torch.float64
            value = torch.randn(spec.shape, generator=generator, dtype=wide).to(spec.dtype)
            found.append(nn.Parameter(LAYOUTS[spec.layout](value)))
        return found

    def gradients(self, t):
        """Those of step t, None at times."""
        generator = torch.Generator().manual_seed(self.seed + 1 + t)
        chance = random.Random(self.seed + t)
        found = []
        for spec in self.specs:
            wide = torch.complex128 if spec.dtype.is_complex else torch.float64
            value = torch.randn(spec.shape, generator=generator, dtype=wide).to(spec.dtype)
            found.append(GIVEN[spec.given](value) if chance.random() >= self.missing else None)
        return found

    def rate(self, group, t):
        return LR * self.factor ** (group + t)

    def grouped(self, params):
        groups = [
            {"params": [p for p, spec in zip(params, self.specs, strict=True) if spec.group == i]}
            for i in (0, 1)
        ]
        return [{**group, "lr": LR} for group in groups if group["params"]]

    def optimizer(self, params, kind):
        groups, method = self.grouped(params), METHODS[self.method]
        if kind == "wrap":
            return Wrap(getattr(torch.optim, self.name)(groups, **self.options()), method)
        cls = getattr(emanest, self.name)
        return cls(groups, **self.options(), lookahead=method, backend=kind)


def specs(shapes, dtypes):
    return st.builds(
        Spec,
        shape=shapes,
        dtype=st.sampled_from(dtypes),
        layout=st.sampled_from(sorted(LAYOUTS)),
        given=st.sampled_from(sorted(GIVEN)),
        group=st.sampled_from([0, 1]),
    )


ANY_SHAPE = st.lists(st.integers(0, 5), max_size=4).map(tuple)
MATRICES = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)


def runs(dtypes, shapes=ANY_SHAPE, bases=tuple(helpers.BASES), methods=METHODS):
    return st.builds(
        Run,
        base=st.sampled_from(bases),
        method=st.sampled_from(sorted(methods)),
        specs=st.lists(specs(shapes, dtypes), min_size=1, max_size=5),
        seed=st.integers(0, 2**16),
        steps=st.integers(1, 7),
        missing=st.sampled_from([0.0, 0.3]),
        factor=st.sampled_from([1.0, 0.5]),
        reload_at=st.integers(0, 7),
        mode=st.sampled_from(["train", "eval"]),
    )


def step(run, optimizer, params, t):
    index = {p: spec.group for p, spec in zip(params, run.specs, strict=True)}
    for group in optimizer.param_groups:
        group["lr"] = run.rate(index[group["params"][0]], t)
    for p, g in zip(params, run.gradients(t), strict=True):
        p.grad = g
    optimizer.step()


def take(run, kind):
    params = run.parameters()
    optimizer = run.optimizer(params, kind)
    for t in range(run.steps):
        step(run, optimizer, params, t)
    return params, optimizer


def interrupted(run, kind):
    """As ``take``, with an evaluation after every step, saved and loaded at one of them."""
    params = run.parameters()
    optimizer = run.optimizer(params, kind)
    for t in range(run.steps):
        if t == run.reload_at:
            getattr(optimizer, run.mode)()
            saved = copy.deepcopy(optimizer.state_dict())
            params = [nn.Parameter(p.detach().clone()) for p in params]
            optimizer = run.optimizer(params, kind)
            optimizer.load_state_dict(saved)
            optimizer.train()
        step(run, optimizer, params, t)
        before = [bits(p) for p in params]
        with optimizer.at_iterate():
            optimizer.state_dict()
        assert [bits(p) for p in params] == before
    return params, optimizer


def real(t):
    return torch.view_as_real(t.detach()) if t.is_complex() else t.detach()


def textbook(run):
    """y of each parameter, by the textbook form in float64; complex ones as pairs of reals."""
    params = run.parameters()
    found = {}
    for group in run.grouped(params):
        members = [i for i, p in enumerate(params) if any(p is q for q in group["params"])]
        decay = getattr(emanest, run.name)(params, **run.options()).defaults["weight_decay"]
        options = {"weight_decay": decay, **run.options()}
        base = getattr(textbook_bases, run.name)(**options)
        twin = helpers.published(METHODS[run.method], [real(params[i]) for i in members], base)
        for t in range(run.steps):
            grads = run.gradients(t)
            if any(g is not None for g in grads):
                given = [None if grads[i] is None else real(grads[i]) for i in members]
                twin.step(given, run.rate(run.specs[members[0]].group, t))
        found.update(zip(members, twin.y, strict=True))
    return [found[i] for i in range(len(params))]


few = settings(max_examples=30)
many = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])

# NALA's own steps follow the plain gradient, of which the textbook of Muon knows nothing
PUBLISHED = METHODS.keys() - {"nala"}


def assert_textbook(run, params, step_error):
    for p, expected in zip(params, textbook(run), strict=True):
        scale = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
        error = (real(p).double() - expected).abs()
        assert (error <= run.steps * step_error(p.dtype.to_real()) * scale).all()


@many
@given(run=runs(DTYPES))
@pytest.mark.usefixtures("one_thread")
def test_back_ends_agree_with_each_other_and_with_the_textbook(run):
    """The back ends bit for bit."""
    found = [take(run, kind) for kind in BACKENDS]
    for params, optimizer in found:
        assert_textbook(run, params, STEP_ERROR.get)
        for group in optimizer.param_groups:
            group["backend"] = None
    first, *others = (content(optimizer) for _, optimizer in found)
    assert all(differing(first, other) == [] for other in others)


@few
@given(run=runs([torch.float64], MATRICES, tuple(MUONS), PUBLISHED))
@pytest.mark.parametrize("backend", BACKENDS)
def test_muon_agrees_with_the_textbook(backend, run):
    params, _ = take(run, backend)
    assert_textbook(run, params, lambda dtype: 1e-11)


# in float16 torch's AdamW divides by zero: its eps is none there
KINDS = {
    "fused": (None, runs(DTYPES)),
    "muon": (None, runs(DTYPES[:4], MATRICES, tuple(MUONS))),
    "wrap": ("wrap", runs([dtype for dtype in DTYPES if dtype != torch.float16])),
}


@many
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_saving_and_loading_change_nothing(kind, data):
    how, drawn = KINDS[kind]
    run = data.draw(drawn)
    (_, plain), (_, other) = take(run, how), interrupted(run, how)
    assert differing(content(plain), content(other)) == []
