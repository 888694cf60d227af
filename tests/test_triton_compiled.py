# SPDX-License-Identifier: MIT
"""What the Triton kernels compile to, for GPUs that are not here."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emanest.rules import BASES, LOOKAHEADS, MOMENTA, POINTS
from shared import kernel_cache, once

# Triton is imported only by processes of its own: importing it here would settle for every other
# test whether it interprets
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")

# of a thread; with five programs of 128 threads on a multiprocessor, which has 65536, all fit
MOST_REGISTERS = 96
# in float64, whose numbers take two
MOST_REGISTERS_WIDE = 128
# a sum needs some shared memory, whatever goes with it is a value or two
SUMS = ("nonfinite", "momentum", "rows")
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
DTYPES = ["float32", "float64", "bfloat16", "float16", "float32, bfloat16 gradients"]


def compiled(factory, script, *arguments):
    """Run a file like this one as a script, which writes what it finds as JSON."""
    name = "-".join((Path(script).stem, *arguments))

    def make(path):
        # all there is would fill the disk
        cache = factory.mktemp("triton") if arguments else kernel_cache(name)
        environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
        command = [sys.executable, script, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        path.write_text(done.stdout)

    path = once(factory, name, make)
    return {tuple(case): found for case, found in json.loads(path.read_text())}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Case -> its figures: every pair in float32 for sm_90, and samples of the rest."""
    return compiled(tmp_path_factory, __file__)


def pick(kernels, kernel, rules="", dtypes="float32", target="sm_90", on_device=False, own=False):
    return kernels[kernel, rules, dtypes, target, on_device, own]


def check(found, case):
    """No memory but the tensors', and that in wide pieces."""
    kernel, _, dtypes, *_ = case
    assert found["registers"] <= (MOST_REGISTERS_WIDE if dtypes == "float64" else MOST_REGISTERS)
    assert found["local"] == 0
    # four elements, of whatever dtype
    least = 64 if dtypes in ("bfloat16", "float16") else 128
    assert found["load"] >= least
    # the flag of nonfinite is one value, and a row has one of each kind
    assert found["store"] >= (32 if kernel in ("nonfinite", "rows") else least)
    # one answer from a program's threads needs some; to move values between them would need more
    assert found["shared"] <= (4096 if kernel in SUMS else 0)


def vectors(found):
    """All that is loaded and stored element by element is moved by vectors as well.

    A chunk has two vectors of each tensor per thread, and what makes none goes in quarters of two
    elements. The rest are the two entries of the chunk.
    """
    assert found["loads"]["128"] == found["loads"]["32"] - 2 > 0
    assert found["stores"]["128"] == found["stores"]["32"] > 0


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("look", LOOKAHEADS)
def test_every_pair_compiles_to_vectors_in_registers(kernels, base, look):
    case = "step", f"{base} {look}"
    check(pick(kernels, *case), ("step", case[1], "float32"))
    vectors(pick(kernels, *case))


@pytest.mark.parametrize(
    ("kernel", "rules"), [*(("follow", r) for r in LOOKAHEADS), *(("move", r) for r in POINTS)]
)
def test_the_other_passes_compile_to_vectors_in_registers(kernels, kernel, rules):
    check(pick(kernels, kernel, rules), (kernel, rules, "float32"))
    vectors(pick(kernels, kernel, rules))


def test_the_passes_around_newton_schulz_move_vectors_only_where_they_are_aligned(kernels):
    """As ``vectors``; a hint that reached the other branch would make its loads wide, too."""
    for look in LOOKAHEADS:
        found = pick(kernels, "scaled step", f"direction {look}")
        plain = pick(kernels, "step", f"direction {look}")
        assert found["loads"]["128"] == plain["loads"]["128"]
        assert found["stores"] == plain["stores"]
    for rule in MOMENTA:
        vectors(pick(kernels, "momentum", rule))
    # 16 values in each thread by vectors, or 4 one by one; an average of four rows in each; a chunk
    assert pick(kernels, "rows", "normuon")["loads"] == {"32": 2 + 4 + 4, "64": 5, "128": 4}


def test_everything_else_compiles_to_vectors_in_registers(kernels):
    assert {case[2] for case in kernels} == set(DTYPES)
    assert {case[3] for case in kernels} == set(TARGETS)
    for case, found in kernels.items():
        check(found, case)


def test_numbers_on_the_device_are_loaded(kernels):
    vectors(pick(kernels, "step", "sgd none"))
    found = pick(kernels, "step", "adamw ema_nesterov", on_device=True)
    assert found["loads"]["64"] > pick(kernels, "step", "adamw ema_nesterov")["loads"]["64"]


def test_numbers_per_tensor_take_loads_of_their_own_and_nothing_else(kernels):
    """Of each number one for vectors and one for what makes none, and where they begin."""
    own, plain = (pick(kernels, "step", "adamw ema_nesterov", own=own) for own in (True, False))
    more = 2 * (1 + len(BASES["adamw"].numbers) + len(LOOKAHEADS["ema_nesterov"].numbers))
    wide = {"32": plain["loads"]["32"] + more, "64": plain["loads"]["64"] + 1}
    assert own["loads"] == {**plain["loads"], **wide}
    assert own["stores"] == plain["stores"]


def test_every_operation_rounds_to_nearest(kernels):
    for case, found in kernels.items():
        if case[3] != "gfx942":
            assert set(found["inexact"]) == set(), case
    found = pick(kernels, "step", "adamw ema_nesterov")
    assert {"div.rn.f32", "sqrt.rn.f32"} <= set(found["exact"])
    found = pick(kernels, "step", "adamw ema_nesterov", "float64")
    assert {"div.rn.f64", "sqrt.rn.f64"} <= set(found["exact"])


@pytest.mark.parametrize("rules", ["amsgrad none", "sgd lookahead"])
def test_a_comparison_is_one_or_zero(kernels, rules):
    """A signed conversion of a one-bit number would make it -1."""
    assert pick(kernels, "step", rules)["conversions"] == ["arith.uitofp"]


def test_cpu_tensors_are_an_error_without_the_interpreter():
    code = """if True:
        import torch
        from emanest.kernels import backend
        y = torch.ones(3)
        backend.apply_("step", ("sgd", "none"), [y], [y], [], (1.0, 0.1, 0.0), torch.float32)
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "serves CPU tensors only if TRITON_INTERPRET=1 is set" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_full_product_compiles_to_vectors_in_registers(tmp_path_factory):
    kernels = compiled(tmp_path_factory, __file__, "everything")
    # and numbers per tensor for the samples
    assert len(kernels) == len(TARGETS) * (len(DTYPES) * 80 + 4)
    for case, found in kernels.items():
        check(found, case)


# ---- as a script --------------------------------------------------------------------------------


def read(kernel):
    """What the assembly has, beside the figures of the report."""
    text = kernel.asm.get("ptx", "")
    found = {"loads": {}, "stores": {}}
    for name, op in (("loads", "ld"), ("stores", "st")):
        for count, bits in re.findall(rf"{op}\.global\S*?(?:\.v(\d))?\.b(\d+)\s", text):
            width = str(int(count or 1) * int(bits))
            found[name][width] = found[name].get(width, 0) + 1
    arithmetic = re.findall(r"\b((?:fma|div|sqrt|rcp|rsqrt|ex2|lg2)\.\S*)", text)
    # integers are divided, too
    arithmetic = sorted({op for op in arithmetic if re.search(r"\.f\d+$", op)})
    exact = [op for op in arithmetic if re.match(r"(div|sqrt)\.rn\.", op)]
    converted = set(re.findall(r"arith\.[us]itofp", kernel.asm["ttir"]))
    return {
        **found,
        "exact": exact,
        "inexact": [op for op in arithmetic if op not in exact],
        "conversions": sorted(converted),
    }


def main(everything):
    from emanest.kernels import report

    found = []
    for case in report.cases(everything):
        kernel = report.compiled(case)
        name = (case.kernel, " ".join(case.rules), *case[2:])
        found.append((name, {**report.facts(kernel)._asdict(), **read(kernel)}))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main("everything" in sys.argv)
