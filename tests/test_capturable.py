# SPDX-License-Identifier: MIT
"""``capturable=True`` keeps clock and numbers on the device; on the CPU it changes nothing."""

import pytest
import torch

import emanest
import helpers
from emanest import EMANesterov, ScheduleFree
from helpers import METHODS, bits, content, differing, params_of, run, values

CAPTURABLE = {None: None} | {k: m for k, m in METHODS.items() if m.capturable}
ON_HOST = {k: m for k, m in METHODS.items() if not m.capturable} | {
    "callable": EMANesterov(lambda t: 0.5)
}


def adamw(params, method, **options):
    beta1 = 0.0 if isinstance(method, ScheduleFree) else 0.9
    return emanest.AdamW(params, betas=(beta1, 0.99), lookahead=method, **options)


def amsgrad(params, method, **options):
    return adamw(params, method, amsgrad=True, **options)


def sgd(params, method, **options):
    # dampening: the first step differs from the others
    momentum = 0.0 if isinstance(method, ScheduleFree) else 0.9
    return emanest.SGD(params, momentum=momentum, dampening=0.5, lookahead=method, **options)


def muon(params, method, cls=emanest.Muon, **options):
    """Matrices on Muon, whose numbers are shared by the search and the pass; the rest on AdamW."""
    beta1 = 0.0 if isinstance(method, ScheduleFree) else 0.9
    groups = [
        {"params": [p for p in params if p.dim() > 1]},
        {"params": [p for p in params if p.dim() < 2], "base": "adamw", "betas": (beta1, 0.99)},
    ]
    groups = [group for group in groups if group["params"]]
    lr = {"lr": options["lr"]} if "lr" in options else {}
    groups = [{**group, **lr} for group in groups]
    # the same everywhere: with fewer digits a last bit of a number could become a large one
    return cls(groups, momentum=beta1, ns_dtype="float32", lookahead=method, **options)


def normuon(params, method, **options):
    return muon(params, method, emanest.NorMuon, **options)


def aurora(params, method, **options):
    return muon(params, method, emanest.Aurora, ns_norm="schatten4", **options)


BASES = [adamw, amsgrad, sgd, muon, normuon]
REAL_ONLY = (muon, normuon)
DTYPES = [torch.float32, torch.bfloat16, torch.complex64]

each_base = pytest.mark.parametrize("make", BASES)


def rate(t):
    """A learning rate that starts at 0, rises above its first peak, and falls."""
    return (0.0, 0.05, 0.02, 0.08, 0.01)[t % 5]


def trained(make, method, dtype, capturable, steps=30):
    lr = torch.tensor(rate(0))
    optimizer = make(helpers.parameters(dtype), method, lr=lr, capturable=capturable)
    for t in range(steps):
        for group in optimizer.param_groups:
            group["lr"].fill_(rate(t))
        run(optimizer, [t])
        if t % 7 == 0:
            with optimizer.at_iterate():
                pass
    return optimizer


def tensors(optimizer):
    """Parameters and state, which do not depend on where the numbers are."""
    return {k: v for k, v in content(optimizer).items() if k.startswith(("/values", "/state"))}


@pytest.mark.parametrize("method", CAPTURABLE)
@pytest.mark.parametrize(
    ("make", "dtype"),
    [(m, d) for m in BASES for d in DTYPES if not (d.is_complex and m in REAL_ONLY)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_capturable_changes_nothing(method, make, dtype):
    captured, plain = (trained(make, CAPTURABLE[method], dtype, on) for on in (True, False))
    assert differing(tensors(captured), tensors(plain)) == []
    for mine, theirs in zip(captured.param_groups, plain.param_groups, strict=True):
        numbers = {k: float(v) for k, v in mine.items() if isinstance(v, torch.Tensor)}
        assert numbers == {k: float(theirs[k]) for k in numbers}
        assert numbers["lookahead_t"] == 30


@pytest.mark.parametrize("method", CAPTURABLE)
@each_base
def test_capturable_changes_nothing_in_float64(method, make):
    """But the last bits: powers of tensors round differently from powers of Python numbers."""
    captured, plain = (trained(make, CAPTURABLE[method], torch.float64, on) for on in (True, False))
    torch.testing.assert_close(values(captured), values(plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", CAPTURABLE)
# whose numbers are Muon's, and factors of rows its own
@pytest.mark.parametrize("make", [*BASES, aurora])
def test_a_captured_step_reads_no_number(method, make, monkeypatch):
    """A read would wait for the device, which a CUDA graph cannot record."""
    options = {"capturable": True, "backend": "eager"}
    optimizer = make(helpers.parameters(), CAPTURABLE[method], **options)
    run(optimizer, range(3))
    groups = optimizer.param_groups
    kept = [{k: v for k, v in g.items() if isinstance(v, torch.Tensor)} for g in groups]
    helpers.set_gradients(params_of(optimizer), 3)

    def read(*_):
        pytest.fail("a tensor was read on the host")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, read)
    optimizer.step()
    monkeypatch.undo()
    # a graph writes to where it was captured
    for group, tensors_ in zip(groups, kept, strict=True):
        assert all(group[k] is v for k, v in tensors_.items())
        assert float(group["lookahead_t"]) == 4


@pytest.mark.parametrize("method", ON_HOST)
@each_base
def test_methods_that_are_planned_on_the_host_are_rejected_by_name(method, make):
    name = type(ON_HOST[method]).__name__
    with pytest.raises(ValueError, match=f"capturable=True does not work with {name}"):
        make(helpers.parameters(), ON_HOST[method], capturable=True)
    optimizer = make(helpers.parameters()[:2], None, capturable=True)
    group = {"params": helpers.parameters()[2:], "lookahead": ON_HOST[method]}
    with pytest.raises(ValueError, match=f"capturable=True does not work with {name}"):
        optimizer.add_param_group(group)


@each_base
@pytest.mark.parametrize("steps", [0, 3])
def test_a_missing_gradient_is_an_error_and_changes_nothing(make, steps):
    optimizer = trained(make, METHODS["ema"], torch.float32, True, steps)
    helpers.set_gradients(params_of(optimizer), steps)
    params_of(optimizer)[1].grad = None
    before = tensors(optimizer)
    with pytest.raises(RuntimeError, match=r"capturable=True needs a gradient .* shape \(7,\)"):
        optimizer.step()
    assert differing(tensors(optimizer), before) == []


@pytest.mark.parametrize("method", CAPTURABLE)
@each_base
def test_a_late_group_has_a_clock_of_its_own(method, make):
    shapes = [(3, 4), (4, 2)]
    found = []
    for capturable in (True, False):
        first, late = helpers.parameters(shapes=shapes), helpers.parameters(shapes=shapes)
        optimizer = make(first, CAPTURABLE[method], capturable=capturable)
        run(optimizer, range(3))
        options = optimizer.param_groups[0]
        options = {k: options[k] for k in ("betas", "momentum") if k in options}
        optimizer.add_param_group({"params": late, **options})
        run(optimizer, range(3, 7))
        assert [float(group["lookahead_t"]) for group in optimizer.param_groups] == [7, 7]
        found.append(tensors(optimizer))
    assert differing(*found) == []


@pytest.mark.parametrize("method", CAPTURABLE)
@each_base
def test_a_checkpoint_resumes_exactly(method, make):
    saved = trained(make, CAPTURABLE[method], torch.float32, True, steps=7)
    loaded = make([torch.nn.Parameter(p) for p in values(saved)], CAPTURABLE[method])
    loaded.load_state_dict(saved.state_dict())
    assert {bits(group["lr"]) for group in loaded.param_groups} == {bits(torch.tensor(rate(6)))}
    for optimizer in (saved, loaded):
        run(optimizer, range(7, 12))
    assert differing(content(saved), content(loaded)) == []


@pytest.mark.parametrize("method", CAPTURABLE)
def test_launches_of_two_groups_come_in_any_order(method):
    """Each group has a dtype that the other's first launch has, and its clock goes on once."""

    def stepped(capturable):
        shapes = {"shapes": [(5, 3)]}
        single, half = (
            [*helpers.parameters(dtype, **shapes), *helpers.parameters(dtype, **shapes)]
            for dtype in (torch.float32, torch.bfloat16)
        )
        groups = [{"params": [single[0], half[0]]}, {"params": [half[1], single[1]], "lr": 0.03}]
        optimizer = sgd(groups, CAPTURABLE[method], lr=0.05, capturable=capturable)
        for t in range(4):
            # of Schedule-Free, weights that differ from step to step
            for group in optimizer.param_groups:
                group["lr"] *= 1.5
            run(optimizer, [t])
        assert [float(group["lookahead_t"]) for group in optimizer.param_groups] == [4, 4]
        return [bits(p) for p in params_of(optimizer)]

    assert stepped(True) == stepped(False)
