# SPDX-License-Identifier: MIT
"""find: our optimizer inside the wrappers of others, never silently none."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.optim import lr_scheduler

import emanest
import helpers
from emanest import find, find_all
from helpers import METHODS, adamw, content, differing, run, wrap_adamw


def optimizer(make=adamw, method="ema"):
    return make(helpers.parameters(), METHODS[method])


def imitation(inner):
    """What Lightning and Fabric make of an optimizer: not one, but an instance of its class."""

    class Wrapper:
        def __init__(self, inner):
            self._optimizer = inner
            self.__class__ = type("Imitation", (Wrapper, type(inner)), {})

        def __getattr__(self, name):
            return getattr(self._optimizer, name)

    return Wrapper(inner)


def sequential(inner):
    parts = [lr_scheduler.ConstantLR(inner), lr_scheduler.ExponentialLR(inner, 0.9)]
    return lr_scheduler.SequentialLR(inner, parts, milestones=[2])


def cyclic(inner):
    first, second = SimpleNamespace(), SimpleNamespace(optim=inner)
    first.optimizer, second.optimizers = second, [first]
    return first


HOLDERS = {
    "itself": lambda inner: inner,
    ".optimizer": lambda inner: SimpleNamespace(optimizer=inner),
    "._optimizer": lambda inner: SimpleNamespace(_optimizer=inner),
    ".optim": lambda inner: SimpleNamespace(optim=inner),
    ".optimizers": lambda inner: SimpleNamespace(optimizers=(inner,)),
    "._optimizers": lambda inner: SimpleNamespace(_optimizers=[inner]),
    "a list": lambda inner: [inner],
    "a dict": lambda inner: {"model": inner},
    "wrappers in wrappers": lambda inner: [SimpleNamespace(optim=SimpleNamespace(optim=[inner]))],
    "twice": lambda inner: [inner, SimpleNamespace(optimizer=inner)],
    "beside another": lambda inner: [torch.optim.SGD(helpers.parameters(), lr=1), inner],
    "beside nothing": lambda inner: SimpleNamespace(optimizer=None, optim=inner),
    "a cycle": cyclic,
    "an imitation": imitation,
    "a scheduler": lambda inner: lr_scheduler.StepLR(inner, 1),
    "a sequence of schedulers": sequential,
    "plateau": lr_scheduler.ReduceLROnPlateau,
}


@pytest.mark.parametrize("make", [adamw, wrap_adamw, helpers.wrap_two])
@pytest.mark.parametrize("holder", HOLDERS)
def test_it_is_found(holder, make):
    inner = optimizer(make)
    assert find(HOLDERS[holder](inner)) is inner
    assert find_all(HOLDERS[holder](inner)) == [inner]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_is_found_in_torchs_sharded_optimizer(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        params = helpers.parameters()
        outer = ZeroRedundancyOptimizer(
            params, optimizer_class=emanest.AdamW, lr=helpers.LR, lookahead=METHODS["ema"]
        )
        run(outer, range(3))
        plain = emanest.AdamW(helpers.parameters(), lr=helpers.LR, lookahead=METHODS["ema"])
        run(plain, range(3))
        # it has no eval() of its own
        find(outer).eval()
        plain.eval()
        assert helpers.same(outer, plain)
    finally:
        torch.distributed.destroy_process_group()


def test_several_are_an_error_with_a_way_out():
    generator, critic = optimizer(), optimizer(wrap_adamw)
    holder = SimpleNamespace(optimizers=[generator, critic, generator])
    with pytest.raises(
        ValueError, match=r"holds 2 optimizers of emanest \(AdamW, Wrap\); find_all"
    ):
        find(holder)
    assert find_all(holder) == [generator, critic]


def test_ours_is_where_it_stops():
    outer, inner = optimizer(), optimizer()
    outer.optim = inner
    assert find(outer) is outer
    assert find_all([outer, inner]) == [outer, inner]


def no_optimizer():
    return torch.optim.AdamW(helpers.parameters())


def enter(holder):
    with emanest.at_iterate(holder):
        pytest.fail("the block was entered")


NONE = {
    "nothing": (
        lambda: None,
        "looked at NoneType. Pass one, or what holds it as .optimizer, ._opt",
    ),
    "an empty list": (list, r"looked at list\."),
    "torch's": (no_optimizer, r"looked at torch\.optim\.adamw\.AdamW\."),
    "a model": (lambda: torch.nn.Linear(1, 1), r"looked at torch\.nn\.modules\.linear\.Linear\."),
    "torch's in a wrapper": (
        lambda: SimpleNamespace(optimizer=[None, no_optimizer()]),
        r"looked at types\.SimpleNamespace, list \(\.optimizer\), NoneType \(\.optimizer\[0\]\), "
        r"torch\.optim\.adamw\.AdamW \(\.optimizer\[1\]\)\.",
    ),
    "a class": (lambda: emanest.AdamW, "looked at type"),
}


@pytest.mark.parametrize("look", [find, find_all, enter])
@pytest.mark.parametrize("holder", NONE)
def test_none_is_an_error_that_says_what_was_looked_at(holder, look):
    make, match = NONE[holder]
    with pytest.raises(TypeError, match=match):
        look(make())


@pytest.mark.parametrize("method", ["ema", "gpa"])
def test_at_iterate_reaches_all_and_restores_the_mode_of_each(method):
    first, second = (optimizer(make, method) for make in (adamw, wrap_adamw))
    run(first, range(5))
    run(second, range(5))
    second.eval()
    before = [content(first), content(second)]
    holder = SimpleNamespace(optimizers=[first, imitation(second)])
    with contextlib.suppress(ZeroDivisionError), emanest.at_iterate(holder) as inside:
        assert inside is holder
        assert [each.param_groups[0]["train_mode"] for each in (first, second)] == [False, False]
        raise ZeroDivisionError
    assert differing(content(first), before[0]) == []
    assert differing(content(second), before[1]) == []


def test_if_one_cannot_go_to_x_the_others_come_back(monkeypatch):
    first, second = optimizer(), optimizer()
    run(first, range(5))
    before = content(first)
    monkeypatch.setattr(second, "eval", lambda: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError), emanest.at_iterate([first, second]):
        pytest.fail("the block was entered")
    assert differing(content(first), before) == []


def turns(first, second):
    """Steps of one and of the other: in turn, then several of one."""
    return [first, second] * 3 + [first] * 3 + [second] * 4 + [first]


@pytest.mark.filterwarnings("ignore:emanest. .* restarts from their new values")
@pytest.mark.parametrize("names", [*itertools.product(["ema", "lookahead", "gpa"], repeat=2)])
@pytest.mark.parametrize("make", [adamw, wrap_adamw])
@pytest.mark.parametrize("swapped", [False, True])
def test_optimizers_that_share_parameters_come_back_bit_for_bit(names, make, swapped):
    """Whichever stepped last, and whichever goes to x first."""

    def build():
        shared, *own = helpers.parameters(shapes=[(3, 5), (7,), (2,)])
        return [
            each([shared, p], METHODS[name])
            for each, p, name in zip((adamw, make), own, names, strict=True)
        ]

    evaluated, plain = build(), build()
    for t, pair in enumerate(zip(turns(*evaluated), turns(*plain), strict=True)):
        for each in pair:
            run(each, [t])
        with emanest.at_iterate(evaluated[::-1] if swapped else evaluated):
            pass
        assert helpers.same(evaluated[0], plain[0])
        assert helpers.same(evaluated[1], plain[1])
    for t in range(20, 23):
        for each in (*evaluated, *plain):
            run(each, [t])
    assert [differing(content(a), content(b)) for a, b in zip(evaluated, plain, strict=True)] == [
        [],
        [],
    ]
