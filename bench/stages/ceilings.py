# SPDX-License-Identifier: MIT
"""What this GPU does at most: rates of copies and products, host time."""

import statistics
import time

import torch

from ..clocks import CLOCKS
from ..devices import capture
from . import Found

# elements of a copy, the side of a product, and how often each is timed
LARGE, SMALL = (2**29, 8192, 20), (2**16, 64, 3)


def seconds(call, repeats, timing="queued"):
    """The median of some calls, in seconds."""
    for _ in range(2):
        call()
    clock = CLOCKS["cuda"][timing]
    return statistics.median(clock(call, 1e-3)[0] for _ in range(repeats))


def host(call, repeats=200):
    """Microseconds until a call returns."""
    for _ in range(10):
        call()
    torch.cuda.synchronize()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return 1e6 * statistics.median(samples)


def copies(count, repeats):
    """GB/s, read and written."""
    a = torch.zeros(count, device="cuda")
    b = torch.ones(count, device="cuda")
    return 2 * 4 * count / seconds(lambda: a.copy_(b), repeats) / 1e9


def products(side, repeats, dtype):
    """TFLOP/s on random data: zeros take less power, and would be faster."""
    a, b = (torch.randn(side, side, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / seconds(lambda: torch.mm(a, b, out=out), repeats) / 1e12


def gap(repeats, count=100):
    """Microseconds from kernel to kernel in a graph."""
    x = torch.zeros(1, device="cuda")

    def adds():
        for _ in range(count):
            x.add_(1)

    adds()
    return 1e6 * seconds(capture(adds), repeats) / count


def pinned():
    """Microseconds of asking for pinned memory while the device is busy, and while it is not."""

    def ask(busy):
        torch.cuda.synchronize()
        if busy:
            torch.cuda._sleep(int(2e7))
        start = time.perf_counter()
        kept.append(torch.empty(2**20 + len(kept), dtype=torch.uint8).pin_memory())
        return 1e6 * (time.perf_counter() - start)

    kept = []
    ask(False)
    return [ask(True), ask(False)]


def run(settings):
    from emanest.kernels import newton_schulz

    count, side, repeats = SMALL if settings.small else LARGE
    x, r = (torch.zeros(2, 64, 64, dtype=torch.float16, device="cuda") for _ in range(2))
    measures = {
        "copy, GB/s": lambda: copies(count, repeats),
        "float16, TFLOP/s": lambda: products(side, repeats, torch.float16),
        "bfloat16, TFLOP/s": lambda: products(side, repeats, torch.bfloat16),
        "kernel to kernel in a graph, us": lambda: gap(repeats),
        "host time of an operator, us": lambda: host(lambda: x.add_(1)),
        "host time of a product of ours, us": lambda: host(
            lambda: newton_schulz.sym_baddbmm(r, r, r, 1.0, 1.0)
        ),
        "pinned memory while busy, and idle, us": pinned,
    }
    data = {}
    for name, measure in measures.items():
        try:
            data[name] = measure()
        except Exception as error:
            data[name] = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
        print(name, data[name], flush=True)
    lines = [f"{name}: {shown(value)}" for name, value in data.items()]
    return Found(lines, data, not any(isinstance(value, str) for value in data.values()))


def shown(value):
    """A number, or several, with three digits."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return value if isinstance(value, str) else f"{value:.3g}"
