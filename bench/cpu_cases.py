# SPDX-License-Identifier: MIT
"""The cases of a CPU."""

from .case import FUNCTION, MATRICES, SPREAD, Case, Claim, cost, memory, of_ours, speedup
from .eigenbasis import (
    OURS_SOAP,
    OURS_SOAP_QR,
    PARTS,
    PYTORCH_OPTIMIZER_SOAP,
    PYTORCH_OPTIMIZER_SOAP_QR,
    square,
)
from .models import MODELS
from .orthogonal import (
    GRAM_32,
    MUON_32,
    OURS_AURORA,
    OURS_MUON,
    OURS_MUON_12,
    OURS_MUON_ALONE,
    OURS_NS,
    PLAIN_32,
    PLAIN_B16,
    TORCH_MUON,
    operations_of_aurora,
)
from .peers import (
    COMPILED,
    COMPILED_ALONE,
    EVAL,
    FOREACH,
    FUSED,
    FUSED_GROUPS,
    OPTIMI,
    OURS,
    OURS_ALONE,
    OURS_GROUPS,
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
    TWO_PHASE_FOREACH,
    TWO_PHASE_IDLE,
    TWO_PHASE_SGD,
    WRAP_EVAL,
    WRAP_TRAIN,
)

FUSED_FLOOR = 36 / 28  # of bytes: EMA-Nesterov AdamW over AdamW


def newton_schulz(name, model):
    """Newton-Schulz alone, on one matrix."""
    peers = (PLAIN_32, GRAM_32, PLAIN_B16)
    claims = (speedup(PLAIN_32, 1.6, 2.4), speedup(GRAM_32), speedup(PLAIN_B16))
    return Case(name, "cpu", model, OURS_NS, peers, claims, **FUNCTION)


AURORA = operations_of_aurora(MODELS["two GPT-2 blocks"])
# with columns of one size, singular values lie so close that rounding turns the bases
EIGENBASES = {"defined": square, "warm_up": 2, "spread": SPREAD}

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
        *("many groups", "cpu", "465 of 16", OURS_GROUPS),
        (FUSED_GROUPS,),
        (cost(FUSED_GROUPS, 1.2, 0.8),),
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
    Case("memory", "cpu", "Llama 60M", OURS, (OURS_ALONE,), memory(OURS_ALONE)),
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
        **MATRICES,
    ),
    # beside torch's bfloat16, which takes minutes on some CPUs, there would be few rounds
    Case(
        *("muon in float32", "cpu", "two GPT-2 blocks", OURS_MUON),
        (MUON_32, OURS_MUON_ALONE),
        (speedup(MUON_32), of_ours(OURS_MUON_ALONE, 2)),
        warm_up=2,
        **MATRICES,
    ),
    Case(
        *("aurora", "cpu", "two GPT-2 blocks", OURS_AURORA),
        (OURS_MUON_12,),
        # within 10 % of the operations
        (cost(OURS_MUON_12, round(1.1 * AURORA, 2), round(AURORA, 2)),),
        warm_up=2,
    ),
    Case(
        *("soap", "cpu", "two GPT-2 blocks", OURS_SOAP),
        (PYTORCH_OPTIMIZER_SOAP,),
        (speedup(PYTORCH_OPTIMIZER_SOAP, 1.4, 1.6),),
        **EIGENBASES,
    ),
    Case(
        *("soap with a QR", "cpu", "two GPT-2 blocks", OURS_SOAP_QR),
        (PARTS, PYTORCH_OPTIMIZER_SOAP_QR),
        (cost(PARTS, 1.05), speedup(PYTORCH_OPTIMIZER_SOAP_QR)),
        **EIGENBASES,
    ),
    newton_schulz("newton-schulz wide", "768x3072"),
    newton_schulz("newton-schulz tall", "3072x768"),
)
