# SPDX-License-Identifier: MIT
"""What benchmarks count and compare with: sizes, bytes, operations, references."""

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch

import textbook
import textbook_bases
from bench import check, models, newton_schulz, orthogonal, peers, reference, roofline
from bench.case import SPREAD
from bench.cases import CPU, CUDA
from bench.check import CHECKED_STEPS, Skipped
from bench.table import ORACLES, VARIANTS
from bench.variants import Traffic, Work


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


@pytest.mark.parametrize(("most", "moved"), [(2**30, 36 * 100), (400, 800)])
def test_the_ceiling_of_a_gpu_is_a_copy(monkeypatch, most, moved):
    monkeypatch.setattr(roofline.Copy, "most", most)
    copy = roofline.CEILINGS["cuda"]([torch.zeros(100)], Traffic(2, 1, 6))
    copy.step()
    assert torch.equal(copy.copied, copy.source)
    assert copy.bytes == copy.source.nbytes + copy.copied.nbytes == moved


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


def test_newton_schulz_alone_reads_where_a_graph_does():
    p = torch.zeros(4, 6, requires_grad=True)
    p.grad = torch.ones(4, 6)
    alone = newton_schulz.Alone([p], torch.clone)
    batch = alone.batch
    p.grad = torch.full((4, 6), 2.0)
    alone.take_gradients()
    assert alone.batch is batch
    assert torch.equal(batch, p.grad[None])


def configuration(sizes, rows, columns, depth, warps, stages):
    kwargs = dict(zip(sizes, (rows, columns, depth), strict=True))
    return SimpleNamespace(kwargs=kwargs, num_warps=warps, num_stages=stages)


def autotuned(sizes):
    """With 64 configurations; those of dion and Emerging-Optimizers are no fewer."""
    every = itertools.product(*[(64, 128)] * 3, (4, 8), (2, 3), (False, True))
    configs = [configuration(sizes, *each) for *each, _ in every]
    return SimpleNamespace(configs=configs, base_fn=SimpleNamespace(__name__="kernel"))


def fake_dion():
    def ns_line_2(a, alpha, beta, *, out=None):
        return alpha * a @ a.mT + beta * a

    kernels = [autotuned(("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K")) for _ in range(2)]
    return SimpleNamespace(
        **{"ns_line_1": newton_schulz.gram, "ns_line_2": ns_line_2},
        **{"ns_line_1_kernel": kernels[0], "ns_line_2_kernel": kernels[1], "kernels": kernels},
    )


def fake_emerging():
    def batched_tsyrk_ex(a, c=None, alpha=1.0, beta=0.0):
        return alpha * a @ a.mT + (0 if c is None else beta * c)

    kernel = autotuned(("TILE_M", "TILE_N", "TILE_K"))
    return SimpleNamespace(
        batched_tsyrk_ex=batched_tsyrk_ex, batched_syrk_kernel_bf16=kernel, kernels=[kernel]
    )


def fake_gram_newton_schulz():
    def make(ns_coefficients):
        assert ns_coefficients == [list(reference.NS_COEFFICIENTS)] * reference.NS_STEPS
        return lambda g: newton_schulz.in_gram_form(g, torch.float16, (2,))

    return SimpleNamespace(GramNewtonSchulz=make, kernels=[])


@pytest.mark.parametrize(
    ("name", "module", "fake"),
    [
        (orthogonal.DION, "dion.newton_schulz_triton", fake_dion),
        (orthogonal.EMERGING, "emerging_optimizers.triton_kernels.batched_syrk", fake_emerging),
        (orthogonal.GRAM_NEWTON_SCHULZ, "gram_newton_schulz", fake_gram_newton_schulz),
    ],
)
def test_kernels_of_others_are_given_our_coefficients(monkeypatch, name, module, fake):
    """And three configurations to choose from. With stand-ins: the packages need a GPU."""
    path, stand_in = module.split("."), fake()
    found = stand_in
    while path:
        monkeypatch.setitem(sys.modules, ".".join(path), found)
        found = SimpleNamespace(**{path.pop(): found})
    monkeypatch.setitem(VARIANTS, name, VARIANTS[name]._replace(needs=None))
    case = next(case for case in CUDA if name in case.peers)
    case = case._replace(device="cpu", timings=("idle",), peers=(name,))
    assert not isinstance(check.errors(case, [(20, 50)])[name], Skipped)
    assert [len(kernel.configs) for kernel in stand_in.kernels] == [3] * len(stand_in.kernels)
