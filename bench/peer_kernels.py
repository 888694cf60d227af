# SPDX-License-Identifier: MIT
"""Newton-Schulz on kernels that others wrote, with our coefficients.

Their lists of configurations to try are cut to ``KEPT`` of them, the best of their kind on Hopper:
each one is compiled for each shape, and thirty of them take a minute where all of a run has 15.
"""

import torch

from . import newton_schulz
from .newton_schulz import A, B, C, alone
from .reference import NS_STEPS

# (rows of a tile, columns, depth, warps, stages)
KEPT = ((128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (64, 64, 64, 4, 3))


def dion(params, capturable):
    """The loop of dion, which has coefficients of its own."""
    from dion import newton_schulz_triton as kernels

    sizes = "BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K"
    shorten(kernels.ns_line_1_kernel, sizes)
    shorten(kernels.ns_line_2_kernel, sizes)
    return form(
        lambda x: kernels.ns_line_1(x.contiguous()),
        lambda r: kernels.ns_line_2(r, alpha=C, beta=B),
    )(params, capturable)


def emerging(params, capturable):
    """NVIDIA's Emerging-Optimizers: batches of symmetric products through TMA descriptors."""
    from emerging_optimizers.triton_kernels import batched_syrk as kernels

    shorten(kernels.batched_syrk_kernel_bf16, ("TILE_M", "TILE_N", "TILE_K"))
    return form(
        kernels.batched_tsyrk_ex, lambda r: kernels.batched_tsyrk_ex(r, r, alpha=C, beta=B)
    )(params, capturable)


def gram_newton_schulz(params, capturable):
    """Dao-AILab's, in CuTe."""
    from gram_newton_schulz import GramNewtonSchulz

    function = GramNewtonSchulz(ns_coefficients=[[A, B, C]] * NS_STEPS)
    return alone(function)(params, capturable)


def form(gram, polynomial):
    """The standard form in bfloat16 with the symmetric products of others."""
    return alone(newton_schulz.plain, dtype=torch.bfloat16, gram=gram, polynomial=polynomial)


def shorten(kernel, sizes):
    """Let an autotuned kernel try ``KEPT`` only.

    Args:
        kernel: a ``triton.runtime.Autotuner``.
        sizes: what it calls the rows, columns and depth of a tile.

    Raises:
        RuntimeError: it has none of them.
    """

    def key(config):
        return *(config.kwargs[name] for name in sizes), config.num_warps, config.num_stages

    # by key: of those that differ in something else the first
    kept = {key(c): c for c in reversed(kernel.configs) if key(c) in KEPT}
    if not kept:
        raise RuntimeError(f"{kernel.base_fn.__name__} has no configuration of {KEPT}")
    kernel.configs = [*kept.values()]
