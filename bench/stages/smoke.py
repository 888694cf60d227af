# SPDX-License-Identifier: MIT
"""Does it work at all: every back end, graphs, streams, dtypes and odd sizes, in seconds."""

import contextlib
import functools
import os
import time
import warnings

import torch

import emanest
from emanest import backends, doctor

from . import Found

EMA = emanest.EMANesterov(0.5, 0.99)
# a matrix that tiles fill, odd ones in both directions, and a vector
SHAPES = [(256, 256), (200, 461), (461, 200), (77,)]


def parameters(shapes, dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(0)
    made = [torch.randn(s, generator=generator, device="cuda").to(dtype) for s in shapes]
    params = [torch.nn.Parameter(t) for t in made]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, device="cuda").to(dtype)
    return params


@torch.no_grad()
def distance(params, others, start):
    """Of two runs, relative to how far they went."""
    pairs = list(zip(params, others, start, strict=True))
    apart = sum(float((p.double() - q.double()).square().sum()) for p, q, _ in pairs)
    moved = sum(float((q.double() - s.double()).square().sum()) for _, q, s in pairs)
    return (apart / moved) ** 0.5


def compared(make, shapes, bound, dtype=torch.float32, steps=4, run=None):
    """Steps of the back end in use against the same ones of eager; a line."""
    params, others = parameters(shapes, dtype), parameters(shapes, dtype)
    start = [p.detach().clone() for p in params]
    (run or repeated)(make(params), steps)
    with eagerly():
        repeated(make(others), steps)
    error = distance(params, others, start)
    if not error <= bound:
        raise AssertionError(f"off by {error:.1e}, allowed {bound:.0e}")
    return f"off by {error:.1e}"


@contextlib.contextmanager
def eagerly():
    """With the eager back end."""
    asked = os.environ.pop("EMANEST_BACKEND", None)
    os.environ["EMANEST_BACKEND"] = "eager"
    try:
        yield
    finally:
        del os.environ["EMANEST_BACKEND"]
        if asked is not None:
            os.environ["EMANEST_BACKEND"] = asked


def repeated(optimizer, steps):
    for _ in range(steps):
        optimizer.step()


def replayed(optimizer, steps):
    """All steps but two are replays of one that was captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        repeated(optimizer, 2)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(steps - 2):
        graph.replay()


def in_turns(optimizer, steps):
    """Each step on another stream than the last."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    before = torch.cuda.current_stream()
    for t in range(steps):
        stream = streams[t % 2]
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            optimizer.step()
        before = stream
    torch.cuda.current_stream().wait_stream(before)


def by_default(optimizer, steps):
    """While new tensors are made on the GPU."""
    with torch.device("cuda"):
        repeated(optimizer, steps)


def adamw(params, capturable=False):
    return emanest.AdamW(params, lookahead=EMA, capturable=capturable)


def muon(params, capturable=False):
    groups = [
        {"params": [p for p in params if p.dim() > 1]},
        {"params": [p for p in params if p.dim() < 2], "base": "adamw"},
    ]
    groups = [group for group in groups if group["params"]]
    return emanest.Muon(groups, lookahead=EMA, capturable=capturable)


def wrapped(params):
    return emanest.Wrap(torch.optim.AdamW(params), EMA)


captured_adamw, captured_muon = (functools.partial(make, capturable=True) for make in (adamw, muon))


# what is looked at -> how; matrices are orthogonalised in float16, by kernels that round elsewhere:
# of an update that is off by a thousandth, a parameter in bfloat16 is off by its root, for there a
# thousandth of the updates lie where the parameter is rounded up instead of down
CHECKS = {
    "AdamW": lambda: compared(adamw, SHAPES, 1e-6),
    "AdamW, graph": lambda: compared(captured_adamw, SHAPES, 1e-6, run=replayed),
    "Muon": lambda: compared(muon, SHAPES, 1e-2),
    "Muon, graph": lambda: compared(captured_muon, SHAPES, 1e-2, run=replayed),
    "Muon, bfloat16": lambda: compared(muon, SHAPES, 5e-2, torch.bfloat16),
    "AdamW, bfloat16": lambda: compared(adamw, SHAPES, 1e-6, torch.bfloat16),
    "AdamW, two streams": lambda: compared(adamw, SHAPES, 1e-6, run=in_turns),
    "AdamW, default device": lambda: compared(adamw, SHAPES, 1e-6, run=by_default),
    "Wrap": lambda: compared(wrapped, SHAPES, 1e-6),
}
# enough to see whether this script works
BRIEF = ("AdamW, graph",)


def run(settings):
    lines, data = [], {}
    devices = {} if settings.brief else doctor.report()["devices"]
    for device, row in devices.items():
        words = [
            f"{n} {'works' if b['works'] else b['reason']}" for n, b in row["backends"].items()
        ]
        lines.append(f"{device}: {'; '.join(words)}")
    data["doctor"] = devices
    failed = []
    for name, check in CHECKS.items():
        if settings.brief and name not in BRIEF:
            continue
        before, start = backends.pick("cuda"), time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                words = check()
            if backends.pick("cuda") is not before:
                raise AssertionError(f"another back end took over: {backends.pick('cuda')}")
        except Exception as error:
            words = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
            failed.append(f"{name}: {words}")
        data[name] = words
        print(f"{name}: {words}, {time.monotonic() - start:.1f} s", flush=True)
    good = len(data) - 1 - len(failed)
    return Found([*failed, f"{good} checks passed", *lines], data, not failed)
