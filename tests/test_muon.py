"""Muon and NorMuon: torch's, the textbook's, and what an update must be."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import _muon

import emanest
import textbook_bases
from emanest import EMANesterov, Muon, NorMuon, backends, orthogonal, orthogonalize, rules
from emanest.bases import SCALES
from helpers import (
    METHODS,
    bits,
    content,
    differing,
    gradients,
    one_thread,  # noqa: F401
    published,
)
from helpers import run as train

pytestmark = pytest.mark.usefixtures("one_thread")

LR = 0.05
SHAPES = [(8, 12), (12, 8), (8, 12), (6, 6), (5, 3, 2, 2)]
CLASSES = {"Muon": Muon, "NorMuon": NorMuon}
BACKENDS = [name for name in ("cpp", "eager") if backends.find(name, "cpu")[0]]

each_class = pytest.mark.parametrize("name", CLASSES)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def matrices(dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [
        nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in shapes
    ]


def run(make, steps=20, dtype=torch.float64, shapes=SHAPES, lr=None):
    """The parameters after some steps; gradients are the same for everyone."""
    params = matrices(dtype, shapes)
    optimizer = make(params)
    for t in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr(t) if lr else group["lr"]
        for p, g in zip(params, gradients(params, t), strict=True):
            p.grad = g
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
    return [p.detach() for p in params]


def close(found, expected, rtol=0, atol=1e-10):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# ---- torch.optim.Muon ---------------------------------------------------------------------------

OPTIONS = {
    "defaults": {},
    "plain momentum": {"nesterov": False},
    "match_rms_adamw": {"adjust_lr_fn": "match_rms_adamw"},
    "original": {"adjust_lr_fn": "original", "weight_decay": 0.0},
    "all": {"lr": 0.3, "momentum": 0.5, "weight_decay": 0.4, "ns_steps": 3, "eps": 1e-3},
    "eps beyond the norm": {"eps": 100.0},
    "coefficients": {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 7},
}
FLAT = [s for s in SHAPES if len(s) == 2]


def test_the_constructor_takes_torchs_arguments():
    def of_kind(cls, keyword_only):
        found = inspect.signature(cls).parameters.values()
        return [(p.name, p.default) for p in found if (p.kind == p.KEYWORD_ONLY) == keyword_only]

    assert of_kind(Muon, False) == of_kind(torch.optim.Muon, False)
    assert set(of_kind(Muon, True)) >= set(of_kind(torch.optim.Muon, True))


@each_backend
@pytest.mark.parametrize("option", OPTIONS)
def test_float64_is_torchs_with_its_iteration_in_float64(option, backend, monkeypatch):
    def exact(g, coefficients, steps, eps):
        a, b, c = coefficients
        x = g.mT if g.shape[0] > g.shape[1] else g
        x = x / x.norm().clamp(min=eps)
        for _ in range(steps):
            r = x @ x.mT
            x = a * x + (b * r + c * r @ r) @ x
        return x.mT if g.shape[0] > g.shape[1] else x

    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", exact)
    options, lr = OPTIONS[option], lambda t: 0.1 / (t + 1)
    expected = run(lambda p: torch.optim.Muon(p, **options), shapes=FLAT, lr=lr)
    close(run(lambda p: Muon(p, **options, backend=backend), shapes=FLAT, lr=lr), expected)


@pytest.mark.parametrize("option", OPTIONS)
def test_float32_is_torchs_as_far_as_bfloat16_goes(option):
    def change(make):
        after = run(make, 3, torch.float32, [(32, 48), (48, 32)])
        return [
            a - b for a, b in zip(after, matrices(torch.float32, [(32, 48), (48, 32)]), strict=True)
        ]

    expected = change(lambda p: torch.optim.Muon(p, **OPTIONS[option]))
    for dtype in (None, "bfloat16"):
        found = change(lambda p, dtype=dtype: Muon(p, **OPTIONS[option], ns_dtype=dtype))
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 2e-2 * b.norm()


def test_torchs_checkpoint_continues_here():
    torchs, params = (
        torch.optim.Muon(matrices(torch.float32, FLAT), lr=LR),
        matrices(torch.float32, FLAT),
    )
    train(torchs, range(3))
    ours = Muon(params, lr=0.7)
    ours.load_state_dict(torchs.state_dict())
    assert ours.param_groups[0]["lr"] == LR
    for p, q in zip(params, torchs.param_groups[0]["params"], strict=True):
        assert torch.equal(ours.state[p]["momentum_buffer"], torchs.state[q]["momentum_buffer"])
    train(ours, range(3, 5))


# ---- the textbook -------------------------------------------------------------------------------


@each_backend
@each_class
@pytest.mark.parametrize("scale", [None, *SCALES])
@pytest.mark.parametrize("nesterov", [True, False])
def test_float64_is_the_textbooks(name, backend, scale, nesterov):
    options = {"adjust_lr_fn": scale, "nesterov": nesterov, "weight_decay": 0.2}
    base, params = getattr(textbook_bases, name)(**options), [p.detach() for p in matrices()]
    for t in range(20):
        pairs = zip(params, gradients(params, t), strict=True)
        params = [base.update(i, p, g, LR) for i, (p, g) in enumerate(pairs)]
    close(run(lambda p: CLASSES[name](p, LR, **options, backend=backend)), params)


@each_class
@pytest.mark.parametrize("method", [m for m in METHODS if m != "nala"])
def test_every_lookahead_is_the_published_one(name, method):
    options = {"momentum": 0.0 if method == "schedule free" else 0.9, "weight_decay": 0.0}
    base = getattr(textbook_bases, name)(**options)
    reference = published(METHODS[method], [p.detach() for p in matrices()], base)
    params = matrices()
    optimizer = CLASSES[name](params, LR, **options, lookahead=METHODS[method])
    for t in range(20):
        close([p.detach() for p in params], reference.y)
        grads = gradients(params, t)
        reference.step(grads, LR)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
    with optimizer.at_iterate():
        close([p.detach() for p in params], reference.x)


def test_the_sum_of_gradients_has_the_same_direction():
    """Older Muons add up gradients: B = mu B + g, u = g + mu B."""
    total, average = torch.zeros(8, 12).double(), torch.zeros(8, 12).double()
    for t in range(5):
        g = gradients(matrices()[:1], t)[0]
        total = 0.95 * total + g
        average = 0.95 * average + 0.05 * g
    u, v = g + 0.95 * total, 0.05 * g + 0.95 * average
    torch.testing.assert_close(v / v.norm(), u / u.norm(), rtol=0, atol=1e-12)
    torch.testing.assert_close(orthogonalize(v), orthogonalize(u), rtol=0, atol=1e-12)


def test_the_newest_gradient_has_the_weight_of_nesterov():
    """Of what is orthogonalised: mu^2 of the old average, 1 - mu^2 of the gradient."""
    old, g, mu = torch.tensor([3.0], dtype=torch.float64), torch.tensor([5.0]).double(), 0.75
    d, (buffer,) = rules.ema(g, (old,), (1 - mu, 1 - mu))
    assert (d.item(), buffer.item()) == (mu**2 * 3 + (1 - mu**2) * 5, mu * 3 + (1 - mu) * 5)
    d, _ = rules.ema(g, (old,), (1 - mu, 0.0))
    assert d.item() == mu * 3 + (1 - mu) * 5


def test_scales_are_those_of_the_table():
    found = {name: [scale(*s) for s in ((12, 3), (3, 12))] for name, scale in SCALES.items()}
    assert found == {
        "original": [2.0, 1.0],
        "match_rms_adamw": [0.2 * 12**0.5] * 2,
        "spectral_norm": [2.0, 0.5],
        "unit_rms": [12**0.5] * 2,
        "none": [1.0, 1.0],
    }


# ---- what an update must be ---------------------------------------------------------------------


@each_backend
@each_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_update_is_orthogonal(name, backend, dtype):
    """Neither the gradient nor a multiple of it: its condition number is 100."""
    shape = (24, 40)
    u, _ = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(40, 24, dtype=torch.float64))
    g = (u * torch.logspace(0, -2, 24, dtype=torch.float64)) @ v.mT
    p = nn.Parameter(torch.zeros(shape, dtype=dtype))
    p.grad = g.to(dtype)
    options = {"weight_decay": 0.0, "ns_coefficients": "simple", "ns_steps": 12, "backend": backend}
    CLASSES[name]([p], 1.0, adjust_lr_fn="none", **options).step()
    s = torch.linalg.svdvals(p.detach().double())
    slack = 0.2 if name == "NorMuon" else 0.02
    assert s.min() > 1 - slack
    assert s.max() < 1 + slack
    # and it points down
    assert (p.detach().double() * g).sum() < 0
    assert torch.linalg.svdvals(g / g.norm()).min() < 0.01


@each_class
@pytest.mark.parametrize("split", [2, 3])
def test_split_parameters_are_so_many_matrices(name, split):
    whole = nn.Parameter(torch.randn(6 * split, 10))
    parts = [nn.Parameter(each.clone()) for each in whole.detach().chunk(split)]
    one = CLASSES[name]([whole], LR, split=split, lookahead=EMANesterov())
    many = CLASSES[name](parts, LR, lookahead=EMANesterov())
    for t in range(5):
        whole.grad = gradients([whole], t)[0]
        for part, g in zip(parts, whole.grad.chunk(split), strict=True):
            part.grad = g.clone()
        one.step()
        many.step()
    assert torch.equal(whole.detach(), torch.cat([p.detach() for p in parts]))


@each_class
def test_kernels_are_flattened(name):
    kernel = nn.Parameter(torch.randn(8, 3, 5, 5))
    flat = nn.Parameter(kernel.detach().clone().flatten(1))
    last = nn.Parameter(kernel.detach().clone().to(memory_format=torch.channels_last))
    optimizers = [CLASSES[name]([p], LR, lookahead=EMANesterov()) for p in (kernel, flat, last)]
    for t in range(4):
        g = gradients([kernel], t)[0]
        for p, o in zip((kernel, flat, last), optimizers, strict=True):
            p.grad = g.flatten(1) if p is flat else g
            o.step()
        last.grad = g.to(memory_format=torch.channels_last)
    assert torch.equal(kernel.detach().flatten(1), flat.detach())
    assert torch.equal(kernel.detach(), last.detach())


@each_backend
@each_class
def test_without_gradient_there_is_decay_alone(name, backend):
    p = nn.Parameter(torch.ones(4, 6, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    CLASSES[name]([p], 0.5, weight_decay=0.1, backend=backend).step()
    torch.testing.assert_close(p.detach(), torch.full((4, 6), 0.95, dtype=torch.float64))


@each_backend
@each_class
def test_what_is_not_finite_spoils_its_own_parameter_only(name, backend):
    def stepped(bad):
        params = matrices(torch.float32)
        for p, g in zip(params, gradients(params, 0), strict=True):
            p.grad = g
        params[0].grad[0, 0] = bad
        CLASSES[name](params, LR, backend=backend).step()
        return params

    clean, spoiled = stepped(0.5), stepped(torch.nan)
    assert spoiled[0].isnan().all()
    # the third has the shape of the first, and was in the same batch
    assert [bits(p) for p in clean[1:]] == [bits(p) for p in spoiled[1:]]


@each_class
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
def test_the_size_of_gradients_does_not_matter(name, size):
    def stepped(size):
        p = nn.Parameter(torch.zeros(8, 12))
        p.grad = gradients([p], 0)[0] * size
        CLASSES[name]([p], 1.0, eps=1e-38).step()
        return p.detach()

    torch.testing.assert_close(stepped(size), stepped(1.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-3)])
def test_normuon_keeps_the_norm_and_evens_rows(dtype, tolerance):
    """Rows of unlike sizes; the first step knows nothing of earlier ones."""
    g = torch.randn(24, 40) * torch.logspace(0, -1, 24)[:, None]
    o = orthogonalize(g, 3, dtype=dtype)
    p = nn.Parameter(torch.zeros(24, 40))
    p.grad = g
    options = {"weight_decay": 0.0, "adjust_lr_fn": "none", "ns_dtype": dtype}
    optimizer = NorMuon([p], 1.0, ns_steps=3, **options)
    optimizer.step()
    rows = p.detach().norm(dim=1)
    assert (o.norm(dim=1).max() / o.norm(dim=1).min()) > 1.5
    torch.testing.assert_close(p.detach().norm(), o.norm(), rtol=tolerance, atol=0)
    assert rows.max() / rows.min() <= 1.01
    assert optimizer.state[p]["second_momentum_buffer"].shape == (24, 1)


def test_state_is_float32_for_narrow_parameters():
    params = matrices(torch.bfloat16)
    optimizer = NorMuon(params, lookahead=EMANesterov())
    train(optimizer, range(2))
    for p in params:
        state = optimizer.state[p]
        assert state["momentum_buffer"].shape == state["exp_avg_update"].shape == p.shape
        assert state["second_momentum_buffer"].shape == (len(p), 1)
        assert {v.dtype for k, v in state.items() if k != "lookahead"} == {torch.float32}


@each_class
@each_backend
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (1, 7), (7, 1)], ids=str)
def test_odd_shapes_are_stepped(name, backend, shape):
    params = matrices(torch.float32, [shape, (3, 4)])
    optimizer = CLASSES[name](params, LR, lookahead=EMANesterov(), backend=backend)
    train(optimizer, range(3))
    kept = [v for p in params for v in optimizer.state[p].values()]
    assert all(t.isfinite().all() for t in (*params, *kept))


@pytest.mark.gpu
@each_class
@pytest.mark.parametrize("backend", ["triton", "cpp"])
@pytest.mark.parametrize(("dtype", "slack"), [("float32", 1e-4), (None, 3e-2)])
def test_a_gpu_steps_as_the_cpu_does(name, backend, dtype, slack):
    """In float16, as it would by itself, but for the digits of that."""
    if backends.find(backend, "cuda")[0] is None:
        pytest.skip(backends.find(backend, "cuda")[1])
    here = matrices(torch.float32, [(40, 96), (96, 40), (64, 64), (8, 3, 5, 5)])
    there = [nn.Parameter(p.detach().cuda()) for p in here]
    start = [p.detach().clone() for p in here]
    options = {"lr": LR, "weight_decay": 0.0, "lookahead": EMANesterov()}
    cpu = CLASSES[name](here, **options, backend="eager")
    gpu = CLASSES[name](there, **options, backend=backend, ns_dtype=dtype)
    for t in range(5):
        for p, q, g in zip(here, there, gradients(start, t), strict=True):
            p.grad, q.grad = g, g.cuda()
        cpu.step()
        gpu.step()
    for p, q, s in zip(here, there, start, strict=True):
        assert (p - q.cpu()).norm() <= slack * (p - s).norm()


# ---- state, modes, scaling ----------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_resume_is_exact(name, mode, method):
    def make():
        momentum = 0.0 if method == "schedule free" else 0.9
        lookahead = METHODS[method] if method else None
        return CLASSES[name](
            matrices(torch.float32), LR, momentum=momentum, weight_decay=0.0, lookahead=lookahead
        )

    whole, first = make(), make()
    train(whole, range(8))
    train(first, range(4))
    if mode == "eval":
        first.eval()
    file = io.BytesIO()
    values = [p.detach().clone() for p in first.param_groups[0]["params"]]
    torch.save((first.state_dict(), values), file)
    file.seek(0)
    state, values = torch.load(file, weights_only=True)
    second = make()
    for p, value in zip(second.param_groups[0]["params"], values, strict=True):
        p.data.copy_(value)
    second.load_state_dict(state)
    second.train()
    train(second, range(4, 8))
    pairs = zip(whole.param_groups[0]["params"], second.param_groups[0]["params"], strict=True)
    assert all(bits(a) == bits(b) for a, b in pairs)


@each_class
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alike(name, clone):
    optimizer = CLASSES[name](matrices(torch.float32), LR, lookahead=EMANesterov())
    train(optimizer, range(3))
    other = clone(optimizer)
    for each in (optimizer, other):
        train(each, range(3, 6))
    pairs = zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True)
    assert all(bits(a) == bits(b) for a, b in pairs)


@each_class
def test_a_checkpoint_of_another_shape_is_refused(name):
    optimizer = CLASSES[name](matrices(torch.float32), LR)
    train(optimizer, range(2))
    saved = optimizer.state_dict()
    saved["state"][0]["momentum_buffer"] = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"'momentum_buffer' of parameter 0 .* shape \(3, 4\)"):
        optimizer.load_state_dict(saved)


@each_class
def test_a_parameter_without_a_gradient_stays(name):
    params = matrices(torch.float32)
    optimizer = CLASSES[name](params, LR, lookahead=EMANesterov())
    train(optimizer, range(2))
    before = bits(params[2])
    for p, g in zip(params, gradients(params, 2), strict=True):
        p.grad = g
    params[2].grad = None
    optimizer.step()
    assert bits(params[2]) == before
    assert bits(params[0]) != before
    assert optimizer.state[params[2]]["step"] == 2


@each_class
def test_a_gradient_scaler_changes_nothing(name):
    plain, scaled = (
        CLASSES[name](matrices(torch.float32), LR, lookahead=EMANesterov()) for _ in range(2)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    for t in range(4):
        for optimizer, factor in ((plain, 1.0), (scaled, 4.0)):
            params = optimizer.param_groups[0]["params"]
            for p, g in zip(params, gradients(params, t), strict=True):
                p.grad = g * factor
        plain.step()
        # lazily initialised
        scaler.scale(torch.ones(()))
        scaler.step(scaled)
        scaler.update()
    pairs = zip(plain.param_groups[0]["params"], scaled.param_groups[0]["params"], strict=True)
    assert all(bits(a) == bits(b) for a, b in pairs)


def test_options_say_where_the_iteration_runs(monkeypatch):
    params = matrices(torch.float32)[:2]
    with pytest.raises(ValueError, match="ns_form='gram' loses all digits in bfloat16: take ns_d"):
        Muon(params, ns_form="gram", ns_dtype="bfloat16")
    found = {}
    for form in ("standard", "gram"):
        p = matrices(torch.float32)
        train(Muon(p, LR, ns_form=form), range(3))
        found[form] = [each.detach() for each in p]
    close(found["gram"], found["standard"], atol=1e-4)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert emanest.newton_schulz.working_dtype(torch.device("cpu"), torch.float32) == torch.bfloat16
    assert (
        emanest.newton_schulz.working_dtype(torch.device("cpu"), torch.float32, "gram")
        == torch.float32
    )
    assert emanest.newton_schulz.working_dtype(torch.device("cuda"), torch.float32) == torch.float16
    assert emanest.newton_schulz.working_dtype(torch.device("cuda"), torch.float64) == torch.float64


# ---- failures ----------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ns_coefficients", "polar", "ns_coefficients must be one of"),
        ("ns_form", "gramm", "ns_form must be one of"),
        ("ns_steps", 0, "ns_steps must be at least 1"),
        ("ns_dtype", "int8", "ns_dtype must be one of"),
        ("split", 5, "split=5 does not divide the 8 rows"),
        ("split", 0, "split must be at least 1"),
        ("adjust_lr_fn", "rms", "adjust_lr_fn must be one of"),
        ("momentum", 1.0, "momentum must be below 1"),
        ("eps", -1.0, "Invalid epsilon value"),
    ],
)
def test_an_option_that_went_bad_is_named_before_anything_moves(name, option, value, message):
    params = matrices(torch.float32)
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = CLASSES[name](groups, LR, lookahead=EMANesterov())
    train(optimizer, range(2))
    good, before = optimizer.param_groups[1][option], content(optimizer)
    optimizer.param_groups[1][option] = value
    with pytest.raises(ValueError, match=message):
        train(optimizer, [2])
    optimizer.param_groups[1][option] = good
    assert differing(content(optimizer), before) == []


def test_a_dtype_may_be_given_between_steps():
    params = matrices(torch.float32)
    optimizer = Muon(params, LR)
    optimizer.param_groups[0]["ns_dtype"] = torch.float64
    train(optimizer, range(1))


@each_class
def test_a_search_that_fails_has_moved_no_parameter(name, monkeypatch):
    """Of any bucket: memory may run out at the second."""
    params = [*matrices(torch.float32)[:2], *matrices(torch.float64)[2:]]
    optimizer = CLASSES[name](params, LR, lookahead=METHODS["lookahead"])
    train(optimizer, range(2))
    before = [bits(p) for p in params]

    def fail(x, *_):
        if x.dtype == torch.float64:
            raise torch.OutOfMemoryError
        return iterate(x, *_)

    iterate = orthogonal.iterate
    with monkeypatch.context() as patch:
        patch.setattr(orthogonal, "iterate", fail)
        with pytest.raises(torch.OutOfMemoryError):
            train(optimizer, [2])
    assert [bits(p) for p in params] == before
    # and no warning of parameters that somebody edited
    train(optimizer, [2])


@each_backend
@each_class
def test_autocast_changes_no_bit(name, backend):
    plain, cast = (
        CLASSES[name](matrices(torch.float32), LR, lookahead=EMANesterov(), backend=backend)
        for _ in range(2)
    )
    train(plain, range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(cast, range(3))
    assert differing(content(plain), content(cast)) == []


# ---- errors -------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_the_wrong_rank_names_split_params(name, shape):
    named = [
        ("layer.weight", nn.Parameter(torch.ones(3, 4))),
        ("layer.bias", nn.Parameter(torch.ones(shape))),
    ]
    with pytest.raises(ValueError, match=r"'layer.bias'.* has shape .*split_params\(model\)"):
        CLASSES[name](named)
    optimizer = CLASSES[name]([named[0][1]])
    with pytest.raises(ValueError, match="parameter 0 of group 1 has shape"):
        optimizer.add_param_group({"params": [named[1][1]]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"momentum": 1.0}, ValueError, "momentum must be below 1"),
        ({"momentum": -0.1}, ValueError, "momentum must be a finite number at least 0"),
        ({"nesterov": 1}, TypeError, "nesterov must be True or False"),
        ({"ns_steps": 0}, ValueError, "ns_steps must be at least 1, got 0"),
        ({"ns_coefficients": "kellr"}, ValueError, "ns_coefficients must be one of"),
        (
            {"adjust_lr_fn": "rms"},
            ValueError,
            "adjust_lr_fn must be .*'unit_rms'.* got 'rms'",
        ),
        ({"split": 0}, ValueError, "split must be at least 1, got 0"),
        ({"split": 5}, ValueError, r"split=5 does not divide the 8 rows of parameter 0 of group 0"),
        ({"ns_form": "fast"}, ValueError, "ns_form must be one of"),
        ({"ns_dtype": torch.int8}, ValueError, "ns_dtype must be one of"),
        ({"eps": -1.0}, ValueError, "Invalid epsilon value"),
        ({"lr": -1.0}, ValueError, "Invalid learning rate"),
        ({"weight_decay": -1.0}, ValueError, "Invalid weight_decay value"),
        ({"differentiable": True}, ValueError, "differentiable=True is not supported"),
        ({"backend": "cublas"}, ValueError, "backend must be None or one of"),
    ],
)
def test_bad_options_are_named(option, error, message):
    with pytest.raises(error, match=message):
        Muon(matrices(torch.float32), **option)


def test_bad_decay_of_the_second_average_is_named():
    with pytest.raises(ValueError, match=r"beta2 must be in \[0, 1\), got 1.0"):
        NorMuon(matrices(torch.float32), beta2=1.0)


def test_no_eps_is_refused_where_rows_of_zeros_are_divided_by_it():
    with pytest.raises(ValueError, match="NorMuon divides rows of zeros by eps: it must be above"):
        NorMuon(matrices(torch.float32), eps=0.0)


@each_class
def test_the_checkpoint_of_another_base_is_refused(name):
    optimizer, other = (
        CLASSES[name](matrices(torch.float32)),
        emanest.AdamW(matrices(torch.float32)),
    )
    train(other, range(2))
    with pytest.raises(ValueError, match=r"group 0 of the checkpoint was stepped by 'adamw', this"):
        optimizer.load_state_dict(other.state_dict())


def test_complex_matrices_are_refused():
    with pytest.raises(ValueError, match=r"only real matrices here; .*split_params"):
        Muon([nn.Parameter(torch.ones(3, 4, dtype=torch.complex64))])
