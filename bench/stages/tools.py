# SPDX-License-Identifier: MIT
"""What NVIDIA's tools see: accesses out of bounds, races, and what bounds two of the kernels."""

import os
import re
import subprocess
import sys
import time

from . import ROOT, Found

PROGRAM = """
import torch, emanest
params = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in {shapes}]
optimizer = emanest.Muon(params, lookahead=emanest.EMANesterov())
for p in params:
    p.grad = torch.randn_like(p)
optimizer.step()
torch.cuda.synchronize()
"""
COUNTERS = {
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps",
    # not instructions, of which one of Hopper's takes 128 cycles
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor cores",
}
# the first matrix products, and the pass after them
KERNELS = "regex:symmetric_kernel|product_kernel|pass_kernel"
# small enough for a tool that slows kernels by a hundred, and large enough to fill a GPU
SMALL, LARGE = [(130, 70), (64, 64)], [(2048, 8192)] * 4
# name -> shapes of what takes a step, and how it is looked at
TOOLS = {
    "memcheck": (SMALL, ["compute-sanitizer", "--tool", "memcheck"]),
    "racecheck": (SMALL, ["compute-sanitizer", "--tool", "racecheck"]),
    "counters": (LARGE, ["ncu", "--clock-control", "none", "--kernel-name", KERNELS]),
}


def run(settings):
    lines, data, end = [], {}, time.monotonic() + settings.seconds
    for name, (shapes, command) in TOOLS.items():
        more = ["--metrics", ",".join(COUNTERS)] if name == "counters" else []
        shapes = SMALL if settings.small else shapes
        program = [sys.executable, "-c", "import bench.source_tree" + PROGRAM.format(shapes=shapes)]
        try:
            done = subprocess.run(
                [*command, *more, *program],
                cwd=ROOT,
                # in torch's own blocks an access beyond a tensor is none beyond the block
                env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                capture_output=True,
                text=True,
                timeout=end - time.monotonic(),
            )
            text = done.stdout + done.stderr
            print(text)
            data[name] = _numbers(text) if more else _verdict(text)
        except (OSError, subprocess.TimeoutExpired) as error:
            data[name] = f"{type(error).__name__}: {error}"
        lines.append(f"{name}: {data[name]}")
    # a tool that is not there has found nothing; in a rehearsal it need not be
    wrong = r"ERROR SUMMARY: [1-9]|SUMMARY: [1-9]\d* hazard" + (
        "" if settings.small else "|Error: "
    )
    return Found(lines, data, not any(re.search(wrong, each) for each in data.values()))


def _verdict(text):
    found = re.findall(r"=+ (.*SUMMARY.*)", text)
    return found[-1] if found else (text.strip().splitlines() or ["no output"])[-1]


def _numbers(text):
    """Percentages by kernel and counter."""
    found, kernel = [], ""
    for line in text.splitlines():
        match = re.match(r"\s*(\w+_kernel)\b", line)
        kernel = match[1] if match else kernel
        for counter, name in COUNTERS.items():
            if counter in line:
                found.append(f"{kernel} {name} {line.split()[-1]} %")
    return "; ".join(found) or (text.strip().splitlines() or ["no output"])[-1]
