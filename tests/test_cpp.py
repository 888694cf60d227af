# SPDX-License-Identifier: MIT
"""The C++ back end against the eager one, bit for bit, and the memory that it is given."""

from pathlib import Path

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import emanest
import fresh
from emanest import EMANesterov
from emanest.backends import cpp, eager, layout
from emanest.rules import BASES, LOOKAHEADS, POINTS
from helpers import bits, flat, parameters, run, values
from test_rules import SCALE, TOLERANCES, columns, numbers, tensors, wide

each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
NARROW = [torch.bfloat16, torch.float16]
PAIR = ("adamw", "ema_nesterov")


def everything(ys, *columns):
    return [*ys, *(t for column in columns for t in column)]


def stepped(backend, base, look, dtype, grad_dtype=None, make=tensors):
    """All tensors after a step."""
    ys, gs = make(1, dtype), make(2, grad_dtype or dtype)
    state = [
        columns(r.state, 10 * i, wide(dtype), make)
        for i, r in enumerate((BASES[base], LOOKAHEADS[look]))
    ]
    given = SCALE, *numbers(BASES[base]), *numbers(LOOKAHEADS[look])
    backend.apply_("step", (base, look), ys, gs, [*state[0], *state[1]], given, wide(dtype))
    return everything(ys, *state[0], *state[1])


def same(found, expected):
    return all(bits(a) == bits(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("look", LOOKAHEADS)
@each_dtype
def test_a_step_equals_the_eager_one(base, look, dtype):
    assert same(*(stepped(b, base, look, dtype) for b in (cpp, eager)))


@each_dtype
@pytest.mark.parametrize("amsgrad", [False, True])
def test_runs_over_long_tensors_have_the_eager_bits(dtype, amsgrad):
    """One of 150 square roots of torch's own would be a neighbour of the right one."""
    runs = []
    for backend in ("cpp", "eager"):
        params = parameters(dtype, [(2**15,), (96, 50)])
        optimizer = emanest.AdamW(params, amsgrad=amsgrad, lookahead=EMANesterov(), backend=backend)
        run(optimizer, range(3))
        runs.append(values(optimizer))
    assert same(*runs)


@each_dtype
@pytest.mark.parametrize("grad_dtype", [*TOLERANCES, torch.float8_e5m2], ids=str)
def test_a_gradient_of_any_format_gives_the_eager_step(dtype, grad_dtype):
    assert same(*(stepped(b, *PAIR, dtype, grad_dtype) for b in (cpp, eager)))


@pytest.mark.parametrize("look", LOOKAHEADS)
@each_dtype
def test_following_equals_the_eager_one(look, dtype):
    runs = []
    for backend in (cpp, eager):
        ys, snapshots = tensors(1, dtype), tensors(2, dtype)
        state = columns(LOOKAHEADS[look].state, 20, wide(dtype))
        backend.apply_(
            "follow", (look,), ys, snapshots, state, numbers(LOOKAHEADS[look]), wide(dtype)
        )
        runs.append(everything(ys, snapshots, *state))
    assert same(*runs)


@pytest.mark.parametrize("point", POINTS)
@each_dtype
def test_moving_equals_the_eager_move(point, dtype):
    runs = []
    for backend in (cpp, eager):
        ys, state = tensors(1, dtype), columns(POINTS[point].state, 20, wide(dtype))
        backend.apply_("move", (point,), ys, (), state, (0.4,), wide(dtype))
        runs.append(ys)
    assert same(*runs)


def long(seed, dtype, positive=False, twist=False):
    """More than one thread's share, and a length that no vector divides; then views of it."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(2**20 + 3, generator=generator)
    whole = (whole.square() if positive else whole).to(dtype)
    return [whole, whole[: 2**16].clone()[1:], whole[: 2**16].clone().view(256, 256)[:, ::2]]


@each_dtype
def test_long_tensors_and_views_equal_the_eager_step(dtype):
    assert same(*(stepped(b, *PAIR, dtype, make=long) for b in (cpp, eager)))


@each_dtype
def test_the_number_of_threads_does_not_matter(dtype):
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(stepped(cpp, *PAIR, dtype, make=long))
    torch.set_num_threads(1)
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


def test_reruns_are_the_same():
    assert same(*(stepped(cpp, *PAIR, torch.float32, make=long) for _ in range(2)))


# ---- formats ------------------------------------------------------------------------------------


def all_patterns(dtype):
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def moved(y, m):
    """y + m through the C++ back end."""
    cpp.apply_("move", ("y_along",), [y], (), [[m]], (1.0,), torch.float32)
    return y


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_every_narrow_number_survives(dtype):
    """Widened and narrowed again; NaN stays NaN."""
    before = all_patterns(dtype)
    after = moved(before.clone(), torch.zeros(len(before)))
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    # y + 0 loses the sign of -0.0, as it must
    assert same([after.float().abs().nan_to_num(-1)], [before.float().abs().nan_to_num(-1)])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_narrowing_rounds_as_torch_does(dtype):
    """At every narrow number, halfway to the next, just beside that, and at random."""
    start = all_patterns(dtype).float()
    start = start[start.isfinite()].sort().values
    halfway = ((start[1:].double() + start[:-1].double()) / 2).float()
    inf = torch.tensor(torch.inf)
    random = torch.randn(10**6) * torch.logspace(-12, 6, 10**6)
    wide_values = torch.cat(
        [start, halfway, halfway.nextafter(inf), halfway.nextafter(-inf), random, start * 1.5]
    )
    found = moved(torch.zeros(len(wide_values), dtype=dtype), wide_values)
    expected = (wide_values + 0.0).to(dtype)
    assert torch.equal(found, expected)


# ---- memory -------------------------------------------------------------------------------------


def test_gradients_with_a_pending_negation_are_negated():
    g = torch.randn(5, dtype=torch.complex64).conj().imag
    assert g.is_neg()
    ys = [torch.ones(5) for _ in range(2)]
    for backend, y in zip((cpp, eager), ys, strict=True):
        backend.apply_("step", ("sgd", "none"), [y], [g], [], (1.0, 0.1, 0.0), torch.float32)
    assert same(ys[:1], ys[1:])


def test_conjugated_gradients_of_complex_parameters():
    runs = []
    for name in ("cpp", "eager"):
        (p,) = parameters(torch.complex64, [(4,)])
        p.grad = torch.arange(4).mul(1 + 2j).conj()
        emanest.SGD([p], lr=0.1, backend=name).step()
        runs.append(p.detach())
    assert same(runs[:1], runs[1:])


@pytest.mark.parametrize("name", ["step", "follow", "move"])
def test_writes_move_the_version_counters(name):
    """Autograd must notice that a tensor, saved for a backward, was written."""
    y, g, m = torch.ones(3), torch.ones(3), torch.zeros(3)
    arguments = {
        "step": (("sgd", "nag"), [y], [g], [[m]], (1.0, 0.1, 0.0, 0.5, 0.5), torch.float32),
        "follow": (("nag",), [y], [g], [[m]], (0.5, 0.5), torch.float32),
        "move": (("y_along",), [y], (), [[m]], (0.5,), torch.float32),
    }
    cpp.apply_(name, *arguments[name])
    written = {"step": (1, 0, 1), "follow": (1, 1, 1), "move": (1, 0, 0)}
    assert (y._version, g._version, m._version) == written[name]


def test_a_stale_backward_is_noticed():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = emanest.AdamW([w], backend="cpp")
    loss = (w * w).sum()
    w.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "arguments",
    [
        (("adamw", "none"), [torch.ones(3)], [torch.ones(3)], [[torch.ones(3)]]),
        (("sgd", "nag"), [torch.ones(3)], [torch.ones(3)], []),
        (("sgd", "none"), [torch.ones(3)], [torch.ones(3)] * 2, []),
        (("sgd", "none"), [torch.ones(3)], [], []),
        (("sgd", "none"), [torch.ones(3)], [], [[torch.ones(3)]]),
    ],
)
def test_wrong_counts_are_errors_and_change_nothing(arguments):
    y = arguments[1][0]
    with pytest.raises(ValueError, match="expected"):
        cpp.apply_("step", *arguments, (1.0, 0.1, 0.0), torch.float32)
    assert torch.equal(y, torch.ones(3))


def test_unknown_rules_are_errors():
    with pytest.raises(ValueError, match="no rule is called frobnicate"):
        cpp.apply_(
            "move", ("frobnicate",), [torch.ones(3)], (), [[torch.ones(3)]], (1.0,), torch.float32
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_runs_of_an_optimizer_equal_those_of_the_eager_back_end(dtype):
    """Layouts that need copies included: gradients and parameters in other memory orders."""
    shapes = [(3, 5), (7,), (), (2, 3, 4, 5)]
    runs = []
    for name in ("cpp", "eager"):
        params = parameters(dtype, shapes)
        params[3].data = params[3].data.to(memory_format=torch.channels_last)
        params[0].data = params[0].data.t().contiguous().t()
        optimizer = emanest.AdamW(params, lookahead=EMANesterov(), backend=name)
        run(optimizer, range(5))
        runs.append(values(optimizer))
    assert same(*runs)
    assert flat(runs[0]).isfinite().all()


# ---- layout.flat --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.ones(2, 3), True),
        (torch.ones(2, 3).t(), True),
        (torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last), True),
        (torch.ones(4)[1:], True),
        (torch.ones(()), True),
        (torch.ones(0, 3), True),
        (torch.ones(4)[::2], False),
        (torch.ones(2, 4)[:, :3], False),
        (torch.ones(1).expand(3), False),
    ],
)
def test_dense_is_without_gaps_in_any_order(tensor, dense):
    assert layout.is_dense(tensor) == dense


def test_what_is_written_to_a_copy_leaves_the_original_alone():
    y = torch.ones(8)[::2]
    (copy,), _, _, written = layout.flat([y], [], [], torch.float32)
    copy.zero_()
    assert torch.equal(y, torch.ones(4))
    assert [*map(id, written[0])] == [id(y), id(copy)]


def test_an_error_between_leaves_the_originals_alone(monkeypatch):
    tries = []

    def fails(*args):
        tries.append(args)
        if len(tries) == 2:
            args[-1][0][0].zero_()
            raise ValueError("after a copy was written")

    monkeypatch.setattr(cpp._C, "step_", fails)
    y = torch.ones(8)[::2]
    with pytest.raises(ValueError, match="after a copy"):
        cpp.apply_("step", ("sgd", "none"), [y], [y + 1], [], (1.0, 0.1, 0.0), torch.float32)
    assert torch.equal(y, torch.ones(4))


@pytest.mark.parametrize("out", [None, {}, torch.zeros(2), torch.zeros(1).double()], ids=str)
def test_what_is_found_goes_into_a_tensor_that_fits(out):
    with pytest.raises(ValueError, match="flag: expected"):
        cpp._C.nonfinite((), False, cpp._C.Target(()), [], out, [[], [torch.ones(3)]])


# ---- threads ------------------------------------------------------------------------------------


def test_a_tensor_without_memory_among_many_is_an_error():
    """Also where another thread meets it, which must not touch its references."""
    gs = [*torch.ones(2000, 3), TwoTensor(torch.ones(3), torch.ones(3))]
    ys = [*torch.ones(2001, 3)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(TypeError, match="of class TwoTensor"):
            cpp.nonfinite(gs)
        with pytest.raises(TypeError, match="of class TwoTensor"):
            cpp.apply_("step", ("sgd", "none"), ys, gs, [], (1.0, 0.1, 0.0), torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert all(y.eq(1).all() for y in ys)


STARTS = """if True:
    import os, torch
    from emanest.backends import cpp

    def call(name, count, m, n):
        torch.set_num_threads(1)
        ys, gs, a, b = ([torch.zeros(m, n) for _ in range(count)] for _ in range(4))
        columns = [[torch.zeros(m) for _ in range(count)] for _ in range(2)]
        squares, t = torch.zeros(count, dtype=torch.float64), (torch.float32,)
        calls = {
            "step": lambda: cpp.apply_(
                "step", ("adamw", "none"), ys, gs, [a, b], (0.1,) * 7, *t
            ),
            "momentum": lambda: cpp.apply_(
                "momentum", ("ema",), ys, gs, [a], (0.1,) * 3, *t, squares=squares
            ),
            "rows": lambda: cpp.rows_(
                "normuon", ys, columns[:1], [torch.ones(1)] * count, columns[1], (0.1, 0.1), *t
            ),
            "nonfinite": lambda: cpp.nonfinite(gs),
        }
        torch.set_num_threads(2)
        before = len(os.listdir("/proc/self/task"))
        calls[name]()
        print(len(os.listdir("/proc/self/task")) - before)

    for name in ("step", "momentum", "rows", "nonfinite"):
        call(name, 1, 60, 124)
        call(name, 465, 4, 4)
    call("step", 1, 600, 124)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc/self/task")
def test_only_work_that_is_worth_it_starts_threads():
    """As many values as one small matrix has start none, be they those of one tensor or of 465."""
    done = fresh.python(STARTS)
    assert list(map(int, done.stdout.split())) == [0] * 8 + [1]
