# SPDX-License-Identifier: MIT
"""Where a step, a load or an evaluation happens does not matter: inference mode, default device."""

import ast
import copy
from pathlib import Path

import pytest
import torch
from torch.utils._device import _device_constructors

import helpers
from emanest import backends, doctor
from helpers import METHODS, bits, content, differing, params_of, run

BASES = {
    "adamw": helpers.adamw,
    "sgd": helpers.sgd,
    "wrap": helpers.wrap_adamw,
    "wrap two": helpers.wrap_two,
}
few_bases = pytest.mark.parametrize("base", BASES)


# torch's AdamW cannot go on in another dtype
@pytest.mark.parametrize(
    ("base", "dtype"),
    [*((b, torch.float32) for b in BASES), ("adamw", torch.float64), ("sgd", torch.float64)],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:emanest. parameters moved")
@pytest.mark.parametrize("loaded", [True, False])
def test_training_goes_on_from_inference_mode(base, dtype, loaded):
    """As Lightning validates, before the first step and after a change of dtype."""
    first, second = (BASES[base](helpers.parameters(), METHODS["ema"]) for _ in range(2))
    for optimizer in (first, second):
        run(optimizer, range(3))
        for p in params_of(optimizer):
            p.data, p.grad = p.data.to(dtype), None
    with torch.inference_mode():
        if loaded:
            first.load_state_dict(second.state_dict())
        with first.at_iterate():
            first.metrics()
    for optimizer in (first, second):
        run(optimizer, range(3, 5))
    assert differing(content(first), content(second)) == []


@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_a_back_end_knows_no_default_device(backend):
    """Nor a default dtype; all of its functions, as ``emanest.doctor`` calls them."""
    module = backends.pick("cpu", backend)
    expected = doctor._run(module, "cpu")
    with torch.device("meta"):
        found = doctor._run(module, "cpu")
    assert [bits(t) for t in found] == [bits(t) for t in expected]


FACTORIES = {f.__name__ for f in _device_constructors()}
# what a user computes with beside them is on the default device, too
USERS = {"analysis.py"}
SOURCES = sorted(
    path
    for folder in ("emanest", "kernels")
    for path in (Path(__file__).parents[1] / folder).rglob("*.py")
    if path.name not in USERS
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_tensor_is_made_on_a_named_device(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    for call in calls:
        called, keywords = ast.unparse(call.func), {k.arg for k in call.keywords}
        if called.startswith("torch.") and called.removeprefix("torch.") in FACTORIES:
            # or it comes with others, as **options
            assert keywords & {"device", None}, f"{path.name}:{call.lineno} {ast.unparse(call)}"


class CountedOnCPU(torch.optim.AdamW):
    """In torch 2.11 AdamW itself makes its counters on the default device."""

    def step(self, closure=None):
        with torch.device("cpu"):
            return super().step(closure)


@few_bases
def test_the_default_device_does_not_matter(base, monkeypatch):
    """Tensors that nobody asked for would be made there, and say nothing."""
    monkeypatch.setattr(torch.optim, "AdamW", CountedOnCPU)

    def life(place):
        optimizer = BASES[base](helpers.parameters(), METHODS["ema"])
        for t in range(4):
            helpers.set_gradients(params_of(optimizer), t)
            if t > 1:
                params_of(optimizer)[0].grad = None
            with torch.device(place):
                optimizer.step()
                if t == 2:
                    optimizer = copy.deepcopy(optimizer)
                    saved = optimizer.state_dict()
                    for entries in saved["state"].values():
                        entries.update({k: entries[k].item() for k in entries if k == "lookahead"})
                    optimizer.load_state_dict(saved)
                    with optimizer.at_iterate():
                        optimizer.metrics()
        return content(optimizer)

    assert differing(life("meta"), life("cpu")) == []
