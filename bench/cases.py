# SPDX-License-Identifier: MIT
"""All cases: the CPU's and the GPU's, each in the order in which they run."""

from .cpu_cases import CPU
from .cuda_cases import CUDA

CASES = (*CPU, *CUDA)
