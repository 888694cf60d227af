# SPDX-License-Identifier: MIT
"""What is trained on a GPU, and with what: settings of the lab's runs."""

from typing import NamedTuple

SEED = 0
# base -> lrs, a factor of 2 apart. AdamW: 6e-3 is the best of the lab's byte_lm at width 64, and
# that of matrices falls with the width, to 5e-4 at 768; GPT-3 of this size took 6e-4,
# EMA-Nesterov's authors 1e-3. Muon's updates have one spectral norm at any width: 0.02 as at width
# 64, and between 0.02 and 0.04 in the NanoGPT speed runs
LRS = {"adamw": (5e-4, 1e-3, 2e-3), "muon": (0.01, 0.02, 0.04)}
# lr of AdamW beside Muon, relative to Muon's
ADAMW_SHARE = 0.3


class Planned(NamedTuple):
    """A run: rows of ``BASES`` and ``METHODS``, and how often on the way it is evaluated."""

    base: str
    method: str
    lr: float
    steps: int
    evaluations: int

    def __str__(self):
        return f"{self.base} with {self.method} at lr {self.lr:g}, {self.steps} steps"

    @property
    def name(self):
        """Of the optimizer, in tables and figures."""
        return self.base if self.method == "none" else f"{self.base} + {self.method}"


class Sizes(NamedTuple):
    """Of the model, the batches and the runs."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    batch: int = 32
    context: int = 1024
    dtype: str | None = "bfloat16"  # of products
    std: float | None = 0.02  # of the weights at the start
    short: tuple[int, int] = (250, 2)  # steps, evaluations
    long: tuple[int, int] = (1000, 12)
    validation: tuple[int, int] = (8, 32)  # batches, windows
    corpus: int = 40 * 2**20  # bytes at most
    lrs: dict[str, tuple[float, ...]] = LRS
    compiler: str | None = "inductor"


# what stands in for a GPU is not understood by a compiler
SMALL = Sizes(
    *(1, 16, 4, 4, 8), short=(3, 1), long=(8, 4), validation=(1, 4), corpus=2**18, compiler=None
)
# without the kernels of Muon
BRIEF = SMALL._replace(short=(2, 1), long=(4, 2), lrs={"adamw": LRS["adamw"][:2]})


def adamw(lr):
    return {"name": "adamw", "lr": lr}


def muon(lr):
    rest = {"lr": ADAMW_SHARE * lr}
    return {"name": "muon", "lr": lr, "weight_decay": 0.01, "adamw": rest}


def ema_nesterov(steps):
    # the paper's stepsize and window; its decay of 0.99 suits runs of 2,500 steps and more
    warmup = steps // 4
    rest = max(warmup + 1, steps * 4 // 5)
    return {"name": "ema_nesterov", "stepsize": 0.5, "decay": 0.98, "warmup": warmup, "rest": rest}


BASES = {"adamw": adamw, "muon": muon}
# steps of the run -> its lookahead
METHODS = {"none": lambda steps: None, "ema-nesterov": ema_nesterov}


def settings_of(planned, sizes, folders=None):
    """The settings of a run of the lab.

    Args:
        folders: of the corpus; None: those of the running Python.
    """
    steps, context = planned.steps, {"context": sizes.context}
    model = {"name": "bytes", **context}
    model |= {name: getattr(sizes, name) for name in ("layers", "width", "heads", "std")}
    count, windows = sizes.validation
    # warm-up of 50 steps, or a tenth of a short run; the lr falls in the last quarter
    schedule = {"warmup": max(1, min(50, steps // 10)), "decay": max(1, steps // 4)}
    return {
        "data": {"name": "installed_python", "limit": sizes.corpus, "folders": folders},
        "model": model,
        "feed": {"batch": sizes.batch, **context},
        "validation": {"count": count, "batch": windows, **context},
        "optimizer": BASES[planned.base](planned.lr),
        "lookahead": METHODS[planned.method](steps),
        "schedule": {"name": "trapezoid", **schedule},
        "steps": steps,
        "evaluations": planned.evaluations,
        "seed": SEED,
        "autocast": sizes.dtype,
    }
