# SPDX-License-Identifier: MIT
"""Checkpoints that an older version wrote (``data/write_checkpoints.py``) go on in this one."""

import gzip
import importlib.util
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from emanest import Muon, NorMuon, Wrap
from helpers import bits

DATA = Path(__file__).with_name("data")
_SPEC = importlib.util.spec_from_file_location("write_checkpoints", DATA / "write_checkpoints.py")
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

with gzip.open(writer.FILE) as _file:
    OLD = torch.load(io.BytesIO(_file.read()), weights_only=True)

# what bits of a product are depends on the processor, what torch's own steps compute on torch
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def state_of(saved):
    """(parameter, name) -> tensor of a state dict."""
    return {(i, k): v for i, entries in saved["state"].items() for k, v in entries.items()}


def assert_same(found, wanted):
    assert {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in wanted.items()}


def loaded(case, mode):
    """Today's optimizer, with the parameters and the state of the file."""
    params = [nn.Parameter(v.clone()) for v in case[mode]["params"]]
    optimizer = writer.made(case, params)
    optimizer.load_state_dict(case[mode]["state"])
    return optimizer, params


@pytest.mark.parametrize(("mode", "backend"), [("train", "cpp"), ("eval", "eager")])
@pytest.mark.parametrize("name", OLD["cases"])
def test_an_old_checkpoint_goes_on(name, mode, backend, monkeypatch):
    """State and groups are loaded bit for bit; element-wise bases go on so, others nearly."""
    monkeypatch.setenv("EMANEST_BACKEND", backend)
    case = OLD["cases"][name]
    optimizer, params = loaded(case, mode)
    saved, found = case[mode]["state"], optimizer.state_dict()
    assert_same(state_of(found), state_of(saved))
    for old, new in zip(saved["param_groups"], found["param_groups"], strict=True):
        assert {k: new[k] for k in old} == old
    assert_same(dict(enumerate(params)), dict(enumerate(case[mode]["params"])))

    optimizer.train()
    writer.go_on(optimizer, params, OLD["gradients"])
    after, found = case["after"], state_of(optimizer.state_dict())
    if isinstance(optimizer, (Muon, NorMuon, Wrap)):
        torch.testing.assert_close([p.detach() for p in params], after["params"], **NEAR)
        torch.testing.assert_close(found, state_of(after["state"]), **NEAR)
    else:
        assert_same(dict(enumerate(params)), dict(enumerate(after["params"])))
        assert_same(found, state_of(after["state"]))
