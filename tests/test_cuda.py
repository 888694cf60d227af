# SPDX-License-Identifier: MIT
"""GPU back ends against the C++ one of the CPU, bit for bit; that in CUDA C++ is emulated too."""

import functools

import pytest
import torch

import emulated_cuda
from emanest import backends
from emanest.backends.per_tensor import PerTensor
from emanest.rules import BASES, LOOKAHEADS, POINTS
from helpers import moved
from test_rules import columns, each_base, each_dtype, each_look, numbers, tensors, wide

cpp = pytest.importorskip("emanest.backends.cpp", exc_type=ImportError)

# as csrc/kernels.h has it; a test compares
CHUNK = 8192

SCALE = -0.5

each_wide = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Emulated:
    """CPU tensors, kernels run by the CPU."""

    device = "cpu"

    def __init__(self):
        self.stream = emulated_cuda.extension().Stream()
        self.backend = emulated_cuda.backend(self.stream)


class OnGpu:
    """Tensors and kernels of a GPU."""

    device = "cuda"

    def __init__(self, name):
        self.backend, reason = backends.find(name, "cuda")
        if self.backend is None:
            pytest.skip(reason)


ON_GPU = [
    pytest.param(functools.partial(OnGpu, name), marks=pytest.mark.gpu, id=name)
    for name in ("cpp", "triton")
]


@pytest.fixture(params=[pytest.param(Emulated, id="emulated"), *ON_GPU])
def place(request):
    return request.param()


@pytest.fixture(params=ON_GPU)
def gpu(request):
    return request.param().backend


@pytest.fixture
def emulated():
    return Emulated()


def everywhere(value, device):
    """Copies of all tensors in nested lists."""
    if isinstance(value, torch.Tensor):
        return moved(value, device)
    return [everywhere(each, device) for each in value]


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for each in value for t in flat(each)]


def same(found, expected):
    """Whether all tensors in nested lists are the same, NaN included."""
    pairs = [[t.cpu().double().nan_to_num(7.25) for t in flat(each)] for each in (found, expected)]
    return all(map(torch.equal, *pairs)) and len(pairs[0]) == len(pairs[1])


def large(seed, dtype, positive=False):
    """Tensors of several chunks, at their edges, and at addresses that wide loads do not suit."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size, offset in [(3 * CHUNK + 5, 0), (CHUNK, 0), (CHUNK + 1, 1), (CHUNK - 1, 2), (1030, 4)]:
        values = torch.randn(size + offset, generator=generator)
        found.append((values.square() if positive else values).to(dtype)[offset:])
    return found


def arguments(base, look, dtype, grad_dtype=None):
    """Parameters, gradients and both rules' state."""
    rules = (BASES[base], 10), (LOOKAHEADS[look], 20)
    ys, gs = (tensors(1, dtype) + large(1, dtype)), tensors(2, dtype, twist=True) + large(2, dtype)
    if grad_dtype:
        gs = [g.to(grad_dtype) for g in gs]
    state = [columns(rule.state, seed, wide(dtype)) for rule, seed in rules]
    for (rule, seed), entries in zip(rules, state, strict=True):
        for i, (name, column) in enumerate(zip(rule.state, entries, strict=True)):
            column += large(seed + i, wide(dtype), "_sq" in name)
    return [ys, gs, [*state[0], *state[1]]]


def given(*rules, scale=(SCALE,)):
    return (*scale, *(number for rule in rules for number in numbers(rule)))


@each_base
@each_look
@each_dtype
def test_a_step(place, base, look, dtype):
    expected = arguments(base, look, dtype)
    found = everywhere(expected, place.device)
    tail = given(BASES[base], LOOKAHEADS[look]), wide(dtype)
    cpp.apply_("step", (base, look), *expected, *tail)
    place.backend.apply_("step", (base, look), *found, *tail)
    assert same(found, expected)


@each_look
@each_dtype
def test_following(place, look, dtype):
    ys, snapshots, state = arguments("sgd", look, dtype)
    expected = [ys, snapshots, state]
    found = everywhere(expected, place.device)
    tail = given(LOOKAHEADS[look], scale=()), wide(dtype)
    cpp.apply_("follow", (look,), *expected, *tail)
    place.backend.apply_("follow", (look,), *found, *tail)
    assert same(found, expected)
    assert same(found[0], [s.cpu() for s in found[1]])


@pytest.mark.parametrize("point", POINTS)
@each_dtype
def test_moving(place, point, dtype):
    ys, _, state = arguments("sgd", "nag", dtype)
    expected = [ys, state]
    found = everywhere(expected, place.device)
    for backend, (ys, state) in ((cpp, expected), (place.backend, found)):
        backend.apply_("move", (point,), ys, (), state, (0.4,), wide(dtype))
    assert same(found, expected)


@each_wide
def test_a_move_does_not_write_the_state_that_it_reads(place, dtype):
    """Else it would undo a move of the state itself."""
    y = torch.arange(CHUNK + 3, dtype=dtype, device=place.device)
    place.backend.apply_("move", ("y_along",), [y], (), [[y]], (0.5,), dtype)
    assert same(y, torch.arange(CHUNK + 3) * 1.5)


@each_dtype
@pytest.mark.parametrize(
    "grad_dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2],
    ids=str,
)
def test_gradients_of_another_format(place, dtype, grad_dtype):
    expected = arguments("momentum", "nag", dtype, grad_dtype)
    found = everywhere(expected, place.device)
    tail = given(BASES["momentum"], LOOKAHEADS["nag"]), wide(dtype)
    cpp.apply_("step", ("momentum", "nag"), *expected, *tail)
    place.backend.apply_("step", ("momentum", "nag"), *found, *tail)
    assert same(found, expected)


def test_gradients_of_several_formats_in_one_call(place):
    expected = arguments("momentum", "nag", torch.float32)
    formats = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
    expected[1] = [g.to(formats[i % 4]) for i, g in enumerate(expected[1])]
    found = everywhere(expected, place.device)
    tail = given(BASES["momentum"], LOOKAHEADS["nag"]), torch.float32
    cpp.apply_("step", ("momentum", "nag"), *expected, *tail)
    place.backend.apply_("step", ("momentum", "nag"), *found, *tail)
    assert same(found, expected)


@each_dtype
def test_values_that_are_not_finite_and_tiny_ones(place, dtype):
    values = [
        torch.inf,
        -torch.inf,
        torch.nan,
        0.0,
        -0.0,
        6e-8,
        -3e-8,
        65504.0,
        1e-40,
        3e38,
        65520.0,
    ]
    g = torch.tensor([*values, 0.5], dtype=torch.float64).repeat(50).to(dtype)
    expected = [[torch.linspace(-1e-7, 1e-7, len(g)).to(dtype)], [g], []]
    found = everywhere(expected, place.device)
    for backend, args in ((cpp, expected), (place.backend, found)):
        backend.apply_("step", ("sgd", "none"), *args, (1.0, -1.0, 0.0), wide(dtype))
    assert same(found, expected)
    # a NaN has any sign
    signs = [args[0][0].cpu().double().nan_to_num(7.25).signbit() for args in (found, expected)]
    assert torch.equal(*signs)


@each_dtype
@pytest.mark.parametrize("look", ["none", "ema_nesterov"])
def test_numbers_in_a_vector(place, look, dtype):
    expected = arguments("adamw", look, dtype)
    found = everywhere(expected, place.device)
    values = given(BASES["adamw"], LOOKAHEADS[look])
    vector = torch.tensor(values, dtype=torch.float64, device=place.device)
    cpp.apply_("step", ("adamw", look), *expected, values, wide(dtype))
    place.backend.apply_("step", ("adamw", look), *found, vector, wide(dtype))
    assert same(found, expected)


@pytest.mark.parametrize("vectors", [False, True])
def test_numbers_per_tensor(place, vectors):
    expected = arguments("adamw", "ema_nesterov", torch.float32)
    found = everywhere(expected, place.device)
    values, of = (
        given(BASES["adamw"], LOOKAHEADS["ema_nesterov"]),
        [i % 3 for i in range(len(found[0]))],
    )
    sets = [tuple(n * (1 + k / 7) for n in values) for k in range(3)]
    on_device = [torch.tensor(s, dtype=torch.float64, device=place.device) for s in sets]
    rules = "step", ("adamw", "ema_nesterov")
    cpp.apply_(*rules, *expected, PerTensor(sets, of), torch.float32)
    numbers = PerTensor(on_device if vectors else sets, of)
    place.backend.apply_(*rules, *found, numbers, torch.float32)
    assert same(found, expected)


@pytest.mark.parametrize("flag", [0.0, 1.0, torch.nan])
def test_a_call_may_be_skipped(place, flag):
    expected = arguments("adamw", "ema_nesterov", torch.float32)
    found = everywhere(expected, place.device)
    skip = torch.full((1,), flag, device=place.device)
    values = given(BASES["adamw"], LOOKAHEADS["ema_nesterov"])
    if flag == 0:
        cpp.apply_("step", ("adamw", "ema_nesterov"), *expected, values, torch.float32)
    place.backend.apply_(
        "step", ("adamw", "ema_nesterov"), *found, values, torch.float32, skip=skip
    )
    assert same(found, expected)
    ys, snapshots, state = found
    state = state[2:]
    before = everywhere([ys, snapshots, state], "cpu")
    values = given(LOOKAHEADS["ema_nesterov"], scale=())
    place.backend.apply_(
        "follow", ("ema_nesterov",), ys, snapshots, state, values, torch.float32, skip=skip
    )
    assert same([ys, snapshots, state], before) == (flag != 0)


@each_dtype
@pytest.mark.parametrize("size", [*range(1, 10), 1023, CHUNK - 1, CHUNK, CHUNK + 3, 2 * CHUNK + 1])
def test_nothing_else_is_written(place, dtype, size):
    for offset in range(5):
        memory = [torch.full((size + 16,), 7.0, dtype=d) for d in (dtype, dtype, wide(dtype))]
        expected = [m[offset : offset + size] for m in memory]
        for seed, t in enumerate(expected):
            t.copy_(torch.randn(size, generator=torch.Generator().manual_seed(seed)))
        found = everywhere(expected, place.device)
        values = given(BASES["momentum"])
        for backend, (y, g, m) in ((cpp, expected), (place.backend, found)):
            backend.apply_("step", ("momentum", "none"), [y], [g], [[m]], values, wide(dtype))
        whole = [f.as_strided((len(m),), (1,), 0) for f, m in zip(found, memory, strict=True)]
        assert same(whole, memory)


@each_dtype
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, None], ids=str)
def test_a_value_that_is_not_finite_is_found(place, dtype, bad):
    for offset in (0, 1):
        clean = torch.full((2 * CHUNK + 5 + offset,), torch.finfo(dtype).max, dtype=dtype)
        clean[::2] = torch.finfo(dtype).tiny
        others = [torch.ones(3), torch.ones(9, dtype=torch.float16), torch.ones(0)]
        for at in (0, 5, CHUNK - 1, CHUNK, 2 * CHUNK + 3, 2 * CHUNK + 4):
            g = clean.clone()[offset:]
            if bad is not None:
                g[at] = bad
            found = place.backend.nonfinite(everywhere([*others, g], place.device))
            assert found.shape == (1,)
            assert found.dtype == torch.float32
            assert found.item() == (bad is not None)


# ---- the table ----------------------------------------------------------------------------------


def small(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5 + i % 3, generator=generator) for i in range(count)]


def stepped(backend, ys, gs, **options):
    backend.apply_("step", ("sgd", "none"), ys, gs, [], (1.0, 0.5, 0.25), torch.float32, **options)


def launches(stream):
    return stream.entries, stream.chunks, stream.others


def test_the_constants_are_those_of_the_source():
    assert emulated_cuda.extension().CHUNK == CHUNK


def test_what_has_not_changed_is_not_sent_again(emulated):
    stream, memo = emulated.stream, {}
    batch = emulated_cuda.extension().BATCH
    ys, gs = small(2 * batch + 3), small(2 * batch + 3, 1)
    expected = everywhere(ys, "cpu")
    counts = []
    for t in range(4):
        if t == 2:
            gs[batch] = gs[batch].clone()
            gs[batch + 2] = gs[batch + 2].clone()
        before = launches(stream)
        stepped(emulated.backend, ys, gs, memo=memo)
        stepped(cpp, expected, gs)
        counts.append(tuple(b - a for a, b in zip(before, launches(stream), strict=True)))
        assert same(ys, expected)
    assert counts == [(3, 1, 1), (0, 0, 1), (1, 0, 1), (0, 0, 1)]


def test_whatever_moves_is_sent_again(emulated):
    """Parameters, gradients, each state; and a gradient that only changes its format."""
    columns_ = [small(3, seed) for seed in range(5)]
    expected, memo = everywhere(columns_, "cpu"), {}

    def step(backend, columns_, **options):
        ys, gs, *state = columns_
        tail = given(BASES["adamw"], LOOKAHEADS["nag"]), torch.float32
        backend.apply_("step", ("adamw", "nag"), ys, gs, [s[:] for s in state], *tail, **options)

    for column in [None, *range(5), "format"]:
        if column == "format":
            # in the same memory
            columns_[1][2] = columns_[1][2].view(torch.bfloat16)[:7]
            expected[1][2] = expected[1][2].view(torch.bfloat16)[:7]
        elif column is not None:
            columns_[column][1] = columns_[column][1].clone()
        step(emulated.backend, columns_, memo=memo)
        step(cpp, expected)
        assert same(columns_, expected)
    assert launches(emulated.stream) == (7, 1, 7)


def test_other_numbers_of_the_same_tensors_are_not_sent_with_them(emulated):
    """Only which of them a tensor has."""
    stream, memo, ys, gs = emulated.stream, {}, small(3), small(3, 1)
    sent = []
    for of, lr in (([1, 0, 0], 0.5), ([1, 0, 0], 0.25), ([1, 0, 1], 0.25)):
        numbers = PerTensor([(1.0, 0.5, 0.0), (1.0, lr, 0.0)], of)
        before = stream.entries
        emulated.backend.apply_(
            "step", ("sgd", "none"), ys, gs, [], numbers, torch.float32, memo=memo
        )
        sent.append(stream.entries - before)
    assert sent == [1, 0, 1]


def test_other_tensors_in_the_same_memo(emulated):
    memo = {}
    for sizes in ([3, 5], [5, 3], [CHUNK + 1, 3], [3, CHUNK + 1], [4] * 90, [0, 1], [], [1]):
        ys, gs = ([torch.randn(size) for size in sizes] for _ in range(2))
        expected = everywhere(ys, "cpu")
        one = torch.ones(1)
        stepped(emulated.backend, [*ys, one.clone()], [*gs, one], memo=memo)
        stepped(cpp, [*expected, one.clone()], [*gs, one])
        assert same(ys, expected)


def test_without_elements_nothing_is_launched(emulated):
    stepped(emulated.backend, [torch.ones(0)], [torch.ones(0)])
    assert launches(emulated.stream) == (1, 0, 0)
    assert emulated.backend.nonfinite([torch.ones(0)]).item() == 0


def test_a_capture_has_a_table_of_its_own(emulated):
    """A graph writes its table at every replay; a call outside must not find another's."""
    stream, memo = emulated.stream, {}
    ys, gs = small(3), small(3, 1)
    expected = everywhere(ys, "cpu")
    sent = []
    for capturing in (False, True, True, False):
        stream.capturing = capturing
        before = launches(stream)
        stepped(emulated.backend, ys, gs, memo=memo)
        stepped(cpp, expected, gs)
        sent.append(launches(stream)[0] - before[0])
    assert same(ys, expected)
    assert sent == [1, 1, 1, 0]


def test_every_stream_has_a_table_of_its_own(emulated):
    memo, other = {}, Emulated()
    ys, gs = small(3), small(3, 1)
    for place in (emulated, other, emulated, other):
        stepped(place.backend, ys, gs, memo=memo)
    assert launches(emulated.stream) == launches(other.stream) == (1, 1, 2)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
@pytest.mark.parametrize("again", [False, True])
def test_a_launch_that_fails_changes_nothing(emulated, fails_at, again):
    memo, ys, gs = {}, small(50), small(50, 1)
    if again:
        stepped(emulated.backend, ys, gs, memo=memo)
        gs = everywhere(gs, "cpu")
    expected, versions = everywhere(ys, "cpu"), [y._version for y in ys]
    emulated.stream.fails_at = fails_at
    with pytest.raises(RuntimeError, match="CUDA: a launch failed: as told"):
        stepped(emulated.backend, ys, gs, memo=memo)
    assert same(ys, expected)
    assert versions == [y._version for y in ys]
    emulated.stream.fails_at = -1
    stepped(emulated.backend, ys, gs, memo=memo)
    stepped(cpp, expected, gs)
    assert same(ys, expected)


def test_writes_are_counted(emulated):
    y, g = torch.ones(3), torch.ones(3)
    stepped(emulated.backend, [y], [g])
    assert (y._version, g._version) == (1, 0)


@pytest.mark.parametrize(
    ("numbers", "skip", "message"),
    [
        ((1.0, 0.5), None, "expected 3 numbers, got 2"),
        (torch.ones(3), None, "numbers: expected 3 of Double on cpu, got 3 of Float on cpu"),
        (torch.ones(2, dtype=torch.float64), None, "numbers: expected 3 of Double"),
        ((1.0, 0.5, 0.5), torch.ones(2), "skip: expected 1 of Float on cpu, got 2"),
        ((1.0, 0.5, 0.5), torch.ones(1, dtype=torch.float64), "skip: expected 1 of Float"),
    ],
)
def test_what_a_kernel_could_not_read_is_an_error(emulated, numbers, skip, message):
    y = torch.ones(3)
    with pytest.raises(ValueError, match=message):
        emulated.backend.apply_(
            "step", ("sgd", "none"), [y], [torch.ones(3)], [], numbers, torch.float32, skip=skip
        )
    assert torch.equal(y, torch.ones(3))
    assert launches(emulated.stream) == (0, 0, 0)


@pytest.mark.parametrize("skip", [torch.ones(2), torch.ones(1, dtype=torch.float64)])
def test_on_the_cpu_too(skip):
    with pytest.raises(ValueError, match="skip: expected 1 of Float on cpu"):
        stepped(cpp, [torch.ones(3)], [torch.ones(3)], skip=skip)


def test_a_call_that_is_skipped_on_the_cpu_writes_nothing():
    y, g = torch.ones(3), torch.full((3,), torch.nan)
    stepped(cpp, [y], [g], skip=torch.ones(1))
    assert torch.equal(y, torch.ones(3))
    assert y._version == 0


def test_tensors_on_two_devices_are_an_error():
    with pytest.raises(RuntimeError, match="tensors of one call are on cpu and on meta"):
        stepped(cpp, [torch.ones(3)], [torch.ones(3, device="meta")])


# ---- what only a GPU shows ----------------------------------------------------------------------


def graphed(work):
    """A CUDA graph of some work, after a run of it on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def on_gpu(base, look):
    """Dense parameters, gradients and state on the GPU."""

    def dense(value):
        if isinstance(value, torch.Tensor):
            return value.to("cuda", copy=True, memory_format=torch.contiguous_format)
        return [dense(each) for each in value]

    return dense(arguments(base, look, torch.float32))


def test_a_graph_can_be_replayed_between_other_calls(gpu):
    ys, gs, *state = on_gpu("adamw", "ema_nesterov")
    values = given(BASES["adamw"], LOOKAHEADS["ema_nesterov"])
    vector = torch.tensor(values, dtype=torch.float64, device="cuda")
    skip, memo = torch.zeros(1, device="cuda"), {}

    def work(gs=gs):
        tail = vector, torch.float32, skip, memo
        gpu.apply_("step", ("adamw", "ema_nesterov"), ys, gs, *state, *tail)

    graph = graphed(work)
    expected = everywhere([ys, gs, *state], "cpu")
    other = [2 * g for g in gs]
    for _ in range(2):
        graph.replay()
        work(other)
        work()
        for factor in (1, 2, 1):
            ys_, gs_, *state_ = expected
            gs_ = [factor * g for g in gs_]
            cpp.apply_("step", ("adamw", "ema_nesterov"), ys_, gs_, *state_, values, torch.float32)
    assert same([ys, gs, *state], expected)


def test_a_graph_has_the_numbers_per_tensor_of_its_capture(gpu):
    """They come from the host: as with numbers of a whole call, every replay has the same."""
    ys, gs, *state = on_gpu("adamw", "ema_nesterov")
    values, memo = given(BASES["adamw"], LOOKAHEADS["ema_nesterov"]), {}
    of = [i % 2 for i in range(len(ys))]

    def work(lr):
        numbers = PerTensor([values, tuple(lr * n for n in values)], of)
        rules = "step", ("adamw", "ema_nesterov")
        gpu.apply_(*rules, ys, gs, *state, numbers, torch.float32, memo=memo)
        return numbers

    expected = everywhere([ys, gs, *state], "cpu")
    graph = graphed(lambda: work(0.5))
    taken = [0.5, 0.25, 0.5, 0.75]
    for lr in taken[1:]:
        graph.replay() if lr == 0.5 else work(lr)
    for lr in taken:
        numbers = PerTensor([values, tuple(lr * n for n in values)], of)
        cpp.apply_("step", ("adamw", "ema_nesterov"), *expected, numbers, torch.float32)
    assert same([ys, gs, *state], expected)


def test_a_call_does_not_wait_for_the_device(gpu):
    ys, gs, *state = on_gpu("adamw", "none")
    memo, done = {}, torch.cuda.Event()
    others = [[g.clone() for g in gs] for _ in range(3)]
    vector = torch.tensor(given(BASES["adamw"]), dtype=torch.float64, device="cuda")
    for t, each in enumerate(others):
        options = {"skip": torch.zeros(1, device="cuda"), "memo": memo}
        gpu.apply_("step", ("adamw", "none"), ys, each, *state, vector, torch.float32, **options)
        found = gpu.nonfinite(each, memo)
        if t == 0:  # all is loaded now
            torch.cuda.synchronize()
            torch.cuda._sleep(2_000_000_000)
    done.record()
    assert not done.query()
    assert found.item() == 0


def test_more_elements_than_32_bits_count(gpu):
    size = 2**32 + 9
    if torch.cuda.mem_get_info()[0] < 6 * size:
        pytest.skip("needs 24 GiB")
    y, g = (torch.zeros(size, dtype=torch.float16, device="cuda") for _ in range(2))
    ends = [0, 2**31 - 2, 2**31 + 3, 2**32 - 1, 2**32, size - 1]
    g[ends] = torch.arange(1.0, 7.0, device="cuda").half()
    stepped(gpu, [y], [g])
    # the learning rate of ``stepped``
    assert torch.equal(y[ends], -0.5 * g[ends])
    assert torch.count_nonzero(y) == len(ends)
    g[size - 1] = torch.inf
    assert gpu.nonfinite([g]).item() == 1


@pytest.mark.skipif("torch.cuda.device_count() < 2")
def test_a_device_that_is_not_the_current_one(gpu):
    ys, gs = everywhere([small(9), small(9, 1)], "cuda:1")
    expected = everywhere([ys, gs], "cpu")
    stepped(gpu, ys, gs)
    stepped(cpp, *expected)
    assert torch.cuda.current_device() == 0
    assert same([ys, gs], expected)
