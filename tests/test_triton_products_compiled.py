# SPDX-License-Identifier: MIT
"""What the products of Newton-Schulz compile to, for GPUs that are not here: all rows of the table.

Compiled in a process of its own, as in ``test_triton_compiled``.
"""

import importlib.util
import json
import re
import sys

import pytest

from test_triton_compiled import compiled

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")

TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
# target -> the instruction that multiplies matrices of 16 bits, with the terms that it adds up
# where it names them
TENSOR_CORES = {
    "sm_80": r"mma\.sync\.aligned\.m16n8k16\S*\.f32\.f16\.f16\.f32",
    "sm_90": r"wgmma\.mma_async\S*k16\.f32\.f16\.f16",
    "sm_100": r"tcgen05\.mma\S*kind::f16",
    "gfx942": r"v_mfma_f32_32x32x8_f16",
}
# bytes that a program may have: what a multiprocessor of the smallest such GPU has
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# what has no row in the table: dtype -> instruction on sm_90
OTHERS = {
    # exact products of float32 know no tensor cores
    "float32": r"fma\.rn\.f32",
    "float64": r"mma\.sync\S*\.f64\.f64\.f64\.f64",
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """(call, dtype, target, side, row) -> its figures, every tile in one call."""
    return compiled(tmp_path_factory, __file__)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The same, every tile in every call."""
    return compiled(tmp_path_factory, __file__, "everything")


@pytest.fixture(params=["kernels", pytest.param("everything", marks=pytest.mark.slow)])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("target", TARGETS)
def test_every_row_of_the_table_uses_tensor_cores_and_vectors(either, target):
    rows = [f for (_, _, t, _, row), f in either.items() if t == target and row is not None]
    assert len(rows) >= 4
    for found in rows:
        # the same in all rows, and no other: sums are then in the same order
        matrices = [op for op in found["instructions"].split() if "mma" in op or "mfma" in op]
        assert matrices
        assert all(re.match(TENSOR_CORES[target], op) for op in matrices)
        assert found["store"] == 128
        # on NVIDIA's, operands go past the registers into shared memory, 16 bytes at a time
        assert found["copy"] == "16" if target.startswith("sm") else found["load"] == 128
        assert found["shared"] <= SHARED[target]


def test_nothing_is_spilled(either):
    assert {case[2] for case in either} == set(TARGETS)
    for case, found in either.items():
        assert found["local"] == 0, case


@pytest.mark.parametrize("dtype", OTHERS)
def test_other_dtypes_have_a_fallback(kernels, dtype):
    found = kernels["sym_mm", dtype, "sm_90", 1024, None]
    assert re.search(OTHERS[dtype], found["instructions"])
    assert found["store"] == 128


# calls on sides that no tile fills, first with rows at odd addresses
UNEVEN = [
    ("sym_baddbmm", "float16", 769),
    ("mm_add", "float16", 769),
    ("mm_add", "float16", 800),
    ("transposed sym_mm", "bfloat16", 800),
]


@pytest.mark.parametrize(("call", "dtype", "side"), UNEVEN)
def test_sizes_that_no_tile_fills_are_safe(kernels, call, dtype, side):
    """Tensor cores in all; rows at odd addresses one by one, aligned ones by vectors, and early."""
    found = kernels[call, dtype, "sm_90", side, None]
    short = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    assert re.search(rf"wgmma\.mma_async\S*k16\.f32\.{short}\.{short}", found["instructions"])
    aligned = side % 16 == 0
    assert found["store"] == (128 if aligned else 16)
    assert found["copy"] == ("16" if aligned else None)
    # products that may be under way while operands of later ones are loaded
    assert found["waits"].startswith("1" if aligned else "0")


def test_norms_of_rows_and_factors_of_matrices_and_rows_move_vectors(either):
    found = {case: f for case, f in either.items() if case[0].startswith(("factors", "norms"))}
    assert {case[2] for case in found if "row" in case[0]} == set(TARGETS)
    for case, each in found.items():
        assert each["load"] == 128, case
        assert each["store"] >= 64, case


# ---- as a script --------------------------------------------------------------------------------


def read(kernel):
    """What the assembly has, beside the figures of the report."""
    text = kernel.asm.get("ptx") or kernel.asm["amdgcn"]
    instructions = r"\b((?:wgmma\.mma_async|mma\.sync|tcgen05\.mma|fma\.rn)\.\S+|v_mfma_\w+)"
    # the 16 stands after the addresses
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", text)
    return {
        "instructions": " ".join(sorted(set(re.findall(instructions, text)))),
        "copy": str(min(int(c, 0) for c in copies)) if copies else None,
        "waits": " ".join(re.findall(r"wgmma\.wait_group\.sync\.aligned (\d)", text)),
        "shared": kernel.metadata.shared,
    }


def main(everything):
    from emanest.kernels import report, report_products

    found = []
    for product in report_products.products(everything):
        kernel = report_products.compiled(product)
        found.append((product, {**report.facts(kernel)._asdict(), **read(kernel)}))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main("everything" in sys.argv)
