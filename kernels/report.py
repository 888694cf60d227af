"""What the kernels compile to: ``python -m emanest.kernels.report`` prints it as Markdown.

No GPU is needed: Triton compiles for any target, and its wheel has NVIDIA's assembler.
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..rules import BASES, LOOKAHEADS, POINTS
from . import launch, passes, step

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = {
    "step": passes.step_kernel,
    "follow": passes.follow_kernel,
    "move": passes.move_kernel,
    "nonfinite": passes.nonfinite_kernel,
}
# of parameters (or snapshots) and gradients, as they are met in training
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "float32, bfloat16 gradients": (torch.float32, torch.bfloat16),
}
PAIRS = list(itertools.product(BASES, LOOKAHEADS))
SAMPLE = "adamw", "ema_nesterov"


class Case(NamedTuple):
    """One compiled kernel: its rules by name, and what it is compiled for."""

    kernel: str
    rules: tuple[str, ...]
    dtypes: str = "float32"  # of DTYPES
    target: str = "sm_90"
    on_device: bool = False  # numbers and the flag to skip


class Facts(NamedTuple):
    """What a GPU would have to provide for a kernel, per thread or per program."""

    registers: int
    local: int  # bytes per thread in memory: spilled registers, a stack
    shared: int  # bytes per program
    load: int  # bits of the widest
    store: int


def cases(everything=False):
    """Every pair in float32 for one target, and samples of the rest; or the full product."""
    rules = {
        "step": PAIRS,
        "follow": [(name,) for name in LOOKAHEADS],
        "move": [(name,) for name in POINTS],
        "nonfinite": [()],
    }
    if everything:
        options = list(itertools.product(DTYPES, TARGETS))
        return [Case(k, r, *o) for k, found in rules.items() for r in found for o in options]
    plain = [Case(kernel, r) for kernel, found in rules.items() for r in found]
    others = [Case("step", SAMPLE, dtypes) for dtypes in DTYPES if dtypes != "float32"]
    elsewhere = [Case("step", SAMPLE, target=target) for target in TARGETS if target != "sm_90"]
    return [*plain, *others, *elsewhere, Case("step", SAMPLE, on_device=True)]


def compiled(case):
    """Compile a case ahead of time."""
    constants, types = _constants(case), {"chunks": "*i32", "rows": "*i64"}
    if "NUMBERS" in constants:
        loaded = case.on_device or constants["DTYPE"] == launch.TYPES[torch.float64]
        constants["LOADED"] = loaded
        counts = constants["NUMBERS"]
        count = 1 + sum(counts) if isinstance(counts, tuple) else max(counts, 1)
        types["numbers"] = "*fp64" if loaded else ("fp32",) * count
    if case.kernel == "nonfinite":
        types["flag"] = "*fp32"
    elif case.kernel != "move":
        place = types if case.on_device else constants
        place["skip"] = "*fp32" if case.on_device else None
    kernel = KERNELS[case.kernel]
    # in the kernel's own order
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    return triton.compile(
        ASTSource(kernel, signature, constants), TARGETS[case.target], launch.OPTIONS
    )


def _constants(case):
    parameter, gradient = DTYPES[case.dtypes]
    dtype = torch.promote_types(parameter, torch.float32)
    if case.kernel == "step":
        states = sum(step.step_constants(*case.rules)["STATES"])
        columns = [parameter, gradient, *[dtype] * states]
        return {**step.step_constants(*case.rules), **step.tensor_constants(columns, dtype)}
    if case.kernel == "follow":
        rules = step.follow_constants(*case.rules)
        return {
            **rules,
            **step.tensor_constants([parameter] * 2 + [dtype] * rules["STATES"], dtype),
        }
    if case.kernel == "move":
        rules = step.move_constants(*case.rules)
        return {**rules, **step.tensor_constants([parameter] + [dtype] * rules["STATES"], dtype)}
    wide = torch.promote_types(gradient, torch.float32)
    return step.tensor_constants([gradient], wide, step.NONFINITE_TILES)


def facts(kernel):
    """Read a compiled kernel's assembly."""
    return _amd(kernel.asm["amdgcn"]) if "amdgcn" in kernel.asm else _nvidia(kernel.asm)


def _nvidia(asm):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    return Facts(
        found["REG"],
        found["STACK"] + found["LOCAL"],
        found["SHARED"],
        *(_widest(rf"{op}\.global\S*?(?:\.v(\d))?\.b(\d+)\s", asm["ptx"]) for op in ("ld", "st")),
    )


def _amd(text):
    found = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\s", text)}
    widths = {"ushort": 16, "short": 16, "dword": 32, "dwordx2": 64, "dwordx4": 128}

    def widest(op):
        names = re.findall(rf"(?:global|buffer)_{op}_(\w+)", text)
        return max((widths.get(name, 0) for name in names), default=0)

    return Facts(
        found["vgpr_count"],
        found["private_segment_fixed_size"],
        found["group_segment_fixed_size"],
        widest("load"),
        widest("store"),
    )


def _widest(pattern, text):
    return max((int(n or 1) * int(bits) for n, bits in re.findall(pattern, text)), default=0)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description="What the Triton kernels compile to.")
    parser.add_argument("--all", action="store_true", help="every dtype for every target")
    print(f"Triton {triton.__version__}, chunks of {step.TILES[torch.float32]} elements.\n")
    print("| kernel | rules | dtypes | target | registers | local | shared | load | store |")
    print("| --- | --- | --- | --- | --: | --: | --: | --: | --: |")
    for case in cases(parser.parse_args().all):
        found = facts(compiled(case))
        kernel = f"{case.kernel}, numbers on the device" if case.on_device else case.kernel
        names = kernel, " ".join(case.rules), case.dtypes, case.target
        print("|", " | ".join([*names, *map(str, found)]), "|", flush=True)


if __name__ == "__main__":
    main()
