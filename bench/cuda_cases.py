# SPDX-License-Identifier: MIT
"""The cases of a GPU, the most valuable first: what a run cannot finish is what matters least.

Must and stretch hold on an H100 and an H200 alike. Where a claim does not say which time it is
about, it is about a step on an idle device, the host's part included. What a 1.3 billion model
needs of memory makes cases of it come in parts: an 80 GB device holds two or three variants.
"""

import torch

from .case import FUNCTION, MATRICES, Case, Claim, cost, memory, of_ours, speedup
from .orthogonal import (
    COMPILED_16,
    DION,
    EMERGING,
    GRAM_16,
    GRAM_NEWTON_SCHULZ,
    OURS_MIXED,
    OURS_MIXED_ALONE,
    OURS_MUON,
    OURS_MUON_ALONE,
    OURS_NS,
    PLAIN_16,
    PLAIN_B16,
    PYTORCH_OPTIMIZER_GRAM_MUON,
    PYTORCH_OPTIMIZER_MUON,
    TORCH_MUON,
    TWO_PHASE_MIXED,
)
from .peers import (
    COMPILED,
    COMPILED_ALONE,
    FOREACH,
    FUSED,
    OPTIMI,
    OURS,
    OURS_ALONE,
    OURS_WRAP,
    TWO_PHASE,
    TWO_PHASE_16,
    TWO_PHASE_FOREACH,
    TWO_PHASE_IDLE,
    TWO_PHASE_MASTER,
)

# a replay of a large model is no other than a step that waits in the queue, and needs a second one
EAGER = {"timings": ("queued", "idle")}
ALL = {"timings": ("queued", "idle", "replayed")}
SHARE = Claim("share", None, 0.90, 0.94, "queued")
HOST = Claim("host", None, 30, 15, "replayed")


def compiled(name, model, ours, peer, timings=EAGER):
    """A step beside what the compiler makes of the flat formula, which takes its time."""
    bounds = {"queued": (1.0, 1.03)}
    claims = tuple(speedup(peer, *bounds.get(t, (None, None)), t) for t in timings["timings"])
    return Case(name, "cuda", model, ours, (peer,), claims, **timings)


def newton_schulz(model, cublas=(), triton=(), gram=()):
    """Newton-Schulz alone, replayed: (must, stretch) for cuBLAS, Triton and the Gram form."""
    bounds = {
        PLAIN_16: cublas,
        PLAIN_B16: (),
        DION: triton,
        EMERGING: triton,
        GRAM_16: (),
        GRAM_NEWTON_SCHULZ: gram,
    }

    def claim(peer, must=None, stretch=None):
        return speedup(peer, must, stretch, "replayed")

    claims = tuple(claim(peer, *each) for peer, each in bounds.items())
    name = f"newton-schulz {model}"
    return Case(name, "cuda", model, OURS_NS, tuple(bounds), claims, **ALL, **FUNCTION)


CUDA = (
    Case(
        *("ema adamw small", "cuda", "GPT-2 124M", OURS),
        (TWO_PHASE, TWO_PHASE_FOREACH, FUSED),
        (
            speedup(TWO_PHASE, 2.5, 3.0),
            speedup(TWO_PHASE, timing="queued"),
            speedup(TWO_PHASE, timing="replayed"),
            speedup(TWO_PHASE_FOREACH),
            cost(FUSED),
            cost(FUSED, timing="replayed"),
            HOST,
        ),
        **ALL,
    ),
    Case(
        *("ema adamw large", "cuda", "Llama 1.3B", OURS),
        (TWO_PHASE, FUSED),
        (speedup(TWO_PHASE, 2.0, 2.1), cost(FUSED), SHARE),
        **EAGER,
    ),
    Case(
        *("ema adamw bf16", "cuda", "Llama 1.3B", OURS),
        (TWO_PHASE_MASTER, TWO_PHASE_16),
        (speedup(TWO_PHASE_MASTER, 2.5, 2.9), speedup(TWO_PHASE_16), SHARE),
        torch.bfloat16,
        **EAGER,
    ),
    Case(
        *("adamw large", "cuda", "Llama 1.3B", OURS_ALONE),
        (FUSED, OPTIMI),
        (speedup(FUSED, 1.05, 1.15), speedup(FUSED, timing="queued"), speedup(OPTIMI)),
        **EAGER,
    ),
    Case(
        *("many small", "cuda", "4000 small", OURS),
        (FUSED, FOREACH, OPTIMI, TWO_PHASE),
        (speedup(FUSED, 4, 6), speedup(TWO_PHASE, 20, 30), speedup(FOREACH), speedup(OPTIMI)),
        **EAGER,
    ),
    Case(
        *("wrapper alone, small", "cuda", "GPT-2 124M", OURS_WRAP),
        (TWO_PHASE_IDLE,),
        (speedup(TWO_PHASE_IDLE, 2.5, 3.5),),
        **EAGER,
    ),
    Case(
        *("wrapper alone, large", "cuda", "Llama 1.3B", OURS_WRAP),
        (TWO_PHASE_IDLE,),
        (speedup(TWO_PHASE_IDLE, 1.8, 1.9),),
        **EAGER,
    ),
    compiled("ema adamw small, compiled", "GPT-2 124M", OURS, COMPILED, ALL),
    newton_schulz("768x768 x48", (1.3, 1.4), (1.2, 1.4), (1.1,)),
    newton_schulz("768x3072 x24", (2.0, 2.4), (1.6, 1.9), (1.2,)),
    newton_schulz("2048x8192 x24", (1.7, 1.9), (1.5, 1.7), (1.0,)),
    newton_schulz("4096x4096", (1.25, 1.4), (1.1, 1.3), (1.1,)),
    newton_schulz("4096x11008", (1.65, 2.0), (1.4, 1.7), (1.1,)),
    Case(
        *("muon", "cuda", "GPT-2 matrices", OURS_MUON),
        (TORCH_MUON, PYTORCH_OPTIMIZER_MUON, PYTORCH_OPTIMIZER_GRAM_MUON, OURS_MUON_ALONE),
        (
            speedup(TORCH_MUON, 4, 6),
            speedup(TORCH_MUON, 2.2, 2.7, "replayed"),
            *(
                speedup(peer, 1.2, 1.5, timing)
                for peer in (PYTORCH_OPTIMIZER_MUON, PYTORCH_OPTIMIZER_GRAM_MUON)
                for timing in ("idle", "replayed")
            ),
            of_ours(OURS_MUON_ALONE, 2, 1, "queued"),
            HOST,
        ),
        **ALL,
        **MATRICES,
    ),
    Case(
        *("muon mixed", "cuda", "Llama 1.3B", OURS_MIXED),
        (TWO_PHASE_MIXED, OURS_MIXED_ALONE),
        (speedup(TWO_PHASE_MIXED, 1.5, 1.9), of_ours(OURS_MIXED_ALONE, 2, 1, "queued")),
        **EAGER,
        **MATRICES,
    ),
    newton_schulz("768x768 x12", (1.2, 1.4), (1.3, 1.4), (1.1,)),
    newton_schulz("3072x768 x24", (2.0, 2.4), (1.6, 1.9), (1.2,)),
    newton_schulz("2048x8192", (), (1.5,), (1.0,)),
    # the one place where kernels in CuTe should stay level
    newton_schulz("8192x28672", (), (1.6,), (0.95,)),
    Case("memory", "cuda", "GPT-2 124M", OURS, (OURS_ALONE,), memory(OURS_ALONE)),
    compiled("ema adamw large, compiled", "Llama 1.3B", OURS, COMPILED),
    compiled("adamw large, compiled", "Llama 1.3B", OURS_ALONE, COMPILED_ALONE),
    Case(
        *("newton-schulz 768x768 x48, compiled", "cuda", "768x768 x48", OURS_NS),
        (COMPILED_16,),
        (speedup(COMPILED_16, timing="queued"), speedup(COMPILED_16, timing="replayed")),
        **ALL,
        **FUNCTION,
    ),
)
