# SPDX-License-Identifier: MIT
"""Calls of kernels that skip Triton's JIT; ``test_triton`` runs this file in its own process."""

import collections
import contextlib
import gc
import inspect
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
import triton

import emanest
from bench.host_time import Kernels, muon
from bench.no_gpu.backend import both
from emanest.backends.program import Program
from emanest.kernels import backend, calls, newton_schulz, plan
from emanest.kernels.tiles import Tile
from emanest.rules import BASES, LOOKAHEADS
from no_launch import LAUNCHES
from test_products import LAYOUTS, operands
from test_rules import numbers

RUNTIME = triton.knobs.runtime


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is known of any call."""
    calls._found.cache_clear()
    newton_schulz._known.cache_clear()
    LAUNCHES.clear()


@pytest.fixture
def through_the_jit(monkeypatch):
    """How often the JIT was called."""
    found, run = [], triton.runtime.jit.JITFunction.run

    def counted(self, *args, **kwargs):
        found.append(self)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", counted)
    return found


def recorded(work):
    """What it launches, and whatever it returns, which must live on."""
    LAUNCHES.clear()
    kept = work()
    return list(LAUNCHES), kept


# ---- what is called -----------------------------------------------------------------------------


def product(name, *numbers, size=(2, 48, 64), dtype=torch.float16, layouts=("contiguous",) * 3):
    x, a, c = operands(size, dtype)
    x, a, c = (LAYOUTS[layout](t) for layout, t in zip(layouts, (x, a, c), strict=True))
    every = {"mm": (a, x), "sym_mm": (x,), "sym_baddbmm": (c, a, a), "mm_add": (x, a)}
    given = every[name]
    return lambda: getattr(newton_schulz, name)(*given, *numbers)


# name -> the numbers that it takes
PRODUCTS = {"mm": (), "sym_mm": (), "sym_baddbmm": (0.5, 2.0), "mm_add": (1, 3)}
SIZES = [(2, 48, 64), (1, 48, 64), (2, 33, 70), (3, 1, 16), (2, 128, 1040)]


def plain(count, dtype=torch.float32):
    return [torch.zeros(n + 1, dtype=dtype) for n in range(count)]


def stepped(base="adamw", look="ema_nesterov", skip=None, vector=False, dtype=torch.float32):
    rules, memo = (BASES[base], LOOKAHEADS[look]), {}
    state = [plain(3) for rule in rules for _ in rule.state]
    given = (-0.5, *numbers(rules[0]), *numbers(rules[1]))
    given = torch.tensor(given) if vector else given
    arguments = plain(3, dtype), plain(3, dtype), state, given, torch.float32
    return lambda: backend.apply_("step", (base, look), *arguments, skip, memo=memo)


def momentum(size):
    us, gs, state = (list(torch.zeros(3, size).unbind()) for _ in range(3))
    squares, memo = torch.zeros(3, dtype=torch.float64), {}
    return lambda: backend.apply_(
        "momentum",
        ("ema",),
        us,
        gs,
        [state],
        (1.0, 0.1, 0.1),
        torch.float32,
        squares=squares,
        memo=memo,
    )


def searched():
    gs, memo = plain(3), {}
    return lambda: backend.nonfinite(gs, memo)


PROGRAM = Program(
    ("a", "b"), (("input", 0, 0), ("input", 1, 0), ("*", 0, 1)), numbers=(2,), after=((0, 2),)
)


def planned(offset, number=0.5):
    """A program with an input on the device, aligned to 16 bytes or not, and one on the host."""
    inputs, out = (torch.zeros(4, dtype=torch.float64)[offset], number), torch.zeros(2).double()
    return lambda: plan.plan_(PROGRAM, inputs, (), out)


def flags(offset):
    return torch.zeros(4)[offset : offset + 1]


# each is called with every other one known; those that differ in little stand side by side
CASES = {
    **{
        f"{name} {size} {dtype}": lambda n=name, s=size, d=dtype: product(
            n, *PRODUCTS[n], size=s, dtype=d
        )
        for name in PRODUCTS
        for size in SIZES
        for dtype in (torch.float16, torch.float32)
    },
    **{
        f"{name} {layouts}": lambda n=name, ls=layouts: product(n, *PRODUCTS[n], layouts=ls)
        for name in PRODUCTS
        for layouts in [
            *((layout,) * 3 for layout in LAYOUTS),
            ("unaligned", "contiguous", "contiguous"),
            ("contiguous", "unaligned", "contiguous"),
            ("contiguous", "contiguous", "unaligned"),
            ("transposed", "contiguous", "contiguous"),
            ("contiguous", "contiguous", "transposed"),
        ]
    },
    "no addend": lambda: product("sym_baddbmm", 0.0, 2.0),
    "no addend, x": lambda: product("mm_add", 0, 2.0),
    "another dtype": lambda: product("mm_add", 1, 3, torch.float32),
    "step": stepped,
    "another lookahead": lambda: stepped(look="nag"),
    "another base": lambda: stepped(base="sgd"),
    "skip": lambda: stepped(skip=flags(0)),
    "unaligned skip": lambda: stepped(skip=flags(1)),
    "numbers on the device": lambda: stepped(vector=True),
    "bfloat16": lambda: stepped(dtype=torch.bfloat16),
    "momentum": lambda: momentum(8),
    "momentum of other sizes": lambda: momentum(5000),
    "nonfinite": searched,
    "plan": lambda: planned(0),
    "plan of an unaligned input": lambda: planned(1),
    "plan of another number": lambda: planned(0, 1.0),
}


def test_a_later_call_launches_what_the_jit_would(through_the_jit, monkeypatch):
    """The same kernel at the same place, with the same arguments in the same order."""
    made = {name: make() for name, make in CASES.items()}
    for work in made.values():
        work()
    through_the_jit.clear()
    direct = {name: recorded(work) for name, work in made.items()}
    assert not through_the_jit
    monkeypatch.setattr(calls, "watched", lambda kernel: True)
    for name, work in made.items():
        newton_schulz._known.cache_clear()
        (found, kept), (expected, _) = direct[name], recorded(work)
        assert len(found) == len(expected) > 0, name
        for a, b in zip(found, expected, strict=True):
            assert a.kernel is b.kernel, name
            assert a.where == b.where, name
            # a chain without hooks is no hook
            assert a.hooks == (None, None, None)
            assert alike(a, b) == alike(b, a), name
        del kept
    assert len(through_the_jit) == sum(len(found) for found, _ in direct.values())


def alike(launched, other):
    """Arguments with a word in place of what a call makes anew: an address that is in one only."""
    both = set(launched.arguments) & set(other.arguments)
    new = [a for a in launched.arguments if isinstance(a, int) and a > 2**32 and a not in both]
    assert len(new) <= 1
    return ["new" if a in new else a for a in launched.arguments]


def test_whoever_watches_launches_sees_them_all(through_the_jit):
    names = []
    work = product("sym_mm")
    work()
    RUNTIME.launch_enter_hook.add(lambda metadata: names.append(metadata.get()["name"]))
    try:
        for _ in range(2):
            (launched,), _ = recorded(work)
            enter, leave = launched.hooks[1:]
            assert (enter, leave) == (RUNTIME.launch_enter_hook, RUNTIME.launch_exit_hook)
            enter(launched.hooks[0])
    finally:
        RUNTIME.launch_enter_hook.calls.clear()
    assert len(names) == 2
    work()
    assert len(through_the_jit) == 3


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (RUNTIME, "debug", True),
        (RUNTIME, "launch_exit_hook", print),
        (RUNTIME, "add_stages_inspection_hook", lambda: ("", "")),
        (triton.knobs.compilation, "instrumentation_mode", "some"),
        (newton_schulz.products.symmetric_kernel, "pre_run_hooks", [lambda *a, **k: None]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_asked_of_the_jit_goes_through_it(where, name, value, monkeypatch):
    kernel = newton_schulz.products.symmetric_kernel
    assert not calls.watched(kernel)
    monkeypatch.setattr(where, name, value)
    assert calls.watched(kernel)


def test_a_triton_that_launches_otherwise_does_all_itself(through_the_jit, monkeypatch):
    assert calls.DIRECT
    source = inspect.getsource
    other = lambda function: source(function).replace("*bound_args.values()", "bound_args")  # noqa: E731
    monkeypatch.setattr(inspect, "getsource", other)
    assert not calls._launches_so()
    monkeypatch.setattr(calls, "DIRECT", False)
    monkeypatch.setattr(newton_schulz, "DIRECT", False)
    for work in (product("sym_mm"), stepped()):
        work()
        work()
    assert len(through_the_jit) == 4


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: device)
    assert calls.current(torch.device("cuda", 1)) == torch.device("cuda", 1)
    for device in (torch.device("cuda", 0), torch.device("cpu")):
        assert isinstance(calls.current(device), contextlib.nullcontext)


def test_a_known_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    here, launched = [0], []

    @contextlib.contextmanager
    def current(device):
        before, here[0] = here[0], device.index
        yield
        here[0] = before

    def run(programs, y, z, stream, *rest):
        launched.append((here[0], stream))

    active = SimpleNamespace(get_current_device=lambda: here[0], get_current_stream=str)
    monkeypatch.setattr(calls, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(calls, "current", current)
    for device in (0, 1):
        each = calls.Call(plan.plan_kernel, torch.device("cuda", device), (), {}, {})
        each.direct = run, None, None, ()
        each(1)
    assert launched == [(0, "0"), (1, "1")]
    assert here == [0]


def test_what_is_known_of_a_call_keeps_no_tensor():
    x = torch.zeros(2, 48, 64, dtype=torch.float16)
    result = newton_schulz.mm_add(x, newton_schulz.sym_mm(x), 1.0, 1.0)
    gone = [weakref.ref(t) for t in (x, result)]
    LAUNCHES.clear()
    del x, result
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert (
        calls._found.cache_info().maxsize == newton_schulz._known.cache_info().maxsize == calls.MOST
    )


def test_two_threads_launch_each_its_own():
    works = [product("sym_mm", size=(2, 16 * n, 64)) for n in (1, 2)]
    found = {}

    def many(work):
        found[work] = [work().shape[1] for _ in range(200)]

    threads = [threading.Thread(target=many, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(found[work]) for work in works] == [{16}, {32}]
    sizes = collections.Counter(launched.arguments[6] for launched in LAUNCHES)
    assert sizes == {16: 200, 32: 200}


@pytest.mark.parametrize("bad", ["shape", "dtype", "kind"])
def test_operands_that_do_not_fit_are_refused_every_time(bad):
    good, other = (
        torch.zeros(2, 8, 8),
        {
            "shape": torch.zeros(2, 8, 9),
            "dtype": torch.zeros(2, 8, 8).double(),
            "kind": torch.zeros(8, 8),
        }[bad],
    )
    newton_schulz.sym_baddbmm(good, good, good, 1.0, 1.0)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"alike and square|must be a batch of matrices"):
            newton_schulz.sym_baddbmm(good, good, other, 1.0, 1.0)


# ---- how much is compiled and launched -----------------------------------------------------------


def test_no_number_of_tiles_compiles_a_kernel_anew(monkeypatch):
    """Sizes whose tiles along k are 1, a multiple of 16, or neither; the same tile for all."""
    tile = Tile(64, 64, 64, 8, 4, 4)
    monkeypatch.setattr(newton_schulz, "tile_for", lambda *args: tile)
    for k in (64, 256, 768, 1024, 3072):
        newton_schulz.sym_mm(torch.zeros(2, 128, k).half())
        x, a = torch.zeros(2, k, 128).half(), torch.zeros(2, k, k).half()
        newton_schulz.mm_add(x, a, 1.0, 1.0)
    for m in (256, 400, 1040):
        x, a = torch.zeros(2, m, 1024).half(), torch.zeros(2, m, m).half()
        newton_schulz.mm_add(x, a, 0.0, 1.0)
    kernels = {(launched.kernel.name, launched.kernel) for launched in LAUNCHES}
    named = collections.Counter(name for name, _ in kernels)
    # of m the last two are no whole number of tiles
    assert named == {"symmetric_kernel": 1, "product_kernel": 3}


def test_a_muon_step_launches_so_much():
    """48 matrices in 4 shapes: 15 products in the standard form, 18 each in the Gram form."""
    optimizer = muon()
    LAUNCHES.clear()
    with Kernels() as others:
        optimizer.step()
    names = collections.Counter(launched.kernel.name for launched in LAUNCHES)
    passes = {"squares_kernel": 1, "pass_kernel": 2}
    # a shape's matrices are divided by their norms
    assert names == {**passes, "scale_kernel": 4, "symmetric_kernel": 58, "product_kernel": 11}
    found = collections.Counter(others.names)
    # of addresses, if memory of this step lies elsewhere than that of the one before
    assert found.pop("copy_", 0) <= 2
    # a segment of the Gram form has an identity to add; and the norms of all matrices
    assert found == {"add_": 6, "sqrt_": 1, "clamp_": 1, "reciprocal": 1}


@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 64, 256), (4, 256, 64)], ids=str)
def test_nothing_follows_the_last_product_of_orthogonalize(shape):
    """A cast would: of a float32 matrix that is iterated in float16."""
    g = torch.ones(shape)
    LAUNCHES.clear()
    with Kernels() as others:
        found = emanest.orthogonalize(g, dtype="float16")
    assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
    assert LAUNCHES[-1].kernel.name == "product_kernel"
    assert not {"_to_copy", "copy_", "clone"} & {*others.names}


def test_what_a_gpu_that_is_not_there_has_not_launched_spoils_no_operand():
    """A product in place, say: the result is copied over an addend that is still needed."""
    c = torch.ones(2)
    twice = both(lambda c, out: out.fill_(torch.nan), lambda c, out: out.copy_(2 * c))
    assert twice(c, out=c) is c
    assert c.tolist() == [2, 2]
