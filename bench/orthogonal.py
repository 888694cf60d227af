# SPDX-License-Identifier: MIT
"""What is timed of Muon and of Newton-Schulz alone, ours and others."""

import torch

import emanest
from emanest.matrix.coefficients import polynomials
from emanest.matrix.forms import cheapest, flops
from emanest.matrix.newton_schulz import working_dtype

from . import newton_schulz
from .models import hidden
from .newton_schulz import Several, alone
from .peer_kernels import dion, emerging, gram_newton_schulz
from .peers import ADAMW, EMA, fused
from .reference import MUON_LR, MUON_MOMENTUM, MUON_WEIGHT_DECAY
from .variants import Variant, Work, ours, plain, two_phase

MUON = {"lr": MUON_LR, "weight_decay": MUON_WEIGHT_DECAY, "momentum": MUON_MOMENTUM}


def parted(params):
    """The parameters that Muon gets, and the others."""
    chosen = set(hidden([p.shape for p in params]))
    matrices = [p for i, p in enumerate(params) if i in chosen]
    return matrices, [p for i, p in enumerate(params) if i not in chosen]


def emanest_muon(lookahead):
    def make(params, capturable):
        options = {**MUON, "lookahead": lookahead, "capturable": capturable}
        return ours(emanest.Muon(params, **options), params)

    return make


def emanest_polar(cls, **options):
    """Ours, with the iteration that Aurora has by default."""

    def make(params, capturable):
        options_of_all = {**MUON, "ns_coefficients": "simple", "ns_steps": 12, **options}
        return ours(cls(params, **options_of_all, capturable=capturable), params)

    return make


def operations_of_aurora(shapes):
    """Those of Aurora over those of Muon with the same iteration, which squares need once."""
    (rows, _), dtype = polynomials("simple", 12), as_we_choose("cpu", torch.float32)
    once = twice = 0
    for shape in shapes:
        n, m = sorted(shape)
        form = cheapest(n, m, rows, dtype, 0.5)
        count = flops(form, n, m, rows, dtype)
        once, twice = once + count, twice + count * (1 if n == m else 2)
    return twice / once


def emanest_mixed(lookahead):
    def make(params, capturable):
        matrices, others = parted(params)
        groups = [{"params": matrices}, {"params": others, "base": "adamw", **ADAMW}]
        options = {**MUON, "lookahead": lookahead, "capturable": capturable}
        return ours(emanest.Muon(groups, **options), params)

    return make


def torch_muon(params, **ignored):
    """Of which a step can be captured as it is."""
    return torch.optim.Muon(params, **MUON)


def torch_mixed(params, capturable=False):
    matrices, others = parted(params)
    adamw = torch.optim.AdamW(others, **fused(ADAMW), capturable=capturable)
    return Several([torch_muon(matrices), adamw])


def exact_muon(params):
    return newton_schulz.Muon(params)


def exact_mixed(params):
    matrices, others = parted(params)
    adamw = torch.optim.AdamW(others, **ADAMW, foreach=False)
    return Several([newton_schulz.Muon(matrices), adamw])


def pytorch_optimizer_muon(**options):
    """Which steps matrices of one shape together, and its gradients are its own."""

    def make(params, capturable):
        import pytorch_optimizer

        groups = [{"params": params, "use_muon": True}]
        peer = pytorch_optimizer.Muon(groups, **MUON, foreach=True, **options)
        return plain(peer, params)

    return make


def alone_in(dtype, form, function, **options):
    """A row for a function of a batch and a dtype."""
    return Variant(
        "newton-schulz",
        alone(function, dtype=dtype, **options),
        flat=True,
        work=Work(form),
        arithmetic=always(dtype),
    )


def always(dtype):
    return lambda device, ignored: dtype


def compiled(params, capturable):
    function = torch.compile(newton_schulz.plain, dynamic=False, fullgraph=True)
    return alone(function, dtype=torch.float16)(params, capturable)


def kernels_of(package, make, work, dtype):
    """A row for the kernels of a package."""
    return Variant(
        "newton-schulz", make, needs=package, flat=True, work=work, arithmetic=always(dtype)
    )


def as_we_choose(device, dtype):
    return working_dtype(torch.device(device), dtype)


OURS_MUON = "emanest Muon + EMA-Nesterov"
OURS_MUON_ALONE = "emanest Muon"
OURS_MIXED = "emanest Muon and AdamW + EMA-Nesterov"
OURS_MIXED_ALONE = "emanest Muon and AdamW"
OURS_AURORA = "emanest Aurora"
OURS_MUON_12 = "emanest Muon, 12 simple steps"
OURS_NS = "emanest orthogonalize"
TORCH_MUON = "torch Muon"
MUON_32 = "torch Muon's operations in float32"
TWO_PHASE_MIXED = "two-phase around torch Muon and fused AdamW"
PYTORCH_OPTIMIZER_MUON = "pytorch_optimizer Muon"
PYTORCH_OPTIMIZER_GRAM_MUON = "pytorch_optimizer Muon in Gram form"
PLAIN_32 = "torch Newton-Schulz in float32"
PLAIN_16 = "torch Newton-Schulz in float16"
PLAIN_B16 = "torch Newton-Schulz in bfloat16"
COMPILED_16 = "torch.compile of Newton-Schulz in float16"
GRAM_32 = "torch Gram Newton-Schulz in float32"
GRAM_16 = "torch Gram Newton-Schulz in float16"
DION = "dion's kernels"
EMERGING = "Emerging-Optimizers' batched syrk"
GRAM_NEWTON_SCHULZ = "gram_newton_schulz"

# a symmetric product needs half the operations, and no more than that is useful
_OURS = {"own": True, "work": Work(None, 0.5), "arithmetic": as_we_choose}
_TORCH_MUON = {"work": Work("standard"), "arithmetic": always(torch.bfloat16)}
_MIXED = {"own": True, "work": Work(None, 0.5, hidden), "arithmetic": as_we_choose}
_PYTORCH_OPTIMIZER = {"needs": "pytorch_optimizer", "spoils": True}

# on CPUs, torch's norm of 2 million float32 entries is off by 2e-4
_NORM = 4

VARIANTS = {
    OURS_MUON: Variant("ema muon", emanest_muon(EMA), **_OURS),
    OURS_MUON_ALONE: Variant("muon", emanest_muon(None), **_OURS),
    TORCH_MUON: Variant(
        "muon", lambda params, capturable: plain(torch_muon(params), params), **_TORCH_MUON
    ),
    MUON_32: Variant(
        "muon",
        lambda params, capturable: plain(exact_muon(params), params),
        slack=_NORM,
        work=Work("standard"),
    ),
    PYTORCH_OPTIMIZER_MUON: Variant(
        "muon", pytorch_optimizer_muon(), **_PYTORCH_OPTIMIZER, **_TORCH_MUON
    ),
    PYTORCH_OPTIMIZER_GRAM_MUON: Variant(
        "muon",
        pytorch_optimizer_muon(ns_method="gram_newton_schulz", ns_reset_steps=(3,)),
        **_PYTORCH_OPTIMIZER,
        work=Work("gram"),
        arithmetic=always(torch.float16),
    ),
    OURS_AURORA: Variant(
        "aurora", emanest_polar(emanest.Aurora), own=True, arithmetic=as_we_choose
    ),
    OURS_MUON_12: Variant(
        "muon of 12 steps", emanest_polar(emanest.Muon), own=True, arithmetic=as_we_choose
    ),
    OURS_MIXED: Variant("ema mixed", emanest_mixed(EMA), **_MIXED),
    OURS_MIXED_ALONE: Variant("mixed", emanest_mixed(None), **_MIXED),
    TWO_PHASE_MIXED: Variant(
        "ema mixed",
        two_phase(torch_mixed),
        work=Work("standard", matrices=hidden),
        arithmetic=always(torch.bfloat16),
    ),
    OURS_NS: Variant("newton-schulz", alone(emanest.orthogonalize), flat=True, **_OURS),
    PLAIN_32: alone_in(torch.float32, "standard", newton_schulz.plain)._replace(slack=_NORM),
    PLAIN_16: alone_in(torch.float16, "standard", newton_schulz.plain),
    PLAIN_B16: alone_in(torch.bfloat16, "standard", newton_schulz.plain),
    COMPILED_16: alone_in(torch.float16, "standard", newton_schulz.plain)._replace(make=compiled),
    GRAM_32: alone_in(torch.float32, "gram", newton_schulz.in_gram_form, restarts=())._replace(
        slack=_NORM
    ),
    GRAM_16: alone_in(torch.float16, "gram", newton_schulz.in_gram_form, restarts=(3,)),
    DION: kernels_of("dion", dion, Work("standard", 0.5), torch.bfloat16),
    EMERGING: kernels_of("emerging_optimizers", emerging, Work("standard", 0.5), torch.bfloat16),
    GRAM_NEWTON_SCHULZ: kernels_of(
        "gram_newton_schulz", gram_newton_schulz, Work("gram", 0.5), torch.float16
    ),
}

ORACLES = {
    "muon": lambda params, capturable: plain(exact_muon(params), params),
    "ema muon": two_phase(exact_muon),
    "aurora": emanest_polar(emanest.Aurora, backend="eager"),
    "muon of 12 steps": emanest_polar(emanest.Muon, backend="eager"),
    "mixed": lambda params, capturable: plain(exact_mixed(params), params),
    "ema mixed": two_phase(exact_mixed),
    "newton-schulz": alone(newton_schulz.plain, dtype=torch.float64),
}
