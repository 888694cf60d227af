# SPDX-License-Identifier: MIT
"""Write ``checkpoints.pt.gz``: what optimizers of an older version saved, and how they went on.

    PYTHONPATH=. python tests/data/write_checkpoints.py

The file is of commit bc10595, and is read by ``test_old_checkpoints``: written anew, it would be no
older than what it tests. Every case says how its optimizer is made, so that the reader needs no
table of its own. Factors whose powers are exact (1/2, 3/4) leave nothing to a processor's ``pow``.
"""

import copy
import gzip
import io
import os
from pathlib import Path

import torch
from torch import nn

import emanest

FILE = Path(__file__).with_name("checkpoints.pt.gz")
SHAPES = [(3, 4), (4, 2), (5,)]
BEFORE, AFTER = 4, 5

METHODS = {
    "none": None,
    "ema": ("EMANesterov", {"stepsize": 0.5, "decay": 0.75}),
    "ema window": (
        "EMANesterov",
        {"stepsize": -0.75, "decay": 0.5, "warmup": 2, "rest": 6, "init": "debias"},
    ),
    "nag": ("NAG", {"momentum": 0.75}),
    "lookahead": ("Lookahead", {"every": 3, "alpha": 0.5}),
    "long horizon": ("LongHorizon", {"every": 4, "stepsize": 0.5}),
    "snoo": ("SNOO", {"every": 3, "lr": 0.7, "momentum": 0.5}),
    "gpa": ("GPA", {"mu_x": 0.9, "mu_y": 0.7}),
    "schedule free": ("ScheduleFree", {"momentum": 0.9}),
    "nala": ("NALA", {"every": 3, "lr": 0.01, "mu": -0.4}),
}
FEW = ("none", "ema", "gpa")

ADAMW = {"lr": 0.05, "betas": (0.5, 0.75), "weight_decay": 0.1}
STILL = {**ADAMW, "betas": (0.0, 0.75)}
# the iteration's dtype depends on the processor, unless it is said
MUON = {"lr": 0.05, "momentum": 0.75, "ns_dtype": "float32"}
MATRICES, ALL = [[0, 1]], [[0, 1, 2]]
REST = {"base": "adamw", "betas": (0.5, 0.75)}

# base -> class, indices of each group's parameters, options, entries of groups, class in a Wrap
BASES = {
    "adamw": ("AdamW", ALL, ADAMW, [{}], None),
    "adamw still": ("AdamW", ALL, STILL, [{}], None),
    "amsgrad": ("AdamW", ALL, {**ADAMW, "amsgrad": True}, [{}], None),
    "sgd": ("SGD", ALL, {"lr": 0.05, "weight_decay": 0.1}, [{}], None),
    "momentum": ("SGD", ALL, {"lr": 0.05, "momentum": 0.75, "dampening": 0.25}, [{}], None),
    "nesterov": ("SGD", ALL, {"lr": 0.05, "momentum": 0.75, "nesterov": True}, [{}], None),
    "muon": ("Muon", MATRICES, MUON, [{}], None),
    "normuon": ("NorMuon", MATRICES, MUON, [{}], None),
    "muon+adamw": ("Muon", [[0, 1], [2]], MUON, [{}, REST], None),
    "wrapped adamw": ("Wrap", ALL, ADAMW, [{}], "AdamW"),
    "wrapped sgd": ("Wrap", ALL, {"lr": 0.05, "momentum": 0.75}, [{}], "SGD"),
}
CASES = [
    *[("adamw", method) for method in METHODS if method != "schedule free"],
    *[("adamw still", "schedule free"), ("sgd", "schedule free")],
    *[(b, m) for b in BASES for m in FEW if not b.startswith(("adamw", "wrap"))],
    *[("wrapped adamw", m) for m in ("ema", "nag", "lookahead", "gpa", "nala")],
    *[("wrapped sgd", m) for m in ("ema", "long horizon", "snoo")],
]


def made(case, params, **options):
    """The optimizer that a case describes, over some of the parameters."""
    groups = [
        {"params": [params[i] for i in indices], **entries}
        for indices, entries in zip(case["indices"], case["entries"], strict=True)
    ]
    method = None
    if case["method"] is not None:
        name, settings = case["method"]
        method = getattr(emanest, name)(**settings)
    options = {**case["options"], **options}
    if case["inner"] is None:
        return getattr(emanest, case["class"])(groups, lookahead=method, **options)
    return emanest.Wrap(getattr(torch.optim, case["inner"])(groups, **options), method)


def go_on(optimizer, params, gradients, missing=()):
    """Take steps; of the pairs (step, parameter) that are missing, the gradient is None."""
    for t, row in enumerate(gradients):
        for i, (p, g) in enumerate(zip(params, row, strict=True)):
            p.grad = None if (t, i) in missing else g.clone()
        if t == 2:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        optimizer.step()


def values(params):
    return [p.detach().clone() for p in params]


def written(base, method, first, gradients):
    cls, indices, options, entries, inner = BASES[base]
    case = {
        **{"class": cls, "indices": indices, "options": options, "entries": entries},
        **{"method": METHODS[method], "inner": inner},
    }
    params = [nn.Parameter(v.clone()) for v in first]
    optimizer = made(case, params)
    go_on(optimizer, params, gradients[:BEFORE], missing={(1, 0)})
    for mode in ("train", "eval"):
        getattr(optimizer, mode)()
        case[mode] = {"params": values(params), "state": copy.deepcopy(optimizer.state_dict())}
    optimizer.train()
    go_on(optimizer, params, gradients[BEFORE:])
    case["after"] = {"params": values(params), "state": optimizer.state_dict()}
    # each by itself: torch.save writes memory that is shared once
    return copy.deepcopy(case)


def main():
    os.environ["EMANEST_BACKEND"] = "cpp"
    generator = torch.Generator().manual_seed(0)
    first, *gradients = [
        [torch.randn(shape, generator=generator) for shape in SHAPES]
        for _ in range(1 + BEFORE + AFTER)
    ]
    cases = {f"{b} / {m}": written(b, m, first, gradients) for b, m in CASES}
    file = io.BytesIO()
    torch.save({"gradients": gradients[BEFORE:], "cases": cases}, file)
    # what torch.save puts around each of thousands of small tensors is nearly all of the file
    FILE.write_bytes(gzip.compress(file.getvalue(), mtime=0))
    print(f"{len(cases)} cases, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
