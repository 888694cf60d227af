# SPDX-License-Identifier: MIT
"""The Llama runs of EMA-Nesterov's paper (arXiv:2605.25395) at its size, for those with GPUs.

Settings are those of the published scripts. Data comes from ``python -m examples.lab.data c4``,
with ``--tokenizer`` one of at most 32,000 tokens (T5's spiece.model has as many), and as many
``--tokens`` as the steps take: 1.4B to 21B for figure 7 and the 1B model, 66B for the largest batch
of figure 9. From fewer, text comes again.
"""

from ..settings import merged
from .nanogpt import BETAS, pair, window
from .sweep import Experiment

# Llama: windows of 256 tokens, shares of a schedule with warm-up, flat part and decay
TOKENS = 256
LLAMA = {
    "data": {"name": "c4"},
    "validation": {"count": 640, "batch": 64, "context": TOKENS, "order": "sequential"},
    "schedule": {"name": "warmup_stable_decay"},
    "evaluations": 25,
    "autocast": "bfloat16",
    "lookahead": None,
}
# rows of a forward pass that 80 GB hold: in MiB a row and layer keeps 7, 10, 14 and 28 for the way
# back, and the logits 110
ROWS = {"60M": 256, "130M": 256, "350M": 64, "1B": 32}


def llama(size, steps, tokens, lr, stepsize, decay):
    """Muon with and without EMA-Nesterov; ``tokens`` of a batch, in thousands of 1,024."""
    batch = round(tokens * 1024 * 1024 / TOKENS)
    rest = {"lr": lr, "betas": BETAS, "eps": 1e-10, "weight_decay": 0.0}
    settings = merged(
        LLAMA,
        {
            "model": {"name": f"llama_{size.lower()}"},
            "feed": {"batch": batch, "context": TOKENS, "order": "sequential"},
            "micro": ROWS[size],
            "steps": steps,
            "optimizer": {"name": "muon", "lr": lr, "weight_decay": 0.0, "adamw": rest},
        },
    )
    lookahead = window(steps, round(0.3 * steps), round(0.8 * steps), stepsize, decay)
    label = f"Llama {size}, {steps:,} steps of {tokens:g}M tokens"
    return pair(label, settings, lookahead, at={"batch": batch, "steps": steps})


# lr: grows with the fourth root of the batch
FIGURE_7 = [
    *(
        ("60M", 2500, t, lr, 0.7, 0.99)
        for t, lr in zip((0.5, 1, 2, 4), (0.03, 0.0357, 0.0424, 0.0505), strict=True)
    ),
    *(
        ("130M", 2500, t, lr, 0.7, 0.99)
        for t, lr in zip((1, 2, 4, 8), (0.0424, 0.0505, 0.06, 0.0714), strict=True)
    ),
]
FIGURE_9 = [
    ("350M", 2500, t, lr, 0.5, 0.99)
    for t, lr in zip((3, 6, 12, 25), (0.03, 0.0357, 0.0424, 0.0505), strict=True)
]
# the lrs of 5,000 steps at 60M and 130M are not published: those of the nearest batch
TABLE_2 = [
    ("60M", 2500, 0.5, 0.03, 0.7, 0.99),
    ("60M", 2500, 4, 0.0505, 0.7, 0.99),
    ("60M", 5000, 0.25, 0.03, 0.7, 0.995),
    ("130M", 2500, 1, 0.0424, 0.7, 0.99),
    ("130M", 2500, 8, 0.0714, 0.7, 0.99),
    ("130M", 5000, 0.5, 0.0424, 0.5, 0.995),
    ("130M", 5000, 4, 0.06, 0.5, 0.995),
    ("350M", 2500, 3, 0.03, 0.5, 0.99),
    ("350M", 2500, 25, 0.0505, 0.5, 0.99),
    ("1B", 5000, 4, 0.05, 0.5, 0.999),
]


def of_llama(name, rows, question, source, size):
    arms = tuple(arm for row in rows for arm in llama(*row))
    return Experiment(name=name, question=question, arms=arms, source=source, size=size)


EXPERIMENTS = [
    of_llama(
        "figure_7",
        FIGURE_7,
        "Does the gain of EMA-Nesterov grow with the batch?",
        "figure 7",
        "8 GPUs of 80 GB",
    ),
    of_llama(
        "figure_9",
        FIGURE_9,
        "Does it at 350M parameters?",
        "figure 9",
        "64 GPUs of 80 GB",
    ),
    of_llama(
        "table_2",
        TABLE_2,
        "Does EMA-Nesterov help Llama from 60M to 1B parameters?",
        "table 2",
        "8 GPUs of 80 GB for 60M, 64 for 1B",
    ),
]
