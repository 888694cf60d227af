# SPDX-License-Identifier: MIT
"""Eigenvectors and orthonormal bases of batches, whose bits do not depend on the batch."""

import torch

from ..backends.products import ALIGNMENT


def eigenvectors(grams):
    """Of symmetric matrices, by descending eigenvalue; NaN for those that are not finite."""
    finite = grams.isfinite().flatten(1).all(1)[:, None, None]
    like = {"dtype": grams.dtype, "device": grams.device}
    # no name keeps it: LAPACK needs as much memory as two of these
    safe = torch.where(finite, grams, torch.eye(grams.shape[-1], **like))
    vectors = _joined([_eigenvectors(part) for part in _alike(safe)])
    return torch.where(finite, vectors.flip(-1).to(grams.dtype), torch.nan)


def _eigenvectors(grams):
    try:
        return torch.linalg.eigh(grams)[1]
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        # float32 may not converge where eigenvalues lie close together
        return torch.linalg.eigh(grams.double())[1].to(grams.dtype)


def orthonormal(x, memory):
    """Q of a QR decomposition of square matrices.

    Args:
        memory: of their size, for the result: of matrices so large, a new page costs more than a
            write to one that is there.
    """
    parts = _alike(x)
    if len(parts) == 1:
        return torch.linalg.householder_product(*torch.geqrf(x), out=memory)
    return torch.cat([torch.linalg.householder_product(*torch.geqrf(part)) for part in parts])


def _joined(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _alike(batch):
    """The batch, or each of its matrices where LAPACK would meet some that are not aligned.

    It works on a contiguous copy, and MKL on AMD's processors rounds by where a matrix begins.
    """
    aligned = batch[0].numel() * batch.itemsize % ALIGNMENT == 0
    return [batch] if aligned or batch.device.type != "cpu" else [*batch.split(1)]
