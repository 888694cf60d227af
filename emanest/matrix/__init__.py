# SPDX-License-Identifier: MIT
"""Orthogonal directions of matrices: which matrices, Newton-Schulz, and where they lie."""
