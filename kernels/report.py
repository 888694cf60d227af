# SPDX-License-Identifier: MIT
"""What the kernels compile to: ``python -m emanest.kernels.report`` prints it as Markdown.

No GPU is needed: Triton compiles for any target, and its wheel has NVIDIA's assembler.
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import triton
from triton.compiler import ASTSource

from ..rules import BASES, LOOKAHEADS, MOMENTA, POINTS, ROWS
from . import backend, launch, momentum, passes, report_products
from .targets import TARGETS

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
# what is compiled for every target
SAMPLES = {
    "step": SAMPLE,
    "scaled step": ("direction", "ema_nesterov"),
    "momentum": ("ema",),
    "rows": ("normuon",),
}


class Case(NamedTuple):
    """One compiled kernel: its rules by name, and what it is compiled for."""

    kernel: str
    rules: tuple[str, ...]
    dtypes: str = "float32"  # of DTYPES
    target: str = "sm_90"
    on_device: bool = False  # numbers and the flag to skip
    own: bool = False  # numbers of each tensor


OWN = [Case(k, r, target=t, own=True) for k, r in SAMPLES.items() for t in TARGETS]


class Facts(NamedTuple):
    """What a GPU would have to provide for a kernel, per thread or per program."""

    registers: int
    local: int  # bytes per thread in memory: spilled registers, a stack
    shared: int  # bytes per program
    load: int  # bits of the widest
    store: int


class Spec(NamedTuple):
    """A kernel, and how what it is compiled for follows from a case."""

    kernel: Any
    constants: Callable  # rules and ``own`` -> constants
    columns: Callable  # constants, dtypes of parameter, gradient, arithmetic -> dtypes of columns
    types: Mapping = MappingProxyType({})  # of further arguments
    tiles: Mapping | None = None  # elements of a chunk, by dtype of the arithmetic


def _pass(name, columns, scales=(), types=MappingProxyType({})):
    """Of a row of ``rules.PASSES``."""

    def every(constants, p, g, wide):
        return [*columns(p, g, wide), *[wide] * sum(count for _, count in constants["STATES"])]

    def constants(*rules, own):
        return backend.pass_constants(name, rules, scales, own)

    return Spec(passes.pass_kernel, constants, every, types)


SUMS = {"sums": "*fp64"}
SPECS = {
    "step": _pass("step", lambda p, g, w: [p, g]),
    "scaled step": _pass("step", lambda p, g, w: [p, g], [True]),
    "follow": _pass("follow", lambda p, g, w: [p, p]),
    "move": _pass("move", lambda p, g, w: [p]),
    # updates have at least the arithmetic's dtype
    "momentum": _pass("momentum", lambda p, g, w: [w, g], types=SUMS),
    "rows": Spec(
        *(momentum.rows_kernel, backend.rows_constants),
        *(lambda c, p, g, w: [p, *[w] * (c["STATES"] + 2)], SUMS),
        dict.fromkeys(backend.TILES, backend.ROWS_TILE),
    ),
    "nonfinite": Spec(
        *(passes.nonfinite_kernel, lambda own: {}, lambda c, p, g, w: [g], {"flag": "*fp32"}),
        backend.NONFINITE_TILES,
    ),
}


def cases(everything=False):
    """Every pair in float32 for one target, and samples of the rest; or the full product."""
    rules = {
        "step": PAIRS,
        "scaled step": [("direction", lookahead) for lookahead in LOOKAHEADS],
        "follow": [(name,) for name in LOOKAHEADS],
        "move": [(name,) for name in POINTS],
        "momentum": [(name,) for name in MOMENTA],
        "rows": [(name,) for name in ROWS],
        "nonfinite": [()],
    }
    if everything:
        options = list(itertools.product(DTYPES, TARGETS))
        every = [Case(k, r, *o) for k, found in rules.items() for r in found for o in options]
        return [*every, *OWN]
    plain = [Case(kernel, r) for kernel, found in rules.items() for r in found]
    others = [Case("step", SAMPLE, dtypes) for dtypes in DTYPES if dtypes != "float32"]
    elsewhere = [
        Case(kernel, sample, target=target)
        for kernel, sample in SAMPLES.items()
        for target in TARGETS
        if target != "sm_90"
    ]
    on_device = [Case("step", SAMPLE, on_device=True), *(c for c in OWN if c.kernel == "step")]
    return [*plain, *others, *elsewhere, *on_device]


def compiled(case):
    """Compile a case ahead of time."""
    spec = SPECS[case.kernel]
    parameter, gradient = DTYPES[case.dtypes]
    wide = torch.promote_types(gradient if case.kernel == "nonfinite" else parameter, torch.float32)
    constants = spec.constants(*case.rules, own=case.own)
    columns, tiles = spec.columns(constants, parameter, gradient, wide), spec.tiles or backend.TILES
    constants = {**launch.tensor_constants(columns, wide, tiles[wide]), **constants}
    types = {"chunks": "*i32", "rows": "*i64", **spec.types}
    names = spec.kernel.arg_names
    if "NUMBERS" in constants:
        constants["LOADED"] = loaded = case.on_device or case.own or wide == torch.float64
        counts = constants["NUMBERS"]
        # of a pass also where each rule's begin
        count = sum(counts[-1]) if isinstance(counts, tuple) else counts
        vector = "*fp32" if case.own and wide == torch.float32 else "*fp64"
        types["numbers"] = vector if loaded else ("fp32",) * max(count, 1)
    if "skip" in names:
        place = types if case.on_device else constants
        place["skip"] = "*fp32" if case.on_device else None
    if "sums" in names and "sums" not in types:
        constants["sums"] = None
    # in the kernel's own order
    signature = {name: types.get(name, "constexpr") for name in names}
    return triton.compile(
        ASTSource(spec.kernel, signature, constants), TARGETS[case.target], launch.OPTIONS
    )


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
    print(f"Triton {triton.__version__}, chunks of {backend.TILES[torch.float32]} elements.\n")
    print("| kernel | rules | dtypes | target | registers | local | shared | load | store |")
    print("| --- | --- | --- | --- | --: | --: | --: | --: | --: |")
    everything = parser.parse_args().all
    for case in cases(everything):
        kinds = ", numbers on the device" * case.on_device + ", numbers per tensor" * case.own
        names = case.kernel + kinds, " ".join(case.rules), case.dtypes, case.target
        found = facts(compiled(case))
        print("|", " | ".join(map(str, (*names, *found))), "|", flush=True)
    for product in report_products.products(everything):
        found = facts(report_products.compiled(product))
        row = "" if product.row is None else f", row {product.row + 1} of its tiles"
        names = product.call, f"{product.side} wide{row}", product.dtype, product.target
        print("|", " | ".join(map(str, (*names, *found))), "|", flush=True)


if __name__ == "__main__":
    main()
