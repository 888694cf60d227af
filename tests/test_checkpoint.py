"""Saving and loading: training goes on bit for bit."""

import copy
import functools
import io
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

import emanest
import helpers
from emanest import EMANesterov, Lookahead, Wrap
from helpers import LR, METHODS, adamw, content, differing, params_of, run, values

BASES = {
    "adamw": adamw,
    "amsgrad": helpers.amsgrad,
    "sgd": helpers.sgd,
    "wrap": helpers.wrap_adamw,
    "wrap two": helpers.wrap_two,
}
DTYPES = [torch.float32, torch.bfloat16]

each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("base", BASES)
few_bases = pytest.mark.parametrize("base", ["adamw", "sgd", "wrap two"])
each_mode = pytest.mark.parametrize("mode", ["train", "eval"])


class Training:
    """Parameters, an optimizer and a scheduler, which save and load as users do it."""

    def __init__(self, base, method, dtype=torch.float32, fill=None):
        self.params = helpers.parameters(dtype, [(3, 5), ()])
        if fill is not None:
            for p in self.params:
                torch.nn.init.constant_(p, fill)
        self.optimizer = BASES[base](self.params, METHODS[method])
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


@functools.cache
def uninterrupted(base, method, dtype):
    return content(Training(base, method, dtype).run(range(10)).optimizer)


def storages(optimizer):
    tensors = [*params_of(optimizer)]
    for entries in optimizer.state.values():
        tensors += [v for v in entries.values() if isinstance(v, torch.Tensor)]
    return {t.untyped_storage().data_ptr() for t in tensors}


@each_method
@each_base
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [0, 1, 7])
@each_mode
def test_resume_is_exact(method, base, dtype, k, mode):
    first = Training(base, method, dtype).run(range(k))
    getattr(first.optimizer, mode)()
    saved = first.save()
    # whatever comes first, the optimizer or the parameters
    for last in ("optimizer", "params")[: 1 + (k == 7)]:
        second = Training(base, method, dtype, fill=3.0).load(saved, last)
        assert differing(content(second.optimizer), content(first.optimizer)) == []
        second.optimizer.train()
        second.run(range(k, 10))
        assert differing(content(second.optimizer), uninterrupted(base, method, dtype)) == []


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
    second.load_state_dict(first.state_dict())
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
    assert differing(content(first), content(second)) == []
