# SPDX-License-Identifier: MIT
"""The Triton back end in Triton's interpreter: ``test_triton`` runs this file in its own process.

Triton decides when it is imported whether it interprets. The claims about rules are those of
``test_rules``, here with one back end and a selection of dtypes; the rest is about launches and
tables.
"""

import gc
import math
import weakref
from array import array

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import emanest
import helpers
import test_captures
import test_new_base
import test_points
import test_products
import test_rules
import test_stack
from bench.no_gpu.graph import Graph
from bench.stages.tiles import forced
from emanest import doctor
from emanest.backends import eager, guards
from emanest.backends.per_tensor import PerTensor
from emanest.kernels import backend, newton_schulz, passes, table, tiles
from emanest.kernels.targets import TARGETS
from emanest.matrix import forms
from emanest.matrix.norms import NORMS
from emanest.rules import BASES, LOOKAHEADS, POINTS
from optimizer_database import DATABASE
from test_rules import columns, numbers, tensors, wide

FLOAT32 = torch.float32
OTHERS = [torch.float64, torch.bfloat16, torch.float16]
each_base = pytest.mark.parametrize("base", BASES)
each_look = pytest.mark.parametrize("look", LOOKAHEADS)
each_other = pytest.mark.parametrize("dtype", OTHERS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [FLOAT32, *OTHERS], ids=str)
# every base and every lookahead once
SELECTION = [*((base, "ema_nesterov") for base in BASES), *(("adamw", look) for look in LOOKAHEADS)]
# the interpreter takes its time for operations, so a small tensor costs what a large one does
SIZES = [1, 7, 64]


@each_base
@each_look
def test_a_step_is_the_rules(base, look):
    test_rules.test_a_step_is_the_rules(backend, base, look, FLOAT32)


@each_other
def test_a_step_is_the_rules_in_other_dtypes(dtype):
    test_rules.test_a_step_is_the_rules(backend, "amsgrad", "snoo", dtype)


@each_look
def test_following_is_the_rule(look):
    test_rules.test_following_is_the_rule(backend, look, FLOAT32)


@each_other
def test_following_is_the_rule_in_other_dtypes(dtype):
    test_rules.test_following_is_the_rule(backend, "gpa", dtype)


@pytest.mark.parametrize("point", POINTS)
def test_moving_is_the_rule(point):
    test_rules.test_moving_is_the_rule(backend, point, FLOAT32)


@each_other
def test_moving_is_the_rule_in_other_dtypes(dtype):
    test_rules.test_moving_is_the_rule(backend, "y_between", dtype)


@pytest.mark.parametrize("name", test_rules.PASSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_state_may_be_in_any_format(name, dtype):
    test_rules.test_state_may_be_in_any_format(backend, name, FLOAT32, dtype)


@pytest.mark.parametrize("grad_dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [FLOAT32, torch.float16], ids=str)
def test_a_gradient_of_another_dtype_keeps_its_digits(grad_dtype, dtype):
    claim = test_rules.test_a_gradient_of_another_dtype_keeps_its_digits
    claim(backend, "adamw", grad_dtype, dtype)


@pytest.mark.parametrize(("base", "look"), SELECTION)
def test_numbers_may_be_a_vector_on_the_device(base, look):
    test_rules.test_numbers_may_be_a_vector_on_the_device(backend, base, look, FLOAT32)


def test_numbers_may_be_a_vector_on_the_device_in_float64():
    claim = test_rules.test_numbers_may_be_a_vector_on_the_device
    claim(backend, "nesterov", "lookahead", torch.float64)


@each_dtype
def test_a_step_may_be_skipped_on_the_device(dtype):
    test_rules.test_a_step_may_be_skipped_on_the_device(backend, "adamw", "gpa", dtype)


@pytest.mark.parametrize("look", ["none", "snoo"])
def test_following_may_be_skipped_on_the_device(look):
    test_rules.test_following_may_be_skipped_on_the_device(backend, look)


@each_dtype
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf, None], ids=str)
def test_a_value_that_is_not_finite_is_found(dtype, bad):
    for i, shape in enumerate([(), (1023,), (0,), (33, 65)]):
        gs = [torch.zeros(5, dtype=dtype), torch.ones(shape, dtype=dtype).t()]
        if bad is not None and i != 2:
            gs[1][(-1,) * gs[1].dim()] = bad
        assert backend.nonfinite(gs).tolist() == [bad is not None and i != 2]


# ---- chunks and layouts -------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "ema", "snoo"])
def test_a_base_of_one_file_is_the_textbook(method):
    test_new_base.check_textbook("triton", method, FLOAT32, 2e-6)


def problem(sizes, dtype=FLOAT32, base="adamw", look="ema_nesterov", make=None):
    """The arguments of a step, with the same values at each call."""
    generator = torch.Generator().manual_seed(1)

    def randn(size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    make = make or torch.clone
    ys, gs = ([make(randn(n).to(dtype)) for n in sizes] for _ in range(2))
    names = [*BASES[base].state, *LOOKAHEADS[look].state]
    states = [[make(randn(n).square().to(wide(dtype))) for n in sizes] for _ in names]
    given = -0.5, *numbers(BASES[base]), *numbers(LOOKAHEADS[look])
    return "step", (base, look), ys, gs, states, given, wide(dtype)


def run(arguments, backend=backend, **options):
    """Take a step; everything that it writes."""
    backend.apply_(*arguments, **options)
    return written(arguments)


def written(arguments):
    """Everything that a step writes."""
    _, _, ys, _, state, *_ = arguments
    return [*ys, *(t for column in state for t in column)]


def same(a, b):
    return all(map(torch.equal, a, b))


@pytest.fixture
def small_tiles(monkeypatch):
    """Chunks of 16 elements; what makes no vector goes by fours."""
    for name in ("TILES", "NONFINITE_TILES"):
        monkeypatch.setattr(backend, name, dict.fromkeys(backend.TILES, 16))


@each_dtype
def test_chunks_and_vectors_change_no_bit(dtype, monkeypatch):
    """One element at a time and many, aligned or not, in one chunk or in several."""
    sizes = [1, 16, 35, 64, 0, 101]
    whole = run(problem(sizes, dtype))
    monkeypatch.setattr(backend, "TILES", dict.fromkeys(backend.TILES, 16))
    assert same(run(problem(sizes, dtype)), whole)

    def unaligned(values):
        return torch.cat([values.new_zeros(1), values])[1:]

    assert same(run(problem(sizes, dtype, make=unaligned)), whole)


# elements -> (block, elements of it that are there) of each round: last chunks of vectors alone, of
# vectors and a rest, and of what one block of fours holds
ROUNDS = {
    32: [(16, 16), (16, 16)],
    24: [(16, 16), (16, 8)],
    31: [(16, 16), (4, 3), (16, 12)],
    19: [(16, 16), (4, 3)],
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("size", ROUNDS)
def test_a_ragged_end_takes_one_round_beside_the_vectors(size, monkeypatch):
    rounds, tile = [], passes._pass_tile

    def recorded(pointers, count, *others):
        rounds.append((others[-1], int(count.handle.data.item())))
        return tile(pointers, count, *others)

    monkeypatch.setattr(passes, "_pass_tile", recorded)
    backend.apply_(
        "move", ("x_slow",), [torch.zeros(size)], (), [[torch.ones(size)]], (0.0,), FLOAT32
    )
    assert rounds == ROUNDS[size]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("position", [0, 15, 16, 47, 48, 66])
def test_every_chunk_is_searched_for_what_is_not_finite(position):
    g = torch.zeros(67)
    g[position] = torch.inf
    assert backend.nonfinite([torch.zeros(16), g]).item() == 1


@pytest.mark.usefixtures("small_tiles")
def test_no_one_writes_outside_a_tensor():
    """Chunks at the end of a tensor, both ways of moving them."""
    for size in (1, 15, 16, 17, 20, 33):
        guarded = []

        def inside(values, guarded=guarded):
            guarded.append(torch.full((len(values) + 32,), 7.0, dtype=values.dtype))
            guarded[-1][16:-16] = values
            return guarded[-1][16:-16]

        run(problem([size], make=inside))
        for t in guarded:
            assert t[:16].eq(7).all()
            assert t[-16:].eq(7).all()


@each_dtype
def test_a_large_tensor_is_stepped_as_eager_does(dtype):
    size = [2**20 + 3]
    found, expected = run(problem(size, dtype)), run(problem(size, dtype), eager)
    rtol, atol = test_rules.TOLERANCES[dtype]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2 * rtol, atol=2 * atol)


@pytest.mark.parametrize(("base", "look"), SELECTION)
def test_a_step_has_the_bits_of_the_eager_one(base, look):
    """Every operation is rounded, and to nearest."""
    sizes = [1023]
    found, expected = (run(problem(sizes, base=base, look=look), b) for b in (backend, eager))
    assert same(found, expected)


def test_a_step_is_repeatable():
    assert same(run(problem(SIZES)), run(problem(SIZES)))


# ---- launches -----------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that run, in order."""
    found = []

    def counted(name, kernel):
        class Counted:
            def __getitem__(self, grid):
                found.append(name)
                return kernel[grid]

        return Counted()

    for name in ("pass", "nonfinite"):
        kernel = f"{name}_kernel"
        monkeypatch.setattr(passes, kernel, counted(name, getattr(passes, kernel)))
    return found


def test_a_bucket_takes_one_launch(launches):
    ys, gs = tensors(1, FLOAT32), tensors(2, FLOAT32, twist=True)
    state = columns(("z",), 20, FLOAT32)
    backend.apply_(
        "step", ("sgd", "gpa"), ys, gs, state, (1.0, *numbers(BASES["sgd"]), 0, 1, 0), FLOAT32
    )
    backend.apply_("follow", ("gpa",), ys, gs, state, (0, 1, 0), FLOAT32)
    backend.apply_("move", ("x_slow",), ys, (), state, (0.0,), FLOAT32)
    backend.nonfinite(gs)
    assert launches == ["pass"] * 3 + ["nonfinite"]


def test_gradients_of_several_dtypes_take_a_launch_each(launches):
    arguments, plain = problem([3, 5, 7, 9]), problem([3, 5, 7, 9])
    dtypes = [torch.bfloat16, FLOAT32, torch.bfloat16, torch.float64]
    for found in (arguments[3], plain[3]):
        found[:] = [g.bfloat16().to(dtype) for g, dtype in zip(found, dtypes, strict=True)]
    plain[3][:] = [g.to(FLOAT32) for g in plain[3]]
    memo = {}
    assert same(run(arguments, memo=memo), run(plain))
    assert launches == ["pass"] * 4


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_nothing_is_launched_for_nothing(launches, sizes):
    run(problem(sizes))
    empty = [torch.empty(n) for n in sizes]
    backend.apply_("follow", ("none",), empty, [t.clone() for t in empty], [], (), FLOAT32)
    backend.apply_("move", ("x_slow",), empty, (), [empty], (0.0,), FLOAT32)
    assert backend.nonfinite([*empty, torch.empty(0)]).item() == 0
    assert launches == []


def test_an_error_changes_nothing():
    y = torch.ones(4).to(torch.float8_e5m2)
    with pytest.raises(RuntimeError, match=r"no kernel for parameters of torch.float8_e5m2"):
        backend.apply_("step", ("sgd", "none"), [y], [torch.ones(4)], [], (1.0, 1.0, 0.0), FLOAT32)
    assert y.float().eq(1).all()
    arguments = problem(SIZES)
    before = [t.clone() for t in arguments[2]]
    arguments[3][1] = torch.empty(7, dtype=torch.bfloat16, device="meta")
    with pytest.raises(RuntimeError, match="is on meta, the parameter on cpu"):
        run(arguments)
    assert same(arguments[2], before)


def test_a_write_is_seen_by_autograd():
    y = torch.nn.Parameter(torch.ones(3))
    loss = (y * y).sum()
    with torch.no_grad():
        backend.apply_("step", ("sgd", "none"), [y], [torch.ones(3)], [], (1.0, 0.1, 0.0), FLOAT32)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- tables -------------------------------------------------------------------------------------


@pytest.fixture
def uploads(monkeypatch):
    """The shapes of what is copied to the device, in order."""
    found, upload = [], table.upload

    def recorded(values, to):
        found.append(tuple(to.shape))
        upload(values, to)

    monkeypatch.setattr(table, "upload", recorded)
    return found


def test_rows_are_copied_only_when_an_address_changes(uploads):
    arguments, memo = problem([3, 4, 5, 6]), {}
    gs = arguments[3]
    # the size, the first chunk, y, g, and three states
    run(arguments, memo=memo)
    assert uploads == [(5,), (4, 7)]
    run(arguments, memo=memo)
    assert uploads == [(5,), (4, 7)]
    kept, gs[2] = gs[2], gs[2].clone()
    run(arguments, memo=memo)
    assert uploads[2:] == [(4, 7)]
    gs[1], gs[2] = gs[1].clone(), kept
    for _ in range(2):
        run(arguments, memo=memo)
    assert uploads[3:] == [(4, 7)]


def test_other_numbers_of_the_same_tensors_change_no_row(uploads):
    """Only which of them a tensor has is there."""
    arguments, memo = [*problem([3, 4, 5, 6])], {}
    for of, lr in (([1, 0, 0, 1], 2.0), ([1, 0, 0, 1], 3.0), ([1, 0, 1, 1], 3.0)):
        sets = [arguments[5], tuple(lr * n for n in problem([1])[5])]
        run([*arguments[:5], PerTensor(sets, of), FLOAT32], memo=memo)
    # the size, the first chunk, y, g, three states, and where the numbers begin
    assert uploads == [(5,), (4, 8), (4, 8)]


def test_a_changed_address_is_used():
    arguments, again, memo = problem(SIZES), problem(SIZES), {}
    run(arguments, memo=memo)
    run(again)
    for i in (2, 3):
        arguments[i][1] = arguments[i][1].clone()
    arguments[4][0][2] = arguments[4][0][2].clone()
    assert same(run(arguments, memo=memo), run(again))


@pytest.mark.parametrize("column", [2, 3, 4], ids=["parameter", "gradient", "state"])
def test_a_tensor_without_an_address_has_no_row(column):
    """Also in place of one that had; empty tensors need none."""
    arguments, memo = problem([3, 0, 5]), {}
    run(arguments, memo=memo)
    tensors = arguments[column] if column < 4 else arguments[column][0]
    tensors[2] = TwoTensor(*(torch.ones(2, 5)[1] for _ in range(2)))
    for each in (memo, {}):
        with pytest.raises(TypeError, match="class TwoTensor"):
            run(arguments, memo=each)


def test_gradients_with_a_pending_negation_are_negated():
    found, expected = problem(SIZES), problem(SIZES)
    found[3][:] = [torch._neg_view(-g) for g in found[3]]
    assert all(g.is_contiguous() for g in found[3])
    assert same(run(found), run(expected))


needs_extension = pytest.mark.skipif(guards.Layout is None, reason="the extension is not built")


def stepping(memo):
    """Work on the same tensors, of each kind that a memo serves."""
    arguments, scales = problem(SIZES), [torch.ones(1) for _ in SIZES]
    transposed = problem([(3, 4), (1, 5)], make=lambda t: t.mT.contiguous().mT)
    _, _, ys, gs, state_of_step, *_ = arguments
    squares, matrices = torch.zeros(len(SIZES)).double(), [torch.ones(3, 4) for _ in SIZES]
    state, factors = ([torch.ones(3) for _ in SIZES] for _ in range(2))
    yield lambda: run(arguments, memo=memo)
    yield lambda: backend.apply_(*arguments, scales=scales, memo=memo)
    yield lambda: run(transposed, memo=memo)
    yield lambda: backend.apply_(
        "follow", ("gpa",), ys, gs, state_of_step[:1], (0, 1, 0), FLOAT32, memo=memo
    )
    yield lambda: backend.apply_(
        "move", ("x_slow",), ys, (), state_of_step[:1], (0.0,), FLOAT32, memo=memo
    )
    numbers = 1.0, 0.1, 0.1
    yield lambda: backend.apply_(
        "momentum",
        ("ema",),
        ys,
        gs,
        state_of_step[:1],
        numbers,
        FLOAT32,
        squares=squares,
        memo=memo,
    )
    yield lambda: backend.rows_(
        "normuon", matrices, [state], scales, factors, (0.1, 1e-8), FLOAT32, memo=memo
    )
    yield lambda: backend.nonfinite(gs, memo)


@needs_extension
def test_what_lies_where_it_did_is_not_looked_at_again(launches, monkeypatch):
    for work in stepping({}):
        work()
        first = list(launches)
        with monkeypatch.context() as patch:
            for name in ("flat", "by_dtypes", "prepare"):
                patch.setattr(backend, name, None)
            work()
        assert launches == 2 * first
        launches.clear()


@needs_extension
@pytest.mark.parametrize("scaled", [False, True])
def test_what_lies_elsewhere_is_found_without_a_look_at_each(scaled, monkeypatch):
    """New gradients, say, and new scales of theirs."""
    found, expected, memo = problem(SIZES), problem(SIZES), {}
    before = [torch.full((1,), 3.0) for _ in SIZES]
    after = [torch.full((1,), 5.0) for _ in SIZES]
    gradients = found[3][:]
    for arguments, its in ((found, memo), (expected, None)):
        run(arguments, scales=before if scaled else (), memo=its)
    found[3][:] = [g.clone() for g in gradients]
    with monkeypatch.context() as patch:
        for name in ("flat", "by_dtypes", "prepare"):
            patch.setattr(backend, name, None)
        run(found, scales=after if scaled else (), memo=memo)
    assert same(written(found), run(expected, scales=after if scaled else ()))


def at(t, dtype):
    """A tensor of another dtype with other values, in the memory of one."""
    return t.view(dtype)[: len(t)].copy_(torch.arange(len(t)) / 8)


def moved_data(arguments):
    y = arguments[2][1]
    y.data = y.data.clone()


# what happens to the tensors of a memo's last call before the next
CHANGES = {
    "another gradient": lambda a: a[3].__setitem__(1, -a[3][1]),
    "dtype in its place": lambda a: a[3].__setitem__(1, at(a[3][1], torch.bfloat16)),
    "negated in its place": lambda a: a[3].__setitem__(1, torch._neg_view(a[3][1])),
    "reversed order in its place": lambda a: a[3].__setitem__(3, a[3][3].mT),
    "data of a parameter": moved_data,
    "state": lambda a: a[4][0].__setitem__(1, a[4][0][1].clone()),
    "one parameter less": lambda a: [column.pop() for column in (a[2], a[3], *a[4])],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_since_the_last_call_is_seen(change):
    found = []
    for memo in ({}, None):
        arguments = problem([*SIZES, (4, 4)])
        run(arguments, memo=memo)
        CHANGES[change](arguments)
        for _ in range(2):
            run(arguments, memo=memo)
        found.append(written(arguments))
    assert same(*found)


@pytest.mark.parametrize("make", [torch.clone, lambda t: t.repeat_interleave(2)[::2]])
def test_what_a_call_between_wrote_is_not_taken_for_its_own(make):
    """The same sizes and rules, other tensors, with copies of them perhaps, and back."""
    memo, plain = {}, problem(SIZES)
    pair = problem(SIZES), problem(SIZES, make=make)
    for arguments in (*pair, *pair):
        run(arguments, memo=memo)
    for _ in range(2):
        run(plain)
    for arguments in pair:
        assert same(written(arguments), written(plain))


def test_a_memo_tells_the_dtypes_of_arithmetic_apart():
    """Of what has no state they are not those of any tensor."""
    found = []
    for memo in ({}, None):
        ys, gs = [torch.zeros(64)], [torch.arange(64.0) / 7]
        for dtype in (FLOAT32, torch.float64, FLOAT32):
            backend.apply_("step", ("sgd", "none"), ys, gs, [], (1.0, 0.3, 0.0), dtype, memo=memo)
            found.append(ys[0].clone())
    assert same(found[:3], found[3:])


def test_copies_are_made_anew_for_a_search():
    g, memo = torch.ones(4, 4)[:, ::2], {}
    assert backend.nonfinite([g], memo).item() == 0
    g[1, 1] = torch.inf
    assert backend.nonfinite([g], memo).item() == 1


def test_a_memo_keeps_no_tensor():
    arguments, memo = problem(SIZES), {}
    for _ in range(2):
        run(arguments, memo=memo)
    gone = [weakref.ref(g) for g in arguments[3]]
    arguments[3].clear()
    assert [ref() for ref in gone] == [None] * len(gone)


def test_a_graph_after_steady_calls_has_a_table_that_stays(rows):
    """Calls that recall and calls that find other addresses leave it as it is."""
    arguments, memo = problem(SIZES), {}
    for _ in range(3):
        run(arguments, memo=memo)
    with Graph() as graph:
        run(arguments, memo=memo)
    read, frozen = rows[-1]
    for _ in range(2):
        run(arguments, memo=memo)
    arguments[3][:] = [g.clone() for g in arguments[3]]
    for _ in range(2):
        run(arguments, memo=memo)
    assert (frozen().numpy() == read).all()
    assert graph.names == ["pass_kernel"]


def test_a_table_that_was_made_in_inference_mode_is_written_outside_of_it():
    """By an evaluation, say, before parameters get other memory."""
    arguments, expected, memo = problem(SIZES), problem(SIZES), {}
    with torch.inference_mode():
        run(arguments, memo=memo)
    run(expected)
    for each in (arguments, expected):
        moved_data(each)
    assert same(run(arguments, memo=memo), run(expected))


def test_a_memo_serves_other_rules_and_other_sizes(uploads):
    memo = {}
    for sizes in (SIZES, [5, 5], SIZES):
        for base, look in (("adamw", "none"), ("sgd", "lookahead")):
            arguments = problem(sizes, base=base, look=look)
            again = problem(sizes, base=base, look=look)
            assert same(run(arguments, memo=memo), run(again, eager))
    # the chunks of each set of sizes were made once
    assert uploads.count((4,)) == uploads.count((3,)) == 1


def test_nothing_is_kept_without_a_memo(uploads):
    arguments = problem(SIZES)
    run(arguments)
    run(arguments)
    assert uploads == [(4,), (3, 7)] * 2


def test_every_stream_has_a_table_of_its_own(uploads, monkeypatch):
    arguments, memo = problem(SIZES), {}
    for stream in (1, 2, 1, 2):
        monkeypatch.setattr(table, "stream_of", lambda device, stream=stream: stream)
        run(arguments, memo=memo)
    assert uploads == [(4,), (3, 7)] * 2


@pytest.fixture
def rows(monkeypatch):
    """What launches read: for each the rows of its table and a weak reference to them."""
    found, prepare = [], backend.prepare

    def recorded(*args):
        (launch,) = launches = prepare(*args)
        rows = launch.tables.find(launch.entries)
        found.append((rows.numpy().copy(), weakref.ref(rows)))
        return launches

    monkeypatch.setattr(backend, "prepare", recorded)
    return found


@pytest.mark.parametrize("stream", [None, 7], ids=["same stream", "other stream"])
def test_what_a_graph_reads_stays_and_is_never_written(rows, stream, monkeypatch):
    """Whatever is called, and captured, before a replay."""
    arguments, memo = problem(SIZES), {}
    run(arguments, memo=memo)
    with monkeypatch.context() as patch:
        patch.setattr(table, "stream_of", lambda device: stream)
        with Graph() as graph:
            run(arguments, memo=memo)
    assert graph.names == ["pass_kernel"]
    del graph
    for _ in range(2):
        arguments[3][:] = [g.clone() for g in arguments[3]]
        run(arguments, memo=memo)
        with Graph():
            run(arguments, memo=memo)
    gc.collect()
    read, kept = rows[1]
    assert rows[0][1]() is kept()
    assert (kept().numpy() == read).all()


@pytest.mark.parametrize(
    "values",
    [
        array("d", [-0.0, 0.0, 1 / 3, 5e-324, -1e308, torch.inf]),
        array("f", [-0.0, 1 / 3, 1e-45, torch.inf]),
        array("q", [0, 1, 2**53 + 1, 2**63 - 1]),
    ],
)
def test_numbers_that_come_as_arguments_are_exact(values):
    dtypes = {"d": torch.float64, "f": torch.float32, "q": torch.int64}
    expected = torch.frombuffer(values, dtype=dtypes[values.typecode])
    found = torch.empty_like(expected)
    with Graph() as graph:
        table.upload(values, found)
    graph.replay()
    assert helpers.bits(found) == helpers.bits(expected)


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT32, torch.float64], ids=str)
def test_a_graph_without_a_warm_up_has_the_bits_of_a_call(dtype, per_tensor):
    """Chunks, addresses and numbers come as arguments of kernels."""
    (found, expected), memo = ([*problem(SIZES, dtype)] for _ in range(2)), {}
    if per_tensor:
        sets = [found[5], tuple(n / 3 for n in found[5])]
        found[5] = expected[5] = PerTensor(sets, [0, 1, 0])
    before = [t.clone() for t in written(found)]
    with Graph() as graph:
        run(found, memo=memo)
    assert same(written(found), before)
    graph.replay()
    assert same(written(found), run(expected))
    # a call finds nothing of it
    assert same(run(found, memo=memo), run(expected))


@pytest.mark.parametrize(
    ("case", "moved", "launched"),
    [
        ("adamw", False, ["plan_kernel", "pass_kernel"]),
        ("skip", True, ["nonfinite_kernel", "plan_kernel", "pass_kernel"]),
        ("muon", True, None),
    ],
)
def test_a_graph_between_steps_is_the_run_without(case, moved, launched):
    """A graph that finds the gradients where the warm-up had them has no work but a step's."""
    graph = test_captures.graph_equals_steps("triton", case, moved)
    names = [name for name in graph.names if name.endswith("_kernel") or not moved]
    assert launched in (None, names)


def test_a_first_step_in_a_capture_asks_for_a_warm_up():
    optimizer, rates = test_captures.made("adamw", "triton")
    with (
        Graph(rates) as graph,
        pytest.raises(RuntimeError, match="take a step outside of it first"),
    ):
        test_captures.stepped(optimizer, 0, "adamw", optimizer.step)
    assert "pass_kernel" not in graph.names
    assert not optimizer.state


def test_gpu_tensors_are_an_error_in_the_interpreter():
    y = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET is set: .* serves CPU tensors"):
        backend.apply_("step", ("sgd", "none"), [y], [y], [], (1.0, 0.1, 0.0), FLOAT32)


@pytest.mark.parametrize("cls", [emanest.Muon, emanest.NorMuon, emanest.Aurora])
def test_whole_steps_of_muon_are_those_of_the_eager_back_end(cls):
    """Wide and tall matrices, a kernel, and what AdamW steps in the same optimizer."""
    norm = {emanest.Aurora: "schatten4"}.get(cls, "frobenius")

    def trained(backend):
        params = helpers.parameters(shapes=[(5, 9), (9, 5), (4, 3, 2, 1), (7,)])
        groups = [{"params": params[:3]}, {"params": params[3:], "base": "adamw"}]
        options = {"ns_steps": 2, "lookahead": emanest.EMANesterov(0.5, 0.9), "backend": backend}
        optimizer = cls(groups, lr=0.1, ns_norm=norm, **options)
        helpers.run(optimizer, range(3))
        with optimizer.at_iterate():
            return helpers.values(optimizer)

    # sums in another order, and polynomials that multiply what that makes of the last bits
    torch.testing.assert_close(trained("triton"), trained("eager"), rtol=1e-5, atol=1e-5)


def test_whole_steps_of_soap_are_those_of_the_eager_back_end():
    """Of matrices whose first gradient defines their bases, and of what has none."""

    def trained(backend):
        params = helpers.parameters(shapes=[(5, 5), (9, 3), (4, 2, 2, 1), (7,)])
        options = {"precondition_frequency": 1, "max_precond_dim": 6, "backend": backend}
        optimizer = emanest.SOAP(params, 0.1, **options, lookahead=emanest.EMANesterov(0.5, 0.9))
        helpers.run(optimizer, range(3))
        with optimizer.at_iterate():
            return helpers.values(optimizer)

    torch.testing.assert_close(trained("triton"), trained("eager"), rtol=1e-4, atol=1e-4)


# ---- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "form"),
    # the last one's form is chosen, by its own sides
    [((5, 9), "standard"), ((20, 5), "gram"), ((18, 17), "standard"), ((17, 31), None)],
    ids=str,
)
def test_padding_changes_no_bit_and_aligns_all_rows(shape, form, monkeypatch):
    def orthogonal(g, multiple):
        monkeypatch.setitem(newton_schulz.MULTIPLES, "cpu", multiple)
        options = {"form": form, "dtype": "float32", "backend": "triton"}
        return torch.cat([emanest.orthogonalize(g, 2, norm=norm, **options) for norm in NORMS])

    def recorded(*given):
        aligned.append(given[-1])
        return tile_for(*given)

    aligned, tile_for = [], newton_schulz.tile_for
    monkeypatch.setattr(newton_schulz, "tile_for", recorded)
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonal(g, 16)
    assert all(aligned)
    assert torch.equal(found, orthogonal(g, 1))
    assert not all(aligned)


def test_sums_of_tiles_are_added_up_alike_whatever_the_batch():
    """The order in which torch adds up on a GPU depends on the shape of a sum."""
    shapes = []

    class Sums(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "sum" in func._schema.name:
                shapes.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    for batch in (1, 3, 17):
        with Sums():
            assert newton_schulz.norms(torch.ones(batch, 2, 2)).tolist() == [2.0] * batch
    assert len(set(shapes)) == 1


def test_a_pending_negation_is_part_of_the_matrix():
    """That of an imaginary part, say: memory holds the opposite of its values."""
    g = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    found, expected = (
        emanest.orthogonalize(each, 2, backend="triton") for each in (torch._neg_view(-g), g)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("negated", ["state", "factor"])
def test_rows_know_a_pending_negation(negated):
    def found(make):
        given = {"state": torch.arange(1.0, 4.0), "factor": torch.zeros(3)}
        given[negated] = make(given[negated])
        state, factor = given.values()
        os, scales = [torch.ones(3, 4)], [torch.ones(1)]
        backend.rows_("normuon", os, [[state]], scales, [factor], (0.1, 1e-8), FLOAT32)
        return state, factor

    assert same(found(lambda t: torch._neg_view(-t)), found(torch.clone))


@pytest.mark.parametrize("form", forms.FORMS)
@pytest.mark.parametrize("shape", [(2, 20, 33), (2, 33, 20)], ids=str)
def test_what_is_orthogonalized_is_rounded_once(form, shape):
    """To the matrix's dtype, by the last product: a cast would be one more pass over it."""
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    options = {"form": form, "dtype": "float16", "backend": "triton"}
    found = emanest.orthogonalize(g, 2, **options)
    rounded = found.half()
    assert found.is_contiguous()
    assert (found != rounded.float()).float().mean() > 0.9
    # all before is the same whatever comes out
    assert torch.equal(
        emanest.orthogonalize(g.half().float(), 2, **options).half(),
        emanest.orthogonalize(g.half(), 2, **options),
    )


# the interpreter's, of NumPy
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_spoils_its_own_padded_matrix_only():
    g = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(1))
    g[1, 3, 4], g[2, 0, 0] = torch.nan, torch.inf
    found = emanest.orthogonalize(g, 2, backend="triton")
    assert torch.equal(found[:1], emanest.orthogonalize(g[:1], 2, backend="triton"))
    assert found[1:].isnan().all()


def test_tiles_of_any_size_change_no_bit():
    """Sums of 32 terms are exact, so that they have one order only; those of several have not."""
    n, m = 40, 72
    generator = torch.Generator().manual_seed(1)
    x, a = (torch.randint(-9, 9, (1, n, k), generator=generator).float() for k in (m, n))
    scales = 2.0 ** (torch.arange(m) // 32 * 11)
    x, a = x * scales, (a + a.mT) * scales[:n] * scales[:n, None]

    def found(rows, columns, depth=32):
        with forced(tiles.INTERPRETER._replace(rows=rows, columns=columns, depth=depth)):
            yield newton_schulz.mm_add(x, a, 0.3, 0.7)
            if rows == columns:
                yield newton_schulz.sym_mm(x)
                yield newton_schulz.sym_baddbmm(a, a, a, 0.3, 0.7)

    expected = list(found(32, 32))
    assert same(found(64, 64), expected)
    assert same(found(32, 64), expected[:1])
    # of another depth they are other sums
    assert not same(found(64, 64, 64), expected)


# ---- the table of tiles -------------------------------------------------------------------------

# (architecture, kind, batch and sides m, k, n) -> the tile
CHOSEN = {
    ("sm_90", "symmetric", (9, 768, 768, 768)): (64, 64),
    ("sm_90", "symmetric", (10, 768, 768, 768)): (128, 128),
    ("sm_90", "symmetric", (1, 4096, 11008, 4096)): (128, 128),
    # few programs, but each of them works long
    ("sm_90", "symmetric", (1, 2048, 8192, 2048)): (128, 128),
    ("sm_90", "symmetric", (1, 2048, 2048, 2048)): (64, 64),
    ("sm_90", "product", (1, 768, 768, 768)): (64, 64),
    ("sm_90", "product", (4, 768, 768, 768)): (64, 128),
    ("sm_90", "product", (7, 768, 768, 768)): (128, 128),
    ("sm_90", "product", (24, 768, 768, 3072)): (128, 128),
    ("sm_90", "product", (1, 2048, 2048, 8192)): (128, 256),
    ("sm_80", "product", (1, 768, 768, 768)): (64, 64),
    ("sm_80", "product", (12, 768, 768, 768)): (128, 256),
    ("sm_100", "symmetric", (12, 768, 768, 768)): (64, 64),
    ("gfx942", "product", (1, 8192, 8192, 28672)): (128, 256),
}
ON_CPU = torch.device("cpu")


@pytest.mark.parametrize(("arch", "kind", "shape"), CHOSEN)
def test_a_tile_is_chosen_by_the_number_of_programs(arch, kind, shape):
    tile = tiles.tile_for(arch, torch.float16, kind, shape, ON_CPU)
    assert (tile.rows, tile.columns) == CHOSEN[arch, kind, shape]
    # what has no row
    unaligned = tiles.tile_for(arch, torch.bfloat16, kind, shape, ON_CPU, False)
    assert unaligned == tiles.FALLBACK[2]
    assert tiles.tile_for(arch, FLOAT32, kind, shape, ON_CPU) == tiles.FALLBACK[4]


def test_more_multiprocessors_want_more_programs(monkeypatch):
    for processors, side in ((168, 128), (169, 64)):
        monkeypatch.setattr(tiles, "processors_of", lambda *_, n=processors: n)
        shape = 12, 768, 768, 768
        assert tiles.tile_for("sm_90", torch.float16, "symmetric", shape, ON_CPU).rows == side


def test_all_tiles_of_an_architecture_add_up_in_one_order():
    assert {arch for arch, _, _ in tiles.TABLE} == set(TARGETS) == set(tiles.PROCESSORS)
    for arch in TARGETS:
        rows = [tile for key, its in tiles.TABLE.items() if key[0] == arch for tile in its]
        assert len({tile.depth for tile in rows}) == 1


def test_what_a_gpu_tests_has_tiles_of_unlike_sizes():
    """Those of a batch in ``test_products``, and of its matrices one by one."""
    for batch, n, m in test_products.LARGER:
        for kind, shape in (("symmetric", (n, m, n)), ("product", (n, n, m))):
            some, one = (
                tiles.tile_for("sm_90", torch.float16, kind, (count, *shape), ON_CPU)
                for count in (batch, 1)
            )
            assert some.rows * some.columns > one.rows * one.columns


def test_rows_of_the_table_are_replaced_and_the_others_stay(tmp_path):
    file = tmp_path / "tiles.json"
    file.write_text(tiles.FILE.read_text())
    tiles.write({}, file)
    assert file.read_text() == tiles.FILE.read_text()
    key, new = ("sm_90", 2, "product"), [tiles.Tile(128, 256, 64, 4, 8, 4, 1.5), tiles.FALLBACK[2]]
    new[1] = new[1]._replace(depth=64)
    tiles.write({key: new, ("sm_120", 4, "symmetric"): new[1:]}, file)
    found = tiles.read(file)
    assert found.pop(("sm_120", 4, "symmetric")) == tuple(new[1:])
    assert found == {**tiles.TABLE, key: tuple(new)}
    assert [*tmp_path.iterdir()] == [file]


LAST = tiles.FALLBACK[2]
# what is wrong with tiles of a key -> key, tiles
WRONG = {
    "arch must be the name of an architecture": (("", 2, "product"), [LAST]),
    r"bytes must be one of \[2, 4, 8\], got 3": (("sm_90", 3, "product"), [LAST]),
    "kind must be one of .*got 'mm'": (("sm_90", 2, "mm"), [LAST]),
    "sm_90, 2, product must have a tile": (("sm_90", 2, "product"), []),
    "tile 1 of sm_90, 2, product: rows must be a power of two from 16 to 256, got 96": (
        ("sm_90", 2, "product"),
        [LAST._replace(rows=96)],
    ),
    "warps must be a power of two from 1 to 16, got True": (
        ("sm_90", 2, "product"),
        [LAST._replace(warps=True)],
    ),
    "stages must be a whole number from 1 to 8, got 9": (
        ("sm_90", 2, "product"),
        [LAST._replace(stages=9)],
    ),
    "programs must be a finite number, at least 0, got nan": (
        ("sm_90", 2, "product"),
        [LAST._replace(programs=math.nan)],
    ),
    "tile 1 of .*: columns must be 64 as rows, for the diagonal, got 128": (
        ("sm_90", 2, "symmetric"),
        [LAST._replace(columns=128)],
    ),
    "tile 2 of .*: depth must be 64 as that of the first, for sums in one order, got 32": (
        ("sm_90", 2, "product"),
        [LAST._replace(depth=64, programs=1.0), LAST],
    ),
    "tile 2 of .*: programs and terms must be 0 in the last tile": (
        ("sm_90", 2, "product"),
        [LAST._replace(programs=1.0), LAST._replace(terms=1)],
    ),
    "tile 1 of .*: programs and terms must not both be 0 before the last": (
        ("sm_90", 2, "product"),
        [LAST, LAST],
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_table_that_is_not_valid_is_refused_and_not_written(message, tmp_path):
    file = tmp_path / "tiles.json"
    file.write_text(tiles.FILE.read_text())
    key, rows = WRONG[message]
    with pytest.raises(ValueError, match=message):
        tiles.write({("sm_90", 2, "symmetric"): [LAST], key: rows}, file)
    assert file.read_text() == tiles.FILE.read_text()


def test_a_file_that_is_no_table_is_named(tmp_path):
    file = tmp_path / "tiles.json"
    for text in ('[{"rows": 64}]', "[3]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"tiles.json, row 1 must be an object with \['arch'"):
            tiles.read(file)
    file.write_text(tiles.FILE.read_text().replace('"rows": 128', '"rows": 100', 1))
    with pytest.raises(ValueError, match=r"tiles.json: tile 1 of sm_80, .*: rows must be"):
        tiles.read(file)


@pytest.mark.parametrize("method", helpers.METHODS)
@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16], ids=str)
def test_evaluations_change_no_run(method, dtype, monkeypatch):
    test_points.test_a_run_with_evaluations_equals_a_run_without(
        "triton", DATABASE["AdamW"], dtype, 1, method, monkeypatch
    )


def test_an_expert_is_stepped_as_a_parameter_of_its_own():
    """NorMuon does all that Muon does; products take the interpreter long."""
    options, made = {"split": 2, "ns_steps": 1}, lambda t: t.mT.contiguous().mT
    test_stack.step_each_alone("NorMuon", "triton", options, [(2, 4, 6)], made, steps=2)


def test_the_default_device_does_not_matter():
    """Tables are made on the host whatever it is; the first time and from then on."""

    def life(place):
        params = helpers.parameters()
        options = {"nonfinite": "skip", "backend": "triton"}
        optimizer = helpers.adamw(params, helpers.METHODS["ema"], **options)
        for t in range(3):
            helpers.set_gradients(params, t)
            with torch.device(place):
                optimizer.step()
                with optimizer.at_iterate():
                    optimizer.metrics()
        return helpers.content(optimizer)

    assert helpers.differing(life("meta"), life("cpu")) == []


def test_the_back_end_knows_no_default_device():
    """All of its functions, as ``emanest.doctor`` calls them."""
    expected = doctor._run(backend, "cpu")
    with torch.device("meta"):
        found = doctor._run(backend, "cpu")
    assert [helpers.bits(t) for t in found] == [helpers.bits(t) for t in expected]
