# SPDX-License-Identifier: MIT
"""Triton kernels, installed as ``emanest.kernels``; the package works without them."""
