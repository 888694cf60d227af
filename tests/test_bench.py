"""The benchmarks still work: sizes, counts, agreement, and every case on a tiny model."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import textbook
import textbook_bases

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import (
    check,
    core,
    devices,
    gpu,
    models,
    newton_schulz,
    orthogonal,
    peers,
    reference,
    report,
    roofline,
)
from bench.cases import CASES, CPU, CUDA, SPREAD
from bench.check import CHECKED_STEPS, Disagreement, Skipped
from bench.table import ORACLES, VARIANTS
from bench.variants import Traffic, Variant, Work, missing

ROOT = Path(__file__).parents[1]
# cases of a GPU, where there is none
ANYWHERE = [*CPU, *(case._replace(device="cpu", captured=False) for case in CUDA)]
FIRST = CPU[0]


@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [
        ("GPT-2 124M", 148, 124_439_808),
        ("Llama 60M", 75, 58_073_600),
        ("Llama 130M", 111, 134_105_856),
        ("Llama 350M", 219, 367_969_280),
        ("Llama 1.3B", 219, 1_339_082_752),
        ("1000 tiny", 1000, 1_792_000),
        ("150 of 16", 150, 2_400),
        ("4000 small", 4000, 8_710_371),
        ("GPT-2 matrices", 48, 84_934_656),
        ("two GPT-2 blocks", 8, 14_155_776),
    ],
)
def test_models_have_their_published_sizes(model, tensors, parameters):
    assert len(models.MODELS[model]) == tensors
    assert models.parameters(models.MODELS[model]) == parameters


def test_shrunk_models_are_tiny_and_small_tensors_ragged():
    assert all(models.parameters(models.shrunk(s)) < 2e5 for s in models.MODELS.values())
    assert all(256 <= n <= 4096 for (n,) in models.MODELS["4000 small"])


def test_shrunk_matrices_keep_their_proportions():
    shapes = [(768, 3072), (2304, 768), (50257, 768), (5461, 2048), (32, 64), (7,)]
    small = [(48, 192), (144, 48), (192, 48), (128, 48), (32, 64), (7,)]
    assert models.shrunk(shapes) == models.shrunk(small) == small


def test_muon_gets_the_hidden_matrices():
    shapes = models.MODELS["Llama 1.3B"]
    chosen = models.hidden(shapes)
    assert len(chosen) == 7 * 24
    assert {shapes[i] for i in chosen} == {(2048, 2048), (5461, 2048), (2048, 5461)}


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        (peers.OURS, torch.float32, 36),
        (peers.OURS, torch.bfloat16, 30),
        (peers.OURS_ALONE, torch.float32, 28),
        (peers.OURS_SGD, torch.float32, 28),
        (peers.OURS_WRAP, torch.float32, 24),
        (peers.FUSED, torch.float32, 28),
        (peers.FOREACH, torch.float32, 80),
        (peers.COMPILED, torch.float32, 36),
        (peers.TWO_PHASE, torch.float32, 28 + 44),
        (peers.TWO_PHASE_16, torch.bfloat16, 14 + 22),
        (peers.TWO_PHASE_FOREACH, torch.float32, 80 + 44),
        (peers.TWO_PHASE_MASTER, torch.bfloat16, 72 + 12),
        (peers.TWO_PHASE_SGD, torch.float32, 20 + 44),
        (peers.TWO_PHASE_IDLE, torch.float32, 44),
    ],
)
def test_bytes_per_parameter(name, dtype, expected):
    assert VARIANTS[name].traffic.bytes(dtype) == expected


@pytest.mark.parametrize("traffic", [Traffic(2, 1, 6, 4), Traffic(2, 1, 4, 4), Traffic(4, 0, 2, 4)])
def test_the_ceiling_moves_the_bytes_it_claims(traffic):
    p = torch.zeros(100, dtype=torch.bfloat16)
    p.grad = torch.zeros_like(p)
    streams = roofline.Streams([p], traffic)
    before = [array.clone() for array in streams.written]
    with torch.compiler.set_stance("force_eager"):
        streams.step()
    assert all(
        not torch.equal(a, b) and a.isfinite().all()
        for a, b in zip(streams.written, before, strict=True)
    )
    moved = sum(a.nbytes for a in streams.read) + 2 * sum(a.nbytes for a in streams.written)
    assert moved == traffic.bytes(torch.bfloat16) * p.numel()


def toy(dtype=torch.float64, seed=0):
    """Parameters and the gradients of every checked step."""
    shapes = [(5, 3), (7,)]
    return (
        check.drawn(shapes, "cpu", dtype, seed),
        [check.drawn(shapes, "cpu", dtype, seed + 1 + t) for t in range(CHECKED_STEPS)],
    )


def test_the_two_phase_reference_is_the_published_algorithm():
    start, gradients = toy()
    options = {k: v for k, v in peers.ADAMW.items() if k != "lr"}
    book = textbook.EMANesterov(
        *(start, textbook_bases.AdamW(**options)), reference.STEPSIZE, reference.DECAY
    )
    params = check.leaves([v.clone() for v in start], gradients[0])
    two_phase = reference.TwoPhase(torch.optim.AdamW(params, **peers.ADAMW), params)
    for new in gradients:
        two_phase.extrapolate()
        torch.testing.assert_close(params, book.y, rtol=0, atol=1e-12)
        for p, g in zip(params, new, strict=True):
            p.grad = g
        two_phase.advance()
        book.step(new, reference.LR)
        torch.testing.assert_close(params, book.x, rtol=0, atol=1e-12)


def test_flat_formulas_are_the_references_in_one_pass():
    start, gradients = toy()
    for name in (peers.COMPILED, peers.COMPILED_ALONE):
        variant = VARIANTS[name]
        with torch.compiler.set_stance("force_eager"):
            x = check.stepped(variant.make, [v.clone() for v in start], gradients, False)
        oracle = ORACLES[variant.family]
        exact = check.stepped(oracle, [v.clone() for v in start], gradients, False)
        # bias corrections are float32
        assert check.distance(x, exact) < 1e-6 * check.distance(start, exact)


@pytest.mark.slow
def test_the_compiler_keeps_the_formula():
    """What torch 2.13 makes of a 0-d float64 counter is why this is a test."""
    start, gradients = toy(torch.float32)
    make = VARIANTS[peers.COMPILED].make
    x = check.stepped(make, [v.clone() for v in start], gradients, False)
    with torch.compiler.set_stance("force_eager"):
        eager = check.stepped(make, [v.clone() for v in start], gradients, False)
    assert check.distance(x, eager) < 1e-5 * check.distance(x, [v.double() for v in start])


def test_an_idle_optimizer_moves_first_and_then_rests():
    start, gradients = toy()
    params = check.leaves([v.clone() for v in start], gradients[0])
    idle = reference.Idle(params)
    seen = []
    for _ in range(5):
        idle.step()
        seen.append([p.detach().clone() for p in params])
    assert check.distance(seen[2], start) > 0
    assert check.distance(seen[4], seen[2]) == 0


@pytest.mark.parametrize("case", ANYWHERE, ids=lambda case: f"{case.name}, {case.model}")
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


def test_memory_on_cpu_counts_what_stays_and_the_peak():
    older = [torch.ones(2000)]
    with devices.memory_on_cpu() as memory:
        kept = torch.ones(1000)
        older.clear()
        torch.ones(500)
    assert kept.nbytes == memory.held == 4000
    assert memory.peak == 6000


@pytest.mark.parametrize(
    ("work", "dtype", "expected"),
    [
        (Work("standard"), torch.float32, (30, 50, 90, 170)),
        (Work("standard", 0.5), torch.float32, (20, 35, 65, 125)),
        (Work("gram"), torch.float16, (36, 44, 60, 92)),
        (Work("gram", 0.5), torch.float16, (20, 26, 38, 62)),
        (Work("gram", 0.5), torch.float32, (20, 23, 29, 41)),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_operations_of_newton_schulz(work, dtype, expected, turned):
    """Of 5 steps on matrices 1 : 1, 1 : 2, 1 : 4 and 1 : 8, in units of n**3."""
    for m, units in zip((1, 2, 4, 8), expected, strict=True):
        shape = (10 * m, 10) if turned else (10, 10 * m)
        assert work.flops([shape] * 3, "cpu", dtype) == 3 * units * 10**3


def test_operations_of_muon_are_those_of_its_matrices():
    shapes = [(9, 4), (4, 4), (4,), (4, 8), (9, 4)]
    for name in (orthogonal.OURS_MIXED, orthogonal.TWO_PHASE_MIXED):
        work = VARIANTS[name].work
        alone = work._replace(matrices=Work(None).matrices)
        some = work.flops(shapes, "cpu", torch.float32)
        assert some == alone.flops([(4, 4), (4, 8)], "cpu", torch.float32)


def matrices(*shape, spread=SPREAD):
    """A batch, as the cases draw it."""
    return check.drawn([shape], "cpu", torch.float64, 0, spread=spread)[0]


def test_columns_of_gradients_decay():
    deviations = matrices(20_000, 5).std(dim=0)
    torch.testing.assert_close(
        deviations, SPREAD ** torch.linspace(0, 1, 5).double(), rtol=0.03, atol=0
    )


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 6, 20), (3, 20, 6)])
def test_the_forms_are_the_polynomial_of_the_singular_values(shape):
    g = matrices(*shape)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    s = s / s.square().sum(dim=-1, keepdim=True).sqrt()
    a, b, c = reference.NS_COEFFICIENTS
    for _ in range(reference.NS_STEPS):
        s = a * s + b * s**3 + c * s**5
    exact = u * s[:, None] @ vh
    forms = [newton_schulz.plain(g, g.dtype)]
    forms += [newton_schulz.in_gram_form(g, g.dtype, r) for r in [(), (2,), (3,), (1, 4)]]
    for found in forms:
        # the Gram matrix has squares of singular values, 1e-4 of the largest: half of the digits
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_the_float64_muon_is_torchs(monkeypatch):
    def exact(g, coefficients, steps, eps):
        assert (coefficients, steps) == (reference.NS_COEFFICIENTS, reference.NS_STEPS)
        return newton_schulz.plain(g[None], g.dtype)[0]

    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", exact)
    shapes = [(5, 3), (3, 7)]
    start = check.drawn(shapes, "cpu", torch.float64, 0)
    gradients = [check.drawn(shapes, "cpu", torch.float64, 1 + t) for t in range(CHECKED_STEPS)]
    x, other = (
        check.stepped(make, [v.clone() for v in start], gradients, False)
        for make in (ORACLES["muon"], VARIANTS[orthogonal.TORCH_MUON].make)
    )
    torch.testing.assert_close(x, other, rtol=0, atol=1e-12)


def test_newton_schulz_alone_takes_the_gradients_it_is_given():
    case = next(case for case in CPU if case.ours == orthogonal.OURS_NS)
    steps = [[matrices(4, 6, spread=0.1)], [matrices(4, 6)]]
    found = check.stepped(VARIANTS[case.ours].make, [torch.zeros(4, 6).double()], steps, False)
    exact = newton_schulz.plain(steps[1][0][None], torch.float64)
    torch.testing.assert_close(found, list(exact), rtol=0, atol=1e-12)


def fake_dion():
    def ns_line_2(a, alpha, beta, *, out=None):
        return alpha * a @ a.mT + beta * a

    return SimpleNamespace(ns_line_1=newton_schulz.gram, ns_line_2=ns_line_2)


def fake_gram_newton_schulz():
    def make(ns_coefficients):
        assert ns_coefficients == [list(reference.NS_COEFFICIENTS)] * reference.NS_STEPS
        return lambda g: newton_schulz.in_gram_form(g, torch.float16, (2,))

    return SimpleNamespace(GramNewtonSchulz=make)


@pytest.mark.parametrize(
    ("name", "module", "fake"),
    [
        (orthogonal.DION, "dion.newton_schulz_triton", fake_dion),
        (orthogonal.GRAM_NEWTON_SCHULZ, "gram_newton_schulz", fake_gram_newton_schulz),
    ],
)
def test_kernels_of_others_are_given_our_coefficients(monkeypatch, name, module, fake):
    """With stand-ins: the packages need a GPU."""
    monkeypatch.setitem(sys.modules, module.partition(".")[0], SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, fake())
    monkeypatch.setitem(VARIANTS, name, VARIANTS[name]._replace(needs=None))
    case = next(case for case in ANYWHERE if name in case.peers)
    assert not isinstance(check.errors(case._replace(peers=(name,)), [(20, 50)])[name], Skipped)


def test_muon_of_another_formula_is_not_timed(monkeypatch):
    def wrong(params, capturable):
        return peers.plain(torch.optim.Muon(params, **orthogonal.MUON, ns_steps=4), params)

    row = VARIANTS[orthogonal.TORCH_MUON]
    monkeypatch.setitem(VARIANTS, orthogonal.TORCH_MUON, row._replace(make=wrong))
    case = next(case for case in CPU if case.ours == orthogonal.OURS_MUON)
    with pytest.raises(Disagreement, match="torch Muon: error"):
        core.quick(case)


def test_what_is_wrong_at_full_size_only_is_not_timed(monkeypatch):
    def half(g, dtype):
        return newton_schulz.plain(g, dtype) * (1 if g.shape[-1] <= 192 else 1.001)

    name = orthogonal.PLAIN_32
    row = VARIANTS[name]._replace(make=orthogonal.alone(half, dtype=torch.float32))
    monkeypatch.setitem(VARIANTS, name, row)
    case = next(case for case in CPU if name in case.peers)
    assert check.errors(case._replace(full_size=False), [(20, 200)])[name] < 1e-4
    with pytest.raises(Disagreement, match=r"error 1\.0e-03, allowed 4e-04"):
        check.errors(case, [(20, 200)])


def test_a_wrong_formula_is_not_timed(monkeypatch):
    row = VARIANTS[peers.TWO_PHASE]

    def make(params, capturable):
        stepper = row.make(params, capturable)
        stepper.step.__self__.average = [torch.ones_like(p) for p in params]
        return stepper

    monkeypatch.setitem(VARIANTS, peers.TWO_PHASE, row._replace(make=make))
    monkeypatch.setattr(core, "in_turn", pytest.fail)
    with pytest.raises(Disagreement, match="two-phase around torch fused AdamW: error"):
        core.quick(FIRST)


def test_a_variant_that_overwrites_shared_gradients_is_not_timed(monkeypatch):
    row = VARIANTS[peers.SCHEDULEFREE]
    if missing(row):
        pytest.skip(missing(row))
    monkeypatch.setitem(VARIANTS, peers.SCHEDULEFREE, row._replace(spoils=False))
    case = next(case for case in CPU if peers.SCHEDULEFREE in case.peers)
    with pytest.raises(Disagreement, match="overwrites the gradients"):
        core.quick(case)


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


def test_our_own_failure_is_an_error(monkeypatch):
    def fail(params, capturable):
        raise RuntimeError("broken")

    monkeypatch.setitem(VARIANTS, peers.OURS, Variant("ema adamw", fail))
    with pytest.raises(RuntimeError, match="broken"):
        core.quick(FIRST)


def test_variants_take_turns(monkeypatch):
    order, case = [], SimpleNamespace(steps=1, cold=True)

    def turn(name):
        def sample(_):
            order.append(name)
            each.samples.append(1e-3)

        each = SimpleNamespace(samples=[], host=[], case=case, sample=sample)
        return each

    running = [turn(name) for name in "abc"]
    core.in_turn(running, "cpu", rounds=20, cache_bytes=4096)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    # the first round warms up and is not kept
    assert [len(each.samples) for each in running] == [20] * 3
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({tuple(each) for each in rounds}) == math.factorial(3)


@pytest.mark.parametrize(
    ("cycle", "rounds"), [(0.001, 101), (1.0, 20), (10.0, 9), (50.0, 6), (140.0, 3), (1e4, 3)]
)
def test_a_case_that_takes_minutes_gets_fewer_rounds(cycle, rounds):
    assert devices.DEVICES["cpu"].rounds_of(cycle) == rounds


def test_cases_are_consistent():
    assert len({(case.device, case.name) for case in CASES}) == len(CASES)
    for case in CASES:
        assert set(case.variants) <= set(VARIANTS)
        for claim in case.claims:
            assert claim.quantity in report.QUANTITIES
            assert claim.peer is None or claim.peer in case.variants or claim.quantity == "state"


def entry(case, name, seconds, **info):
    common = {
        **{"case": case, "variant": name, "model": "M", "dtype": "float32", "backend": "b"},
        **{"date": "2026-01-02", "commit": "abc", "machine": "CPU", "threads": 2, "torch": "2"},
        **{"python": "3", "units": "AVX2", "load": 0.1},
    }
    stats = {"median": seconds, "q1": 0.9 * seconds, "q3": 1.1 * seconds}
    return {"extra_info": {**common, **info}, "stats": stats}


def test_report_of_a_small_run():
    claims = [
        ["speedup", "slow", 3.5, 4.5],
        ["speedup", "same", 0.95, 1.0],
        ["cost", "less", 1.4, 1.29],
        ["speedup", "unasked", None, None],
        ["state", "less", 4, 4],
        ["transient", None, 0, 0],
        ["share", None, 0.88, None],
        ["accuracy", "slow", 100, 1000],
        ["lookahead", "same", 2, None],
        ["host", None, 30, None],
        ["host of", "slow", 30, None],
        ["speedup", "absent", 2, 2],
    ]
    more = {"claims": claims, "skipped": {"absent": "no package"}, "error": 5e-7, "share": 0.9}
    more["host"] = 25e-6
    data = {
        "benchmarks": [
            entry(*("c", "us", 0.1), state_bytes=12, transient_bytes=0.001, **more),
            *(entry("c", n, t) for n, t in [("same", 0.099), ("unasked", 0.2)]),
            entry("c", "slow", 0.4, error=1e-4, gigaflops_per_second=12.345, host=31e-6),
            entry("c", "less", 0.07, state_bytes=8),
        ],
        "failed": ["other: broke"],
    }
    text = report.report(data)
    cells = [[cell.strip() for cell in line.split("|")[2:7]] for line in text.splitlines()[4:15]]
    assert cells == [
        ["slow / ours", "4.00", "3.5", "4.5", "ok"],
        ["same / ours", "0.99", "0.95", "1", "ok"],
        ["ours / less", "1.43", "1.4", "1.29", "miss"],
        ["unasked / ours", "2.00", "", "", ""],
        ["bytes per parameter beyond less", "4.00", "4", "4", "ok, stretch"],
        ["transient bytes per parameter", "0.00", "0", "0", "ok, stretch"],
        ["share of the ceiling", "0.90", "0.88", "", "ok"],
        ["error of slow / error of ours", "200.00", "100", "1000", "ok"],
        ["% of ours beyond same", "1.00", "2", "", "ok"],
        ["host µs per step", "25.00", "30", "", "ok"],
        ["host µs per step, slow", "31.00", "30", "", "miss"],
    ]
    assert "| 12.35 | 5.0e-07 | 1.0e-04 |" in text
    assert text.startswith(
        "2026-01-02, commit abc, CPU, AVX2, 2 threads, torch 2, Python 3, back end b"
    )
    assert "100 (90 to 110)" in text
    assert text.endswith("- c: absent: no package\n- other: broke")
    assert "busy" not in text
    data["benchmarks"][0]["extra_info"]["load"] = 5.0
    assert "busy (load 5.0" in report.report(data)


def test_a_run_without_pytest_benchmark(tmp_path, monkeypatch, capsys):
    broken = FIRST._replace(name="ema adamw broken", ours="no such variant")
    monkeypatch.setattr(gpu, "CASES", (broken, FIRST))
    arguments = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--only", "ema adamw"]
    assert gpu.main(arguments) == 1
    (path,) = tmp_path.glob("*.json")
    data = json.loads(path.read_text())
    assert data["failed"] == ["ema adamw broken: KeyError: 'no such variant'"]
    assert "two-phase around torch fused AdamW / ours" in report.report(data)
    assert report.report(data) in capsys.readouterr().out


def subprocess_run(arguments, folder=ROOT, **environment):
    """Run Python in a folder; what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_under_pytest_benchmark(tmp_path):
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "run.json"
    options = ["--benchmark-only", f"--benchmark-json={path}", "-p", "no:cacheprovider"]
    subprocess_run(
        ["-m", "pytest", f"{ROOT}/bench", "-q", "-k", "sgd", *options], EMANEST_BENCH_QUICK="1"
    )
    data = json.loads(path.read_text())
    kept = {b["name"]: b["extra_info"]["halves"] for b in data["benchmarks"]}
    assert set(kept) == {peers.OURS_SGD, peers.TWO_PHASE_SGD, core.CEILING}
    for each in data["benchmarks"]:
        assert each["stats"]["data"] == pytest.approx(kept[each["name"]])
    printed = subprocess_run([f"{ROOT}/bench/report.py", str(path)])
    assert "two-phase around torch fused SGD / ours" in printed


def test_the_source_tree_needs_no_installation(tmp_path):
    for folder in ("emanest", "kernels", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so"))
    code = "import bench.source_tree, emanest.kernels; print(emanest.kernels.__file__)"
    printed = subprocess_run(["-c", code], tmp_path, PYTHONPATH=str(tmp_path))
    assert printed.strip() == str(tmp_path / "kernels" / "__init__.py")
