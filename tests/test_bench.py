# SPDX-License-Identifier: MIT
"""The benchmarks still work: every case on a tiny model, agreement, turns, timings."""

import contextlib
import dataclasses
import functools
import math
import re
from types import SimpleNamespace

import pytest
import torch

import emanest
from bench import (
    check,
    clocks,
    core,
    devices,
    eigenbasis,
    models,
    newton_schulz,
    orthogonal,
    peers,
    report,
    variants,
)
from bench import running as turns
from bench.cases import CASES, CPU, CUDA
from bench.check import Disagreement, Skipped
from bench.table import VARIANTS
from bench.variants import Variant, missing
from emanest import backends

# cases of a GPU, where there is none
ANYWHERE = [*CPU, *(case._replace(device="cpu", timings=("idle",)) for case in CUDA)]
FIRST = CPU[0]


def alike(case):
    """What a look at a tiny model depends on: cases that differ in size alone run once."""
    return models.shrunk(case.shapes), case._replace(name="", model="", claims=())[3:]


def case_of(variant, cases=CPU):
    return next(case for case in cases if variant in case.variants)


DISTINCT = list({str(alike(case)): case for case in ANYWHERE}.values())


@pytest.mark.parametrize("case", DISTINCT, ids=lambda case: f"{case.name}, {case.model}")
def test_every_case_runs_on_a_tiny_model(case):
    entries = core.quick(case)
    ours = entries[case.ours]
    assert set(case.variants) <= set(entries)
    assert ours.info["backend"].startswith("emanest.")
    for name, entry in entries.items():
        if isinstance(entry, Skipped):
            assert VARIANTS[name].needs in entry.reason
            continue
        assert len(entry.samples) == 2
        assert min(entry.samples) > 0
        assert entry.info["variant"] == name
        if VARIANTS.get(name, VARIANTS[case.ours]).traffic:
            assert entry.info["gigabytes_per_second"] > 0
            assert entry.info["share"] > 0
        if name in VARIANTS and VARIANTS[name].work:
            assert entry.info["gigaflops_per_second"] > 0
            assert 0 < entry.info["error"] < 5e-2


def test_memory_is_four_bytes_per_parameter():
    case = next(case for case in CPU if case.name == "memory")
    entries = core.quick(case)
    quantity = report.QUANTITIES["state"]
    extra = quantity.compute(*(entries[name] for name in (peers.OURS, peers.OURS_ALONE)))
    # the scalars of 12 tiny tensors weigh nothing in a model
    assert extra == pytest.approx(4, abs=0.01)


def test_soap_needs_the_memory_that_its_docstring_says():
    """State and, for a moment, what a step without and one with a QR take; LAPACK takes some."""
    m, n = 128, 96
    p = torch.nn.Parameter(torch.randn(m, n))
    p.grad = torch.randn(m, n)
    optimizer = emanest.SOAP([p], precondition_frequency=2)
    with devices.memory_on_cpu() as first:
        optimizer.step()
    assert first.held == pytest.approx(4 * (2 * m * n + 2 * (m * m + n * n)), rel=1e-3)
    for _ in range(3):
        with devices.memory_on_cpu() as later:
            optimizer.step()
        assert later.held <= 1000
        assert later.peak <= 4 * 1.05 * (5 * m * n + 3 * m * m)


def test_memory_on_cpu_counts_what_stays_and_the_peak():
    older = [torch.ones(2000)]
    with devices.memory_on_cpu() as memory:
        kept = torch.ones(1000)
        older.clear()
        torch.ones(500)
    assert kept.nbytes == memory.held == 4000
    assert memory.peak == 6000


def test_muon_of_another_formula_is_not_timed(monkeypatch):
    def wrong(params, capturable):
        return peers.plain(torch.optim.Muon(params, **orthogonal.MUON, ns_steps=4), params)

    name = orthogonal.TORCH_MUON
    monkeypatch.setitem(VARIANTS, name, VARIANTS[name]._replace(make=wrong))
    entries = core.quick(case_of(name))
    assert entries[name].reason.startswith("computes something else: error")
    assert entries[orthogonal.OURS_MUON].info["skipped"] == {name: entries[name].reason}
    assert min(entries[orthogonal.OURS_MUON].samples) > 0


def test_soap_of_another_formula_is_not_timed(monkeypatch):
    """Though results are compared where rounding decides nothing, and there alone."""

    def wrong(params, capturable):
        return peers.plain(emanest.SOAP(params, **{**eigenbasis.SOAP, "eps": 1e-4}), params)

    name = eigenbasis.PYTORCH_OPTIMIZER_SOAP
    case = case_of(name)
    assert {case.defined(shape) for shape in models.shrunk(case.shapes)} == {False, True}
    monkeypatch.setitem(VARIANTS, name, VARIANTS[name]._replace(make=wrong))
    entries = core.quick(case)
    assert entries[name].reason.startswith("computes something else: error")
    assert min(entries[case.ours].samples) > 0


def test_what_is_wrong_at_full_size_only_is_not_timed(monkeypatch):
    def half(g, dtype):
        return newton_schulz.plain(g, dtype) * (1 if g.shape[-1] <= 192 else 1.001)

    name = orthogonal.PLAIN_32
    row = VARIANTS[name]._replace(make=orthogonal.alone(half, dtype=torch.float32))
    monkeypatch.setitem(VARIANTS, name, row)
    case = next(case for case in CPU if name in case.peers)
    assert check.errors(case._replace(full_size=False), [(20, 200)])[name] < 1e-4
    found = check.errors(case, [(20, 200)])[name]
    assert found == Skipped("computes something else: error 1.0e-03, allowed 4e-04")


def shifted(row):
    """A variant whose x is wrong."""

    def make(params, capturable):
        stepper = row.make(params, capturable)
        return dataclasses.replace(stepper, iterate=lambda: [x + 1 for x in stepper.iterate()])

    return row._replace(make=make)


def test_a_wrong_formula_of_ours_is_an_error(monkeypatch):
    """Wherever it stands in the case."""
    monkeypatch.setattr(core, "in_turn", pytest.fail)
    for name, case in ((peers.OURS, FIRST), (peers.OURS_ALONE, case_of(peers.OURS_ALONE))):
        monkeypatch.setitem(VARIANTS, name, shifted(VARIANTS[name]))
        with pytest.raises(Disagreement, match=f"{re.escape(name)}: error"):
            core.quick(case)
        monkeypatch.undo()


@pytest.mark.parametrize(("name", "error"), [(peers.FUSED, False), (peers.OURS_ALONE, True)])
def test_what_differs_at_full_size_is_an_error_if_ours(monkeypatch, name, error):
    case = case_of(peers.FOREACH)._replace(ours=peers.OURS, peers=(peers.FOREACH, name))
    values = check.drawn([(3, 4)], "cpu", torch.float32, 1)
    steppers = {
        peers.FOREACH: [variants.Stepper(lambda: None, lambda: values)],
        name: [variants.Stepper(lambda: None, lambda: [v + 1 for v in values])],
    }
    where = f"at full size beside {peers.FOREACH}, allowed 2e-04"
    if error:
        with pytest.raises(Disagreement, match=where):
            check.check_spots(case, steppers, [(3, 4)])
    else:
        found = check.check_spots(case, steppers, [(3, 4)])
        assert [*found] == [name]
        assert where in found[name].reason


def test_a_variant_that_overwrites_shared_gradients_is_not_timed(monkeypatch):
    row = VARIANTS[peers.SCHEDULEFREE]
    if missing(row):
        pytest.skip(missing(row))
    monkeypatch.setitem(VARIANTS, peers.SCHEDULEFREE, row._replace(spoils=False))
    with pytest.raises(Disagreement, match="overwrites the gradients"):
        core.quick(case_of(peers.SCHEDULEFREE))


def test_what_is_missing_or_fails_is_skipped_by_name(monkeypatch):
    def fail(params, capturable):
        raise RuntimeError("no such device\nmore")

    for name, row in (
        (peers.TWO_PHASE, VARIANTS[peers.TWO_PHASE]._replace(needs="no_such_package")),
        (peers.FUSED, VARIANTS[peers.FUSED]._replace(make=fail)),
    ):
        monkeypatch.setitem(VARIANTS, name, row)
    case = next(case for case in CPU if case.name == "many small")
    entries = core.quick(case)
    reasons = {
        peers.TWO_PHASE: "the package no_such_package is not installed",
        peers.FUSED: "RuntimeError: no such device",
    }
    assert {k: v.reason for k, v in entries.items() if isinstance(v, Skipped)} == reasons
    assert entries[peers.OURS].info["skipped"] == reasons


def test_a_peer_that_runs_out_of_memory_at_full_size_is_skipped(monkeypatch):
    row, made = VARIANTS[peers.FUSED], []

    def make(params, capturable):
        made.append(len(params))
        if len(made) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return row.make(params, capturable)

    monkeypatch.setitem(VARIANTS, peers.FUSED, row._replace(make=make))
    entries = core.quick(FIRST)
    assert entries[peers.FUSED] == Skipped("OutOfMemoryError: CUDA out of memory")
    assert len(entries[peers.TWO_PHASE].samples) == 2


def test_our_own_failure_is_an_error(monkeypatch):
    def fail(params, capturable):
        raise RuntimeError("broken")

    monkeypatch.setitem(VARIANTS, peers.OURS, Variant("ema adamw", fail, own=True))
    with pytest.raises(RuntimeError, match="broken"):
        core.quick(FIRST)


def test_a_case_that_another_back_end_served_is_an_error(monkeypatch):
    picked = iter([SimpleNamespace(__name__="emanest.kernels.backend")])
    pick = backends.pick
    monkeypatch.setattr(core.backends, "pick", lambda *args: next(picked, None) or pick(*args))
    with pytest.raises(
        core.OtherBackend, match=r"kernels\.backend was to serve it, emanest\.backends\.\w+ took"
    ):
        core.quick(FIRST._replace(peers=()))


def turn(name, sample):
    """A stand-in for what takes its turn."""
    case, variant = SimpleNamespace(cold=True), SimpleNamespace(own=True)
    running = SimpleNamespace(case=case, variant=variant)
    return SimpleNamespace(label=name, samples=[], host=[], running=running, sample=sample)


def test_variants_take_turns():
    order = []

    def sample(name):
        order.append(name)
        each[name].samples.append(1e-3)

    each = {name: turn(name, functools.partial(sample, name)) for name in "abc"}
    turns.in_turn([*each.values()], "cpu", rounds=20, cache_bytes=4096)
    rounds = [order[i : i + 3] for i in range(3, len(order), 3)]
    # the first round warms up and is not kept
    assert [len(one.samples) for one in each.values()] == [20] * 3
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) == math.factorial(3)


@pytest.mark.parametrize("calls", [0, 2])
def test_what_cannot_be_queued_is_skipped_and_the_others_are_timed(calls):
    """In the first round or a later one."""
    left_to_go = iter(range(calls))

    def waits():
        if next(left_to_go, None) is None:
            raise clocks.NotQueued("the host waits")

    each = [turn("a", lambda: None), turn("b, queued", waits)]
    left, skipped = turns.in_turn(each, "cpu", rounds=3, cache_bytes=4096)
    assert left == each[:1]
    assert skipped == {"b, queued": Skipped("the host waits")}


class Event:
    """Of a device that works for 1 ms for each ms asked for, and on nothing else."""

    now = done = 0.0

    def __init__(self, enable_timing):
        pass

    def record(self):
        self.at = max(Event.now, Event.done)

    def query(self):
        return self.at <= Event.now

    def synchronize(self):
        Event.now = max(Event.now, self.at)

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


@pytest.fixture
def device(monkeypatch):
    Event.now = Event.done = 0.0

    def work(cycles):
        Event.done = max(Event.now, Event.done) + cycles / clocks.CLOCK

    def synchronize():
        Event.now = max(Event.now, Event.done)

    cuda = SimpleNamespace(Event=Event, synchronize=synchronize, _sleep=work)
    monkeypatch.setattr(clocks, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: Event.now)

    def call(host, kernel):
        """The host works, and then one kernel runs."""

        def step():
            Event.now += host
            work(kernel * clocks.CLOCK)

        return step

    return call


def test_queued_is_the_devices_time_and_idle_the_hosts_too(device):
    step = device(0.02, 0.003)
    assert clocks.idle(step, 0.0) == pytest.approx((0.023, 0.02))
    # 0.1 ms of work ahead are not enough, nor are 0.4 and so on
    assert clocks.queued(step, 0.0) == pytest.approx((0.003, 0.02))


def test_a_host_that_waits_for_the_device_cannot_be_queued(device):
    def step():
        clocks.torch.cuda.synchronize()

    with pytest.raises(clocks.NotQueued, match="the host waits for it"):
        clocks.queued(step, 0.0)


def test_timings_stand_side_by_side(monkeypatch):
    """Where a graph is a plain call: of ours, of a peer, and of one that cannot be captured."""
    clock = dict.fromkeys(("queued", "idle", "replayed"), clocks.on_cpu)
    monkeypatch.setitem(clocks.CLOCKS, "cpu", clock)
    for module in (check, turns):
        monkeypatch.setattr(module, "side_stream", contextlib.nullcontext)

    permitted = iter([True, True, False])

    def capture(step, pool):
        if next(permitted):
            return step
        raise RuntimeError("not permitted when stream is capturing")

    monkeypatch.setattr(check, "capture", lambda step: step)
    monkeypatch.setattr(turns, "capture", capture)
    ours, peer, other = orthogonal.OURS_NS, orthogonal.PLAIN_16, orthogonal.GRAM_16
    case = next(case for case in CUDA if other in case.peers)
    entries = core.quick(case._replace(device="cpu", peers=(peer, other)))
    timed = [(name, e.info["timing"]) for name, e in entries.items() if not isinstance(e, Skipped)]
    expected = [(n, t) for n in (ours, peer, other) for t in ("queued", "idle", "replayed")]
    assert timed == [
        (name if timing == "idle" else f"{name}, {timing}", timing)
        for name, timing in expected
        if (name, timing) != (other, "replayed")
    ]
    skipped = {f"{other}, replayed": "RuntimeError: not permitted when stream is capturing"}
    assert entries[ours].info["skipped"] == skipped


@pytest.mark.parametrize(
    ("device_type", "cycle", "rounds"),
    [
        *(("cpu", *each) for each in [(0.001, 101), (1.0, 20), (10.0, 9), (50.0, 6), (140.0, 3)]),
        *(("cuda", *each) for each in [(0.01, 51), (0.1, 30), (1.0, 3), (1e4, 3)]),
    ],
)
def test_a_case_that_takes_long_gets_fewer_rounds(device_type, cycle, rounds):
    assert devices.DEVICES[device_type].rounds_of(cycle) == rounds


def test_cases_are_consistent():
    assert len({(case.device, case.name) for case in CASES}) == len(CASES)
    for case in CASES:
        assert set(case.variants) <= set(VARIANTS)
        assert {"idle"} <= set(case.timings) <= set(clocks.CLOCKS[case.device])
        for claim in case.claims:
            assert claim.quantity in report.QUANTITIES
            assert claim.timing in case.timings
            assert claim.peer is None or claim.peer in case.variants or claim.quantity == "state"
