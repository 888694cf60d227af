# SPDX-License-Identifier: MIT
"""What the tests of Muon and its relatives share."""

import pytest
import torch

import helpers
from emanest import Aurora, Muon, NorMuon, backends

LR = 0.05
SHAPES = [(8, 12), (12, 8), (8, 12), (6, 6), (5, 3, 2, 2)]
CLASSES = {"Muon": Muon, "NorMuon": NorMuon, "Aurora": Aurora}
BACKENDS = [name for name in ("cpp", "eager") if backends.find(name, "cpu")[0]]

each_class = pytest.mark.parametrize("name", CLASSES)
# whose orthogonal factor is Muon's; what the others do beside it is tested on these alone
of_muon = pytest.mark.parametrize("name", ["Muon", "NorMuon"])
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def matrices(dtype=torch.float64, shapes=SHAPES):
    return helpers.parameters(dtype, shapes)


def close(found, expected, rtol=0, atol=1e-10):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
