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
KINDS = ["sym_mm", "sym_baddbmm", "mm_add", "transposed sym_mm"]
# target -> the instruction that multiplies matrices of 16 bits
TENSOR_CORES = {
    "sm_80": r"mma\.sync\.aligned\.m16n8k16\S*\.f32\.f16\.f16\.f32",
    "sm_90": r"wgmma\.mma_async\S*\.f32\.f16\.f16",
    "sm_100": r"tcgen05\.mma\S*kind::f16",
    "gfx942": r"v_mfma_f32_\w+_f16",
}
# bytes that a program may have: what a multiprocessor of the smallest such GPU has
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
LARGE = "4096"
# sides that no tile fills -> bits of the widest store
ODD = {769: 16, 800: 128}
# what is not a row of the table: dtype -> instruction on sm_90
OTHERS = {
    "bfloat16": r"wgmma\.mma_async\S*\.f32\.bf16\.bf16",
    # exact products of float32 know no tensor cores
    "float32": r"fma\.rn\.f32",
    "float64": r"mma\.sync\S*\.f64\.f64\.f64\.f64",
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """(kind, dtype, target, side) -> its figures, of small matrices."""
    return compiled(tmp_path_factory, __file__)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The same of large ones."""
    return compiled(tmp_path_factory, __file__, LARGE)


@pytest.fixture(params=["kernels", pytest.param("large", marks=pytest.mark.slow)])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_the_table_uses_tensor_cores_and_vectors(either, kind, target):
    found = either[kind, "float16", target, max(case[3] for case in either if case[3] not in ODD)]
    assert re.search(TENSOR_CORES[target], found["instructions"])
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
    found = kernels["sym_mm", dtype, "sm_90", 768]
    assert re.search(OTHERS[dtype], found["instructions"])
    assert found["store"] == 128


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_no_tile_fills_are_safe(kernels, kind):
    """Rows at odd addresses are read one by one, aligned ones by vectors; tensor cores in both."""
    for side, width in ODD.items():
        found = kernels[kind, "float16", "sm_90", side]
        assert re.search(TENSOR_CORES["sm_90"], found["instructions"])
        assert found["store"] == width
        assert found["copy"] == (None if width == 16 else "16")


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
        "shared": kernel.metadata.shared,
    }


def main():
    from emanest.kernels import report, report_products

    found = []
    for product in report_products.products():
        if (product.side == int(LARGE)) != (LARGE in sys.argv):
            continue
        kernel = report_products.compiled(product)
        found.append((product, {**report.facts(kernel)._asdict(), **read(kernel)}))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
