"""The cases, as data: which variants are timed together on what, and what must come out."""

from typing import NamedTuple

import torch

from .check import WARM_UP
from .models import MODELS
from .orthogonal import (
    COMPILED_16,
    DION,
    GRAM_16,
    GRAM_32,
    GRAM_NEWTON_SCHULZ,
    MUON_32,
    OURS_MIXED,
    OURS_MIXED_ALONE,
    OURS_MUON,
    OURS_MUON_ALONE,
    OURS_NS,
    PLAIN_16,
    PLAIN_32,
    PLAIN_B16,
    PYTORCH_OPTIMIZER_MUON,
    TORCH_MUON,
    TWO_PHASE_MIXED,
)
from .peers import (
    COMPILED,
    COMPILED_ALONE,
    EVAL,
    FOREACH,
    FUSED,
    OPTIMI,
    OURS,
    OURS_ALONE,
    OURS_LOOKAHEAD,
    OURS_SCHEDULE_FREE,
    OURS_SGD,
    OURS_WRAP,
    PYTORCH_OPTIMIZER_LOOKAHEAD,
    PYTORCH_OPTIMIZER_SCHEDULE_FREE,
    SCHEDULEFREE,
    SYNC,
    TRAIN,
    TWO_PHASE,
    TWO_PHASE_16,
    TWO_PHASE_FOREACH,
    TWO_PHASE_IDLE,
    TWO_PHASE_MASTER,
    TWO_PHASE_SGD,
    WRAP_EVAL,
    WRAP_TRAIN,
)


class Claim(NamedTuple):
    """A number of the report, with the values that it must and should reach."""

    quantity: str  # a row of report.QUANTITIES
    peer: str | None = None
    must: float | None = None
    stretch: float | None = None


class Case(NamedTuple):
    """Variants that are timed in turn, on copies of the same parameters."""

    name: str
    device: str
    model: str
    ours: str
    peers: tuple[str, ...]
    claims: tuple[Claim, ...]
    dtype: torch.dtype = torch.float32
    steps: int = 1  # per timed call: a cycle of methods that have one, or a burst
    captured: bool = False  # replays of a CUDA graph
    warm_up: int = WARM_UP  # calls before, at least 2
    cold: bool = True  # the caches hold something else when a call begins
    sigma: float = 0.02  # of the parameters, when timing starts; gradients have 1
    spread: float = 1.0  # of gradients: sigma of the last column over that of the first
    full_size: bool = False  # errors are found at full size too

    @property
    def shapes(self):
        """Shapes of the model."""
        return MODELS[self.model]

    @property
    def variants(self):
        """Names of all variants."""
        return (self.ours, *self.peers)


def speedup(peer, must=None, stretch=None):
    """Time of a peer over ours."""
    return Claim("speedup", peer, must, stretch)


def cost(peer, must=None, stretch=None):
    """Our time over a peer's that does less."""
    return Claim("cost", peer, must, stretch)


def of_ours(peer, must=None, stretch=None):
    """What share of our time, in %, a peer that does less does not need."""
    return Claim("lookahead", peer, must, stretch)


def newton_schulz(name, device, model, peers, claims):
    """A case of Newton-Schulz alone, on matrices as gradients are: some columns matter little."""
    # a function: from zero, x is what it returns
    more = {"sigma": 0.0, "spread": SPREAD, "full_size": True, "warm_up": 2}
    return Case(name, device, model, OURS_NS, peers, claims, **more)


def newton_schulz_on_gpu(model, cublas=(), dion=(), gram=()):
    """The same against all that there is for GPUs; (must, stretch) for three of them."""
    return newton_schulz(
        f"newton-schulz {model}",
        "cuda",
        model,
        (PLAIN_16, PLAIN_B16, COMPILED_16, GRAM_16, DION, GRAM_NEWTON_SCHULZ),
        (
            speedup(PLAIN_16, *cublas),
            speedup(PLAIN_B16),
            speedup(COMPILED_16),
            speedup(GRAM_16),
            speedup(DION, *dion),
            speedup(GRAM_NEWTON_SCHULZ, *gram),
        ),
    )


SPREAD = 1e-2
MEMORY = (Claim("state", OURS_ALONE, 4, 4), Claim("transient", None, 0, 0))
FUSED_FLOOR = 36 / 28  # of bytes: EMA-Nesterov AdamW over AdamW

CPU = (
    Case(
        *("ema adamw", "cpu", "GPT-2 124M", OURS),
        (TWO_PHASE, TWO_PHASE_FOREACH, COMPILED, FUSED),
        (
            speedup(TWO_PHASE, 3.5, 4.5),
            speedup(TWO_PHASE_FOREACH),
            speedup(COMPILED, 0.95, 1.0),
            cost(FUSED, 1.40, round(FUSED_FLOOR, 2)),
        ),
    ),
    Case(
        *("wrapper alone", "cpu", "GPT-2 124M", OURS_WRAP),
        (TWO_PHASE_IDLE,),
        (speedup(TWO_PHASE_IDLE, 4, 6),),
    ),
    Case(
        *("many small", "cpu", "1000 tiny", OURS),
        (FUSED, FOREACH, TWO_PHASE),
        (speedup(FUSED, 5, 10), speedup(FOREACH), speedup(TWO_PHASE)),
        # all of it fits into the caches, where steps in a row find it: what is left is host time
        steps=20,
        cold=False,
    ),
    Case(
        *("many small, cold", "cpu", "1000 tiny", OURS),
        (FUSED, FOREACH, TWO_PHASE),
        (speedup(FUSED), speedup(FOREACH), speedup(TWO_PHASE)),
    ),
    Case(
        *("call of step()", "cpu", "150 of 16", OURS),
        (OURS_ALONE, FUSED, FOREACH),
        (
            Claim("host"),
            *(Claim("host of", peer) for peer in (OURS_ALONE, FUSED, FOREACH)),
            speedup(FUSED),
            speedup(FOREACH),
        ),
        steps=20,
        cold=False,
    ),
    Case(
        *("call of train(), eval()", "cpu", "150 of 16", TRAIN),
        (EVAL, WRAP_TRAIN, WRAP_EVAL),
        (
            Claim("host", None, 2),
            *(Claim("host of", name, 2) for name in (EVAL, WRAP_TRAIN, WRAP_EVAL)),
        ),
        steps=1000,
        cold=False,
    ),
    Case(
        *("adamw", "cpu", "GPT-2 124M", OURS_ALONE),
        (FUSED, FOREACH, COMPILED_ALONE, OPTIMI),
        (cost(FUSED, 1.05, 0.95), speedup(FOREACH), speedup(COMPILED_ALONE), speedup(OPTIMI)),
    ),
    Case(
        *("ema sgd", "cpu", "GPT-2 124M", OURS_SGD),
        (TWO_PHASE_SGD,),
        (speedup(TWO_PHASE_SGD, 3, 4),),
    ),
    Case("memory", "cpu", "Llama 60M", OURS, (OURS_ALONE,), MEMORY),
    Case(
        *("schedule-free", "cpu", "Llama 60M", OURS_SCHEDULE_FREE),
        (SCHEDULEFREE, PYTORCH_OPTIMIZER_SCHEDULE_FREE),
        (speedup(SCHEDULEFREE), speedup(PYTORCH_OPTIMIZER_SCHEDULE_FREE)),
    ),
    Case(
        *("lookahead", "cpu", "Llama 60M", OURS_LOOKAHEAD),
        (PYTORCH_OPTIMIZER_LOOKAHEAD,),
        (speedup(PYTORCH_OPTIMIZER_LOOKAHEAD),),
        steps=SYNC["every"],
    ),
    Case(
        *("muon", "cpu", "two GPT-2 blocks", OURS_MUON),
        (TORCH_MUON,),
        (speedup(TORCH_MUON, 4, 7), Claim("accuracy", TORCH_MUON, 100, 1000)),
        warm_up=2,
        spread=SPREAD,
        full_size=True,
    ),
    # beside torch's bfloat16, which takes minutes on some CPUs, there would be few rounds
    Case(
        *("muon in float32", "cpu", "two GPT-2 blocks", OURS_MUON),
        (MUON_32, OURS_MUON_ALONE),
        (speedup(MUON_32), of_ours(OURS_MUON_ALONE, 2)),
        warm_up=2,
        spread=SPREAD,
        full_size=True,
    ),
    newton_schulz(
        *("newton-schulz wide", "cpu", "768x3072", (PLAIN_32, GRAM_32, PLAIN_B16)),
        (speedup(PLAIN_32, 1.6, 2.4), speedup(GRAM_32), speedup(PLAIN_B16)),
    ),
    newton_schulz(
        *("newton-schulz tall", "cpu", "3072x768", (PLAIN_32, GRAM_32, PLAIN_B16)),
        (speedup(PLAIN_32, 1.6, 2.4), speedup(GRAM_32), speedup(PLAIN_B16)),
    ),
)

# cases of 1.3 billion parameters come in parts: an 80 GB device holds two or three variants
CUDA = (
    Case(
        *("ema adamw small", "cuda", "GPT-2 124M", OURS),
        (TWO_PHASE, TWO_PHASE_FOREACH, COMPILED, FUSED),
        (
            speedup(TWO_PHASE, 3.0, 3.5),
            speedup(TWO_PHASE_FOREACH),
            speedup(COMPILED, 1.0, 1.0),
            cost(FUSED),
        ),
    ),
    Case(
        *("ema adamw large", "cuda", "Llama 1.3B", OURS),
        (TWO_PHASE, FUSED),
        (speedup(TWO_PHASE, 1.9, 2.1), cost(FUSED), Claim("share", None, 0.88)),
    ),
    Case(
        *("ema adamw large, compiled", "cuda", "Llama 1.3B", OURS),
        (COMPILED,),
        (speedup(COMPILED, 1.0, 1.0),),
    ),
    Case(
        *("ema adamw bf16", "cuda", "Llama 1.3B", OURS),
        (TWO_PHASE_MASTER, TWO_PHASE_16),
        (speedup(TWO_PHASE_MASTER, 1.9, 2.2), speedup(TWO_PHASE_16)),
        torch.bfloat16,
    ),
    Case(
        *("adamw large", "cuda", "Llama 1.3B", OURS_ALONE),
        (FUSED, OPTIMI),
        (speedup(FUSED, 1.10, 1.25), speedup(OPTIMI)),
    ),
    Case(
        *("adamw large, compiled", "cuda", "Llama 1.3B", OURS_ALONE),
        (COMPILED_ALONE,),
        (speedup(COMPILED_ALONE, 1.0, 1.0),),
    ),
    Case(
        *("many small", "cuda", "4000 small", OURS),
        (FUSED, FOREACH, OPTIMI, TWO_PHASE),
        (speedup(FUSED, 2, 2), speedup(FOREACH), speedup(OPTIMI), speedup(TWO_PHASE, 10, 10)),
    ),
    Case(
        *("wrapper alone, small", "cuda", "GPT-2 124M", OURS_WRAP),
        (TWO_PHASE_IDLE,),
        (speedup(TWO_PHASE_IDLE, 4, 6),),
    ),
    Case(
        *("wrapper alone, large", "cuda", "Llama 1.3B", OURS_WRAP),
        (TWO_PHASE_IDLE,),
        (speedup(TWO_PHASE_IDLE, 1.7, 1.8),),
    ),
    Case(
        *("graph replay", "cuda", "GPT-2 124M", OURS),
        (FUSED, TWO_PHASE, COMPILED),
        (Claim("host", None, 30), cost(FUSED), speedup(TWO_PHASE), speedup(COMPILED)),
        captured=True,
    ),
    Case("memory", "cuda", "GPT-2 124M", OURS, (OURS_ALONE,), MEMORY),
    newton_schulz_on_gpu("768x768 x12", (1.2, 1.4), (1.3, 1.4), (1.1,)),
    newton_schulz_on_gpu("768x768 x48", (1.2, 1.4), (1.3, 1.4), (1.1,)),
    newton_schulz_on_gpu("768x3072 x24", (2, 2.4), (1.6,), (1.2,)),
    newton_schulz_on_gpu("3072x768 x24", (2, 2.4), (1.6,), (1.2,)),
    newton_schulz_on_gpu("2048x8192", (), (1.5,), (1.0,)),
    newton_schulz_on_gpu("2048x8192 x24", (), (1.5,), (1.0,)),
    newton_schulz_on_gpu("4096x4096", (1.3, 1.7), (1.2, 1.7), (1.1,)),
    newton_schulz_on_gpu("4096x11008", (1.5, 2.1), (1.2, 1.7), (1.1,)),
    # the one place where kernels in CuTe should stay level
    newton_schulz_on_gpu("8192x28672", (), (1.6,), (0.95,)),
    Case(
        *("muon", "cuda", "GPT-2 matrices", OURS_MUON),
        (TORCH_MUON, OURS_MUON_ALONE, PYTORCH_OPTIMIZER_MUON),
        (
            speedup(TORCH_MUON, 5, 7),
            of_ours(OURS_MUON_ALONE, 2),
            speedup(PYTORCH_OPTIMIZER_MUON, 1.4),
        ),
        spread=SPREAD,
        full_size=True,
    ),
    Case(
        *("muon replay", "cuda", "GPT-2 matrices", OURS_MUON),
        (TORCH_MUON, OURS_MUON_ALONE),
        (Claim("host", None, 30), speedup(TORCH_MUON), of_ours(OURS_MUON_ALONE, 2)),
        captured=True,
        spread=SPREAD,
        full_size=True,
    ),
    Case(
        *("muon mixed", "cuda", "Llama 1.3B", OURS_MIXED),
        (TWO_PHASE_MIXED, OURS_MIXED_ALONE),
        (speedup(TWO_PHASE_MIXED, 3, 4), of_ours(OURS_MIXED_ALONE, 2)),
        spread=SPREAD,
        full_size=True,
    ),
)

CASES = (*CPU, *CUDA)
