# SPDX-License-Identifier: MIT
"""Saving and loading: training goes on bit for bit."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

import emanest
import helpers
from emanest import EMANesterov, Lookahead, ScheduleFree, Wrap
from helpers import LR, METHODS, adamw, content, differing, params_of, run, values

BASES = {
    "adamw": adamw,
    "amsgrad": helpers.amsgrad,
    "sgd": helpers.sgd,
    "wrap": helpers.wrap_adamw,
    "wrap two": helpers.wrap_two,
}


def muon(cls):
    def make(params, method):
        # Schedule-Free brings the momentum
        momentum = 0.0 if isinstance(method, ScheduleFree) else 0.9
        return cls(params, LR, weight_decay=0.0, momentum=momentum, lookahead=method)

    return make


RESUMED = {
    **BASES,
    "sgd inside": lambda params, method: Wrap(
        torch.optim.SGD(params, LR, 0.0 if isinstance(method, ScheduleFree) else 0.9), method
    ),
    "muon": muon(emanest.Muon),
    "normuon": muon(emanest.NorMuon),
}
SHAPES = {name: [(3, 4), (4, 2)] if "muon" in name else [(3, 5), ()] for name in RESUMED}

each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("base", BASES)
few_bases = pytest.mark.parametrize("base", ["adamw", "sgd", "wrap two"])
each_mode = pytest.mark.parametrize("mode", ["train", "eval"])


class Training:
    """Parameters, an optimizer and a scheduler, which save and load as users do it."""

    def __init__(self, base, method, dtype=torch.float32, fill=None):
        self.params = helpers.parameters(dtype, SHAPES[base])
        if fill is not None:
            for p in self.params:
                torch.nn.init.constant_(p, fill)
        self.optimizer = RESUMED[base](self.params, method and METHODS[method])
        self.scheduler = CosineAnnealingLR(self.optimizer, 8)

    def run(self, steps):
        run(self.optimizer, steps, each=self.scheduler.step)
        return self

    def save(self):
        """What is read back from a file."""
        file = io.BytesIO()
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        parts = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"params": self.params, **parts}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, saved, last="optimizer"):
        if last == "params":
            self.optimizer.load_state_dict(state_dict=saved["optimizer"])
        with torch.no_grad():
            for p, value in zip(self.params, saved["params"], strict=True):
                p.copy_(value)
        if last == "optimizer":
            self.optimizer.load_state_dict(state_dict=saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        return self


def storages(optimizer):
    tensors = [*params_of(optimizer)]
    for entries in optimizer.state.values():
        tensors += [v for v in entries.values() if isinstance(v, torch.Tensor)]
    return {t.untyped_storage().data_ptr() for t in tensors}


SAVED_AT = (0, 1, 2, 7, 50)
MORE = 3  # steps after a resume; they cross a sync of every method


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize(
    ("base", "dtype"),
    [
        *itertools.product(RESUMED, [torch.float32]),
        *itertools.product(["adamw", "wrap"], [torch.bfloat16]),
        *(
            pytest.param(base, torch.bfloat16, marks=pytest.mark.slow)
            for base in RESUMED
            if base not in ("adamw", "wrap")
        ),
    ],
    ids=str,
)
def test_resume_is_exact(method, base, dtype):
    """After so many steps, in either mode, whatever is loaded first; bit for bit."""
    first, saved, found = Training(base, method, dtype), {}, {}
    for k in range(SAVED_AT[-1] + MORE + 1):
        found[k] = content(first.optimizer) if {k, k - MORE} & {*SAVED_AT} else None
        if k in SAVED_AT:
            for mode in ("eval", "train"):
                getattr(first.optimizer, mode)()
                saved[k, mode] = first.save(), content(first.optimizer)
        first.run([k])
    for (k, mode), (state, expected) in saved.items():
        for last in ("optimizer", "params")[: 1 + (k == 7)]:
            second = Training(base, method, dtype, fill=3.0).load(state, last)
            assert differing(content(second.optimizer), expected) == []
            second.optimizer.train()
            second.run(range(k, k + MORE))
            assert differing(content(second.optimizer), found[k + MORE]) == [], (k, mode)


@each_method
@few_bases
@each_mode
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_exactly_and_share_nothing(method, base, mode, clone):
    optimizer = BASES[base](helpers.parameters(), METHODS[method])
    run(optimizer, range(7))
    getattr(optimizer, mode)()
    copied = clone(optimizer)
    assert differing(content(copied), content(optimizer)) == []
    assert storages(copied).isdisjoint(storages(optimizer))
    for each in (optimizer, copied):
        each.train()
        run(each, range(7, 10))
    assert differing(content(copied), content(optimizer)) == []


@each_method
@few_bases
@each_mode
def test_load_copies_and_never_writes_parameters(method, base, mode):
    source = BASES[base](helpers.parameters(), METHODS[method])
    run(source, range(5))
    getattr(source, mode)()
    saved = source.state_dict()
    before = content(source)
    twins = [BASES[base](helpers.parameters(), METHODS[method]) for _ in range(2)]
    for twin in twins:
        old = values(twin)
        twin.load_state_dict(saved)
        assert all(torch.equal(p, v) for p, v in zip(params_of(twin), old, strict=True))
    one, other = twins
    shared = [storages(a) & storages(b) for a, b in ((one, other), (one, source), (other, source))]
    assert shared == [set(), set(), set()]
    one.train()
    run(one, range(5, 8))
    assert differing(content(source), before) == []


PLAIN = (dict, list, tuple, int, float, bool, str, type(None), torch.Tensor)


def types_in(value):
    yield type(value)
    for each in value.values() if isinstance(value, dict) else ():
        yield from types_in(each)
    for each in value if isinstance(value, (list, tuple)) else ():
        yield from types_in(each)


@each_method
@few_bases
@each_mode
def test_state_dicts_hold_plain_types(method, base, mode):
    optimizer = BASES[base](helpers.parameters(), METHODS[method])
    assert set(types_in(optimizer.state_dict())) <= set(PLAIN)
    run(optimizer, range(5))
    getattr(optimizer, mode)()
    assert set(types_in(optimizer.state_dict())) <= set(PLAIN)


@pytest.mark.parametrize("base", ["adamw", "wrap"])
def test_a_callable_step_size_is_not_saved_and_needs_the_same(base):
    def stepsize(t):
        return 0.5 / (1 + t)

    def make(stepsize=stepsize):
        return BASES[base](helpers.parameters(), EMANesterov(stepsize, 0.9))

    first, second, third = make(), make(), make(0.5)
    run(first, range(7))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert isinstance(saved["param_groups"][0]["lookahead_stepsize"], str)
    with pytest.raises(ValueError, match="lookahead_stepsize of group 0 was a callable"):
        third.load_state_dict(saved)
    second.load_state_dict(saved)
    with torch.no_grad():
        for p, q in zip(params_of(second), params_of(first), strict=True):
            p.copy_(q)
    for optimizer in (first, second):
        run(optimizer, range(7, 10))
    assert differing(content(first), content(second)) == []


@each_method
@pytest.mark.parametrize("base", ["adamw", "wrap"])
def test_the_method_is_restored_with_its_settings(method, base):
    """Also where it differs among groups, and in an optimizer made without."""

    def grouped(**entries):
        a, b, c = helpers.parameters()
        return [{"params": [a]}, {"params": [b], **entries}, {"params": [c], "lr": 0.01}]

    def make(groups, method):
        betas = (0.0, 0.99)
        if base == "wrap":
            return Wrap(torch.optim.AdamW(groups, betas=betas), method)
        return emanest.AdamW(groups, betas=betas, lookahead=method)

    override = {"lookahead": Lookahead(2, 0.3), "lookahead_alpha": 0.4}
    first = make(grouped(**override), METHODS[method])
    run(first, range(5))
    second = make(grouped(), None)
    with pytest.warns(UserWarning, match="brings another lookahead than") as told:
        second.load_state_dict(first.state_dict())
    assert len(told) == 1
    with torch.no_grad():
        for p, q in zip(params_of(second), params_of(first), strict=True):
            p.copy_(q)
    assert second.param_groups[1]["lookahead_alpha"] == 0.4
    for optimizer in (first, second):
        run(optimizer, range(5, 10))
    assert differing(content(first), content(second)) == []


@each_base
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("on", ["optimizer", "inner"])
def test_lr_reaches_the_step_after_a_load(base, early, on):
    """From a scheduler made before or after the load, on the wrapper or on what it wraps."""

    def schedulers(optimizer):
        inner = getattr(optimizer, "optimizers", [optimizer])
        return [StepLR(each, 1, gamma=0.5) for each in (inner if on == "inner" else [optimizer])]

    first, second = (BASES[base](helpers.parameters(), METHODS["ema"]) for _ in range(2))
    run(first, range(5))
    early_ones = schedulers(second) if early else []
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for p, q in zip(params_of(second), params_of(first), strict=True):
            p.copy_(q)
    for optimizer, all_of in (
        (first, schedulers(first)),
        (second, early_ones or schedulers(second)),
    ):
        run(optimizer, range(5, 9), each=lambda all_of=all_of: [s.step() for s in all_of])
        assert {group["lr"] for group in optimizer.param_groups} == {LR / 16}
    # as in torch, the load took away what the checkpoint lacks; schedulers know it themselves
    gone = {f"/param_groups/{i}/initial_lr" for i in range(len(first.param_groups)) if early}
    assert set(differing(content(first), content(second))) == gone
