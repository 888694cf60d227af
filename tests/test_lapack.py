# SPDX-License-Identifier: MIT
"""Eigenvectors and orthonormal bases: right, and the same bits in any batch."""

import pytest
import torch

from emanest.matrix.lapack import eigenvectors, orthonormal

# where the matrices of a batch begin aligned, and where they do not
SIZES = (5, 7, 16, 33)


def grams(n, count=4):
    x = torch.randn(count, n, n, generator=torch.Generator().manual_seed(n))
    return x @ x.mT


def basis(x):
    return orthonormal(x, torch.empty_like(x))


@pytest.mark.parametrize("function", [eigenvectors, basis])
@pytest.mark.parametrize("n", SIZES)
def test_a_matrix_has_the_bits_that_it_has_alone(function, n):
    """On some processors LAPACK rounds by where a matrix begins."""
    batch = grams(n)
    together = function(batch)
    for k in range(len(batch)):
        assert torch.equal(together[k], function(batch[k : k + 1].clone())[0])


@pytest.mark.parametrize("n", SIZES)
def test_columns_are_orthonormal_and_in_order(n):
    batch, eye = grams(n), torch.eye(n)
    for q in (eigenvectors(batch), basis(batch)):
        torch.testing.assert_close(q.mT @ q, eye.expand_as(q), rtol=0, atol=1e-5)
    values = torch.diagonal(eigenvectors(batch).mT @ batch @ eigenvectors(batch), dim1=1, dim2=2)
    assert (values.diff() < 1e-3).all()


def test_what_is_not_finite_stays_in_its_own_matrix():
    batch = grams(5)
    spoiled = batch.clone()
    spoiled[1, 0, 0] = torch.nan
    found = eigenvectors(spoiled)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2, 3]], eigenvectors(batch)[[0, 2, 3]])
