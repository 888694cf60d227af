# SPDX-License-Identifier: MIT
"""Frameworks that step flat buffers (DeepSpeed, Megatron, FSDP1): the same update."""

import pytest
import torch
from torch import nn

import helpers
from helpers import METHODS, bits, flat, params_of

BASES = {
    "adamw": helpers.adamw,
    "amsgrad": helpers.amsgrad,
    "sgd": helpers.sgd,
    "wrap": helpers.wrap_adamw,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", BASES)
def test_one_flat_parameter_is_stepped_as_its_pieces(method, base):
    whole = BASES[base](helpers.parameters(), METHODS[method])
    params = params_of(whole)
    (buffer,) = [nn.Parameter(flat(params))]
    flattened = BASES[base]([buffer], METHODS[method])
    for t in range(9):
        helpers.set_gradients(params, t)
        buffer.grad = flat([p.grad for p in params])
        whole.step()
        flattened.step()
        assert bits(buffer) == bits(flat(params))
    whole.eval()
    flattened.eval()
    assert bits(buffer) == bits(flat(params))
    assert buffer.dtype == torch.float32
