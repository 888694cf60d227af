# SPDX-License-Identifier: MIT
"""Passes on every back end: momenta, factors for rows, numbers per tensor, scales, and moves.

``test_triton`` runs this file in Triton's interpreter; the CUDA kernels are emulated.
"""

import itertools
import math
import re

import pytest
import torch

import emulated_cuda
from emanest import backends, rules
from emanest.backends import eager
from emanest.backends.layout import scaled
from emanest.backends.per_tensor import PerTensor
from helpers import one_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(33, 17), (100, 300), (0, 5), (1, 1), (3, 9001), (5, 3, 2, 2)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EMA = (-0.5, 0.05, 0.3)
# of each momentum rule, after a factor of the gradients
MOMENTUM = {"ema": EMA, "adam": (-0.5, 0.05, 0.3, 0.1)}
NORMUON = (0.05, 1e-8)

each_wide = pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_momentum = pytest.mark.parametrize("rule", MOMENTUM)


def emulated():
    stream = emulated_cuda.extension().Stream()
    module = emulated_cuda.backend(stream)
    module.stream = stream  # it must live as long
    return module


# Triton is among them where it interprets: test_triton runs this file so
MODULES = {
    **{
        name: (lambda name=name: backends.pick("cpu", name))
        for name in backends.BACKENDS
        if name != "eager" and backends.find(name, "cpu")[0]
    },
    "cuda, emulated": emulated,
}


@pytest.fixture(params=MODULES)
def backend(request):
    return {**MODULES, "eager": lambda: eager}[request.param]()


def randn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(hash((shape, seed)) % 2**31)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def copies(value):
    """The same tensors in new memory, with their strides."""
    if isinstance(value, torch.Tensor):
        return value.clone(memory_format=torch.preserve_format)
    return [copies(v) for v in value] if isinstance(value, (list, tuple)) else value


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


# ---- the momentum pass --------------------------------------------------------------------------


def momentum(wide, dtype=torch.float32, grad_dtype=torch.float32, rule="ema"):
    """The arguments of a momentum pass; what it writes holds other values."""
    gs = [randn(*s, dtype=grad_dtype, seed=1) for s in SHAPES]
    gs[0] = randn(17, 33, dtype=grad_dtype, seed=1).t()
    states = range(len(rules.MOMENTA[rule].state))
    state = [[randn(*s, dtype=wide, seed=2 + k) for s in SHAPES] for k in states]
    # the second is an average of squares
    state[1:] = [[t.square() for t in column] for column in state[1:]]
    # views of one buffer, at odd addresses too
    buffer = torch.full((sum(g.numel() for g in gs) + 1,), 7.0, dtype=dtype)[1:]
    us = [u.view(s) for u, s in zip(buffer.split([g.numel() for g in gs]), SHAPES, strict=True)]
    squares = torch.full((len(us),), 7.0, dtype=torch.float64)
    return ["momentum", (rule,), us, gs, state, MOMENTUM[rule], wide, None, (), squares]


@each_wide
@each_dtype
@each_momentum
def test_updates_and_momenta_are_the_rule(backend, wide, dtype, rule):
    found, expected = (momentum(wide, dtype, rule=rule) for _ in range(2))
    backend.apply_(*found)
    eager.apply_(*expected)
    for a, b in zip(tensors(found[4]), tensors(expected[4]), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found[2], expected[2], strict=True):
        # two roundings, by way of float32, or one: a unit apart at most
        narrow = wide == torch.float64 and dtype == torch.float16
        assert torch.equal(a, b) or (narrow and torch.allclose(a, b, rtol=2**-10, atol=2**-24))


@each_wide
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_squares_are_those_of_the_update_before_it_is_rounded(backend, wide, grad_dtype):
    arguments = momentum(wide, torch.bfloat16, grad_dtype)
    expected = []
    for g, m in zip(arguments[3], arguments[4][0], strict=True):
        u, _ = rules.ema(g.to(wide) * EMA[0], (m,), EMA[1:])
        expected.append(u.double().square().sum())
    backend.apply_(*arguments)
    # n terms in blocks: far less than n units
    torch.testing.assert_close(arguments[-1], torch.stack(expected), rtol=1e-14, atol=0)


@each_momentum
def test_updates_without_squares_are_the_same(backend, rule):
    """Also in turn: what is kept of calls with squares does not serve those without."""
    (found, expected), memo = (momentum(torch.float32, rule=rule) for _ in range(2)), {}
    for wanted in (True, False, True):
        backend.apply_(*found[:-1], found[-1] if wanted else None, memo)
        eager.apply_(*expected)
        assert all(map(torch.equal, tensors(found[2:5]), tensors(expected[2:5])))
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-14, atol=0)


def test_updates_may_be_of_several_dtypes(backend):
    found, expected = momentum(torch.float32), momentum(torch.float32)
    found[2][1] = found[2][1].double()
    backend.apply_(*found)
    backend.apply_(*expected)
    assert all(torch.equal(a.float(), b) for a, b in zip(found[2], expected[2], strict=True))
    assert torch.equal(found[-1], expected[-1])


def test_squares_do_not_overflow_nor_vanish(backend):
    for size in (1e-30, 1e30):
        g = torch.full((50, 40), size)
        squares, (u, m) = torch.zeros(1, dtype=torch.float64), torch.zeros(2, 50, 40)
        arguments = [u], [g], [[m]], (1.0, 1.0, 0.0), torch.float32
        backend.apply_("momentum", ("ema",), *arguments, squares=squares)
        exact = 2000 * g[0, 0].double() ** 2
        torch.testing.assert_close(squares[0], exact, rtol=1e-14, atol=0)


def test_squares_have_the_same_bits_in_any_company(backend):
    """On a GPU as long as addresses are aligned, as those of a batch are."""
    together = momentum(torch.float32)
    together[2] = [torch.empty_like(u) for u in together[2]]
    backend.apply_(*together)
    for i in range(len(SHAPES)):
        *name, us, gs, (state,), numbers, dtype, skip, scales, squares = momentum(torch.float32)
        one = slice(i, i + 1)
        us = [torch.empty_like(us[i])]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            again = copies([us, gs[one], [state[one]]])
            its = squares[one].clone()
            backend.apply_(*name, *again, numbers, dtype, skip, scales, its)
            assert torch.equal(its, together[-1][one])


# function -> what it is called with, and where among that are its numbers and what it writes; its
# skip comes two after its numbers
CALLS = {
    "apply_": (lambda: momentum(torch.float32), 5, 2),
    "rows_": (lambda: [*rows(torch.float32), None], 5, 4),
}


@pytest.mark.parametrize("function", CALLS)
def test_nothing_is_written_where_the_flag_is_set(backend, function):
    make, numbers, at = CALLS[function]
    arguments, before = make(), make()
    for flag in (torch.ones(1), torch.zeros(1)):
        passed = [*arguments]
        passed[numbers + 2] = flag
        getattr(backend, function)(*passed)
        changed = not all(map(torch.equal, tensors(arguments), tensors(before)))
        assert changed == (flag == 0)
    assert not torch.equal(arguments[at][0], before[at][0])


@pytest.mark.parametrize("function", CALLS)
def test_numbers_may_be_a_vector(backend, function):
    make, numbers, _ = CALLS[function]
    plain, found = make(), make()
    getattr(backend, function)(*plain)
    passed = [*found]
    passed[numbers] = torch.tensor(found[numbers], dtype=torch.float64)
    getattr(backend, function)(*passed)
    assert all(map(torch.equal, tensors(found), tensors(plain)))


def test_momentum_state_in_an_odd_layout_is_written(backend):
    found, expected = momentum(torch.float32), momentum(torch.float32)
    for arguments in (found, expected):
        arguments[4][0][0] = arguments[4][0][0].t().contiguous().t()
        arguments[4][0][1] = arguments[4][0][1].repeat(1, 2)[:, ::2]
    backend.apply_(*found)
    eager.apply_(*expected)
    for a, b in zip(tensors(found[:5]), tensors(expected[:5]), strict=True):
        assert torch.equal(a, b)


def test_momenta_are_seen_to_change(backend):
    arguments = momentum(torch.float32)
    before = [t._version for t in arguments[2]]
    backend.apply_(*arguments)
    assert all(t._version > v for t, v in zip(arguments[2], before, strict=True))


# ---- a move between x and y ---------------------------------------------------------------------


def test_a_move_does_not_write_the_state_that_it_reads(backend):
    """Else it would undo a move of the state itself."""
    y = torch.arange(33.0)
    backend.apply_("move", ("y_along",), [y], (), [[y]], (0.5,), torch.float32)
    assert torch.equal(y, torch.arange(33.0) * 1.5)


# ---- factors for rows ---------------------------------------------------------------------------


def rows(wide, dtype=torch.float32):
    os = [randn(*s, dtype=dtype) for s in [(33, 17), (100, 300), (1, 1), (3, 9001)]]
    # rows of unlike sizes
    os = [(o * torch.logspace(-1, 1, len(o))[:, None]).to(dtype) for o in os]
    state = [randn(len(o), 1, dtype=wide, seed=3).square() for o in os]
    scales = [torch.full((1,), 0.5 + i, dtype=wide) for i in range(len(os))]
    factors = [torch.full((len(o),), 7.0, dtype=wide) for o in os]
    return ["normuon", os, [state], scales, factors, NORMUON, wide]


def textbook_rows(o, v, scale, wide):
    """ALGORITHMS 3.3 in float64."""
    o, weight, eps = o.double(), *NORMUON
    v = v.double() + weight * (o.square().mean(1, keepdim=True) - v.double())
    p = o / (v.sqrt() + eps)
    kept = o.norm() / (p.norm() + eps)
    return v.to(wide), (kept / (v.sqrt() + eps)).flatten().to(wide) * scale


@each_wide
@each_dtype
def test_rows_are_the_rule_and_keep_the_norm(backend, wide, dtype):
    arguments = rows(wide, dtype)
    expected = [
        textbook_rows(o, v, s, wide)
        for o, v, s in zip(arguments[1], arguments[2][0], arguments[3], strict=True)
    ]
    backend.rows_(*arguments)
    # roots, quotients and sums of thousands of terms: a few units
    tolerance = 8 * torch.finfo(wide).eps
    for (v, factors), new, found in zip(expected, arguments[2][0], arguments[4], strict=True):
        torch.testing.assert_close(new, v, rtol=tolerance, atol=0)
        torch.testing.assert_close(found, factors, rtol=tolerance, atol=0)
    for o, f, scale in zip(arguments[1], arguments[4], arguments[3], strict=True):
        after = (o.double() * f.double()[:, None] / scale.double()).norm()
        torch.testing.assert_close(after, o.double().norm(), rtol=1e-6, atol=0)


def test_rows_without_columns_leave_no_nan(backend):
    state, factors = torch.ones(5, 1), torch.full((5,), 7.0)
    arguments = ["normuon", [torch.empty(5, 0)], [[state]], [torch.ones(1)], [factors]]
    backend.rows_(*arguments, NORMUON, torch.float32)
    torch.testing.assert_close(state, torch.full((5, 1), 1 - NORMUON[0]))
    assert factors.eq(0).all()


def test_rows_have_the_same_bits_in_any_company(backend):
    together = rows(torch.float32)
    backend.rows_(*together)
    for i in range(len(together[1])):
        name, os, (state,), scales, factors, *rest = rows(torch.float32)
        one = slice(i, i + 1)
        backend.rows_(name, os[one], [state[one]], scales[one], factors[one], *rest)
        assert torch.equal(factors[i], together[4][i])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_row_state_in_an_odd_layout_and_format_is_written(backend, dtype):
    arguments = rows(torch.float32)
    expected = rows(torch.float32)
    state = expected[2][0][0] = expected[2][0][0].to(dtype).float()
    arguments[2][0][0] = state.expand(33, 2)[:, :1].to(dtype)
    backend.rows_(*arguments)
    eager.rows_(*expected)
    assert torch.equal(arguments[2][0][0], state.to(dtype))
    assert torch.equal(arguments[4][0], expected[4][0])


# ---- numbers of their own -----------------------------------------------------------------------

SIZES = [(9, 11), (7, 1), (3, 2731), (0, 4), (5, 3)]
OF = [2, 0, 1, 0, 2]
EMA_NESTEROV = (0.1, 0.4, 0.6)
# rules -> what their pass is called with: which of input and scales, columns of state, numbers
SHARED = {
    ("step", "adamw", "ema_nesterov"): (True, False, 3, (-0.5, 0.3, 0.1, 0.2, 0.1, 0.7, 0.3)),
    ("step", "direction", "ema_nesterov"): (True, True, 1, (-0.5, 0.3, 0.1)),
    ("follow", "ema_nesterov"): (True, False, 1, ()),
    ("move", "y_along"): (False, False, 1, (0.4,)),
    ("momentum", "ema"): (True, False, 1, EMA),
    ("momentum", "adam"): (True, False, 2, MOMENTUM["adam"]),
    ("rows", "normuon"): (False, True, 1, (0.05, 0.3)),
}


def shared(rules, dtype):
    """What a pass is called with but its numbers: lists with an item for each tensor."""
    has_input, has_scales, states, _ = SHARED[rules]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    name, count = rules[0], len(SIZES)
    # the interpreter takes its time for long rows
    sizes = [(m, min(n, 40)) for m, n in SIZES] if name == "rows" else SIZES
    ys = [randn(*s, dtype=wide if name == "momentum" else dtype) for s in sizes]
    formats = dtype if name == "follow" else torch.bfloat16, dtype
    inputs = [randn(*s, dtype=formats[i % 2], seed=1) for i, s in enumerate(sizes)]
    state = [
        [randn(*(s[:1] if name == "rows" else s), dtype=wide, seed=2 + k).square() for s in sizes]
        for k in range(states)
    ]
    scales = [
        randn(1 if i % 2 or name == "rows" else s[0], dtype=wide) for i, s in enumerate(sizes)
    ]
    found = torch.full((count,), 7.0, dtype=torch.float64)
    found = [randn(s[0], dtype=wide) for s in sizes] if name == "rows" else [*found.split(1)]
    return wide, [ys, inputs if has_input else (), state, scales if has_scales else (), found]


def passed(backend, rules, dtype, given, numbers, skip, memo=None):
    """One call."""
    (name, *rest), (ys, inputs, state, scales, found) = rules, given
    if name == "rows":
        backend.rows_(*rest, ys, state, scales, found, numbers, dtype, skip, memo)
        return
    squares = torch.cat(found) if name == "momentum" else None
    backend.apply_(name, rest, ys, inputs, state, numbers, dtype, skip, scales, squares, memo)
    if squares is not None:
        for to, value in zip(found, squares.split(1), strict=True):
            to.copy_(value)


def some(value, indices):
    """Of lists with an item for each tensor those of some tensors."""
    if not value or isinstance(value[0], torch.Tensor):
        return [value[i] for i in indices] if value else value
    return [some(each, indices) for each in value]


# name -> what makes a set of numbers, and dtypes of parameters
FORMS = {
    "floats": (tuple, DTYPES[:3]),
    "vectors": (lambda numbers: torch.tensor(numbers, dtype=torch.float64), DTYPES[1:2]),
}


@pytest.mark.parametrize("backend", [*MODULES, "eager"], indirect=True)
@pytest.mark.parametrize("rules", SHARED, ids="-".join)
@pytest.mark.parametrize("form", FORMS)
def test_numbers_per_tensor_have_the_bits_of_a_call_for_each_set(backend, rules, form):
    """Also where the same tensors then have other sets, or nothing may be written."""
    make, dtypes = FORMS[form]
    numbers = *SHARED[rules][-1], *(EMA_NESTEROV if rules[-1] == "ema_nesterov" else ())
    sets = [make([n * (1 + k / 7) for n in numbers]) for k in range(3)]
    for dtype in dtypes:
        (wide, together), (_, apart), memo = shared(rules, dtype), shared(rules, dtype), {}
        for of, skip in ((OF, None), (OF[::-1], torch.zeros(1)), (OF, torch.ones(1))):
            for k, own in enumerate(sets if skip != 1 else []):
                indices = [i for i, its in enumerate(of) if its == k]
                passed(backend, rules, wide, some(apart, indices), own, skip)
            passed(backend, rules, wide, together, PerTensor(sets, of), skip, memo)
            for a, b in zip(tensors(together), tensors(apart), strict=True):
                assert torch.equal(a, b)


VECTOR = torch.ones(3, dtype=torch.float64)
# the error -> sets of numbers, and each tensor's
BAD = {
    "of: expected 2 indices, one a tensor, got 1": ([(1.0, 0.1, 0.0)] * 2, [0]),
    "of: expected indices of 2 sets, got 0 to 2": ([(1.0, 0.1, 0.0)] * 2, [0, 2]),
    "of: expected indices of 2 sets, got -1 to 0": ([(1.0, 0.1, 0.0)] * 2, [0, -1]),
    "values: expected sets of one length, got [2, 3]": ([(1.0, 0.1, 0.0), (1.0, 0.1)], [0, 1]),
    "values: expected sets of one length, got [1, 3]": ([VECTOR, VECTOR[:1]], [0, 1]),
    "got one of sizes [3] of torch.float32 on cpu": ([VECTOR, VECTOR.float()], [0, 1]),
    "got one of sizes [3] of torch.float64 on meta": ([VECTOR, VECTOR.to("meta")], [0, 1]),
}


@pytest.mark.parametrize("backend", [*MODULES, "eager"], indirect=True)
@pytest.mark.parametrize("expected", BAD)
def test_numbers_per_tensor_that_do_not_fit_are_errors_and_change_nothing(backend, expected):
    ys, gs = ([torch.ones(3) for _ in range(2)] for _ in range(2))
    with pytest.raises(ValueError, match=re.escape(expected)):
        backend.apply_(
            "step", ("sgd", "none"), ys, gs, [], PerTensor(*BAD[expected]), torch.float32
        )
    assert all(y.eq(1).all() for y in ys)


# ---- scales -------------------------------------------------------------------------------------


def step(wide, sizes, grad_dtype=torch.float32):
    """A step with scales, by turns ``sizes`` of them for a parameter: 1 in all, 0 for each row."""
    ys = [
        randn(33, 17, dtype=wide),
        randn(17, 33, dtype=wide).t(),
        randn(4, 3, 5, 6, dtype=wide).to(memory_format=torch.channels_last),
        randn(7, dtype=wide),
        randn(dtype=wide),
        randn(0, 3, dtype=wide),
        randn(41, 301, dtype=wide)[1:],
        # of a stack, rows of each matrix: in one order, interleaved, kernels, none
        randn(5, 7, 3, dtype=wide),
        randn(5, 3, 7, dtype=wide).mT,
        randn(7, 3, 5, dtype=wide).movedim(2, 0),
        randn(1, 3, 7, dtype=wide).mT,
        randn(2, 3, 4, 5, 6, dtype=wide)[:, 1:],
        randn(0, 4, 3, dtype=wide),
    ]
    gs = [randn(*y.shape, dtype=grad_dtype, seed=1) for y in ys]
    gs[0] = randn(17, 33, dtype=grad_dtype, seed=1).t()
    rows = [math.prod(y.shape[: 1 if i < 7 else 2]) for i, y in enumerate(ys)]
    counts = [n or count for n, count in zip(itertools.cycle(sizes), rows, strict=False)]
    scales = [randn(n, dtype=wide, seed=2) for n in counts]
    m = [torch.empty_like(y).copy_(randn(*y.shape, dtype=wide, seed=3)) for y in ys]
    numbers = (1.0, 0.3, 0.05, 0.1, 0.4, 0.6)
    return ["step", ("direction", "ema_nesterov"), ys, gs, [m], numbers, wide, None, scales]


def written(arguments):
    return [*arguments[2], *arguments[4][0]]


@each_wide
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1,), (0,), (0, 1)], ids=str)
def test_a_scaled_step_has_the_bits_of_the_eager_one(backend, wide, grad_dtype, sizes):
    found, expected = step(wide, sizes, grad_dtype), step(wide, sizes, grad_dtype)
    backend.apply_(*found)
    eager.apply_(*expected)
    for a, b in zip(written(found), written(expected), strict=True):
        assert torch.equal(a, b)


def test_scales_of_one_change_no_bit(backend):
    found = [step(torch.float32, (1,)) for _ in range(2)]
    found[0][-1] = [torch.ones_like(s) for s in found[0][-1]]
    found[1][-1] = ()
    for arguments in found:
        backend.apply_(*arguments)
    assert all(map(torch.equal, written(found[0]), written(found[1])))


def test_only_interleaved_rows_are_multiplied_beforehand():
    contiguous, transposed = torch.ones(4, 3), torch.ones(3, 4).t()
    last = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    stack, swapped = torch.ones(5, 4, 3), torch.ones(4, 5, 3).transpose(0, 1)
    ys = [contiguous, transposed, last, torch.ones(()), stack, stack.mT, swapped]
    gs, scales = list(ys), [torch.full((n,), 2.0) for n in (4, 4, 2, 1, 20, 15, 20)]
    new_gs, new_scales = scaled(gs, ys, scales, torch.float32)
    untouched = [True, False, True, True, True, False, False]
    assert [a is b for a, b in zip(new_gs, gs, strict=True)] == untouched
    assert all((g == 2).all() for g, same in zip(new_gs, untouched, strict=True) if not same)
    assert torch.equal(new_gs[1], torch.full((4, 3), 2.0))
    assert new_scales[1].tolist() == [1.0]
    untouched = scaled(gs[:1], ys[:1], scales[:1], torch.float32)
    assert untouched[0][0] is gs[0]


def test_wrong_scales_are_errors_and_change_nothing():
    cpp = pytest.importorskip("emanest.backends.cpp", exc_type=ImportError)
    y = torch.ones(4, 3)
    for bad in (torch.ones(3), torch.ones(4, dtype=torch.float64)):
        arguments = "step", ("direction", "none"), [y], [torch.ones(4, 3)], [], (1.0, 0.1, 0.0)
        with pytest.raises(ValueError, match=r"scales of a parameter of sizes \[4, 3\]"):
            cpp.apply_(*arguments, torch.float32, None, [bad])
    with pytest.raises(ValueError, match="squares must be a float64 vector of 1"):
        cpp.apply_(
            "momentum", ("ema",), [y], [y], [[y.clone()]], EMA, torch.float32, squares=torch.ones(1)
        )
    assert torch.equal(y, torch.ones(4, 3))
