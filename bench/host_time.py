# SPDX-License-Identifier: MIT
"""What the host spends on Triton's launches, measured where no GPU is.

    PYTHONPATH=. python3 -m bench.host_time

A driver that launches nothing takes what the host prepares, so a figure is the time until the GPU
could begin. Operators of torch compute here, on tensors so small that their arithmetic does not
count. Times are of this thread's CPU, so that others on the machine do not show.
"""

import os
import statistics
import sys
import time
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# the shapes of GPT-2's 48 matrices, a 24th as wide
SHAPES = [(96, 32), (32, 32), (128, 32), (32, 128)] * 12


def microseconds(call, rounds):
    """Median and minimum of the CPU time of a call."""
    samples = []
    for _ in range(rounds):
        start = time.thread_time()
        call()
        samples.append((time.thread_time() - start) * 1e6)
    return statistics.median(samples), min(samples)


# what parameters carry from step to step lies on the host wherever they are
HOST = os.path.join("state", "clock.py")
# operators that compute nothing
FREE = {"detach", "is_pinned", "promote_types"}


class Kernels(TorchDispatchMode):
    """Names of torch's operators that would launch a kernel: all but views and new memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aliases = [r.alias_info for r in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        name = func.overloadpacket.__name__
        free = view or name in FREE or "empty" in name or name.startswith("_record_function")
        if not free and not _from(HOST):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def _from(file):
    """Whether a function of a file is among those that called."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.endswith(file):
        frame = frame.f_back
    return frame is not None


@contextmanager
def launched():
    """A list that receives the name of each Triton kernel that is loaded here and launched."""
    from triton.runtime import driver

    names, make = [], driver.active.launcher_cls

    def counted(src, metadata):
        launcher = make(src, metadata)

        def launch(*args):
            names.append(src.name)
            return launcher(*args)

        return launch

    driver.active.launcher_cls = counted
    try:
        yield names
    finally:
        driver.active.launcher_cls = make


def products():
    """Name -> a call of a product."""
    from emanest.kernels import newton_schulz

    x = torch.zeros(2, 64, 256, dtype=torch.float16)
    r = torch.zeros(2, 64, 64, dtype=torch.float16)
    return {
        "sym_mm": lambda: newton_schulz.sym_mm(x),
        "sym_baddbmm": lambda: newton_schulz.sym_baddbmm(r, r, r, 1.0, 2.0),
        "mm_add": lambda: newton_schulz.mm_add(x, r, 1.0, 2.0),
    }


def muon():
    """Muon with EMA-Nesterov, which has taken two steps."""
    import emanest

    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    lookahead = emanest.EMANesterov(0.5, 0.99)
    optimizer = emanest.Muon(
        params, lr=1e-3, lookahead=lookahead, backend="triton", ns_dtype="float16"
    )
    for _ in range(2):
        optimizer.step()
    return optimizer


def measure():
    """Name -> the figure."""
    found = {}
    with launched() as names:
        for name, call in products().items():
            call()
            median, least = microseconds(call, 500)
            found[name] = f"{median:.1f} us (least {least:.1f})"
        optimizer = muon()
        median, least = microseconds(optimizer.step, 60)
        found[f"a Muon step, {len(SHAPES)} matrices"] = f"{median:.0f} us (least {least:.0f})"
        names.clear()
        # copies of addresses to the GPU are among them
        with Kernels() as kernels:
            optimizer.step()
        others = len(kernels.names)
        found["launches of it"] = f"{len(names) + others}: {len(names)} Triton, {others} torch"
    return found


def install():
    """Put the driver that launches nothing in the place of Triton's.

    Without the stand-ins for ``torch.cuda``: every operator of torch would pay for them.
    """
    from .no_gpu import backend, driver

    driver.install()
    backend.install(compute=False)


def main():
    import triton

    torch.set_num_threads(1)
    install()
    print(f"torch {torch.__version__}, Triton {triton.__version__}")
    for name, figure in measure().items():
        print(f"{name:32}{figure}")


if __name__ == "__main__":
    main()
