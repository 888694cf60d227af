# SPDX-License-Identifier: MIT
"""The lab's language models against what their sources say, written down once more."""

import pytest
import torch
import torch.nn.functional as F
from small_models import MODELS, TEXTS, batch, loss, make, small, step

import emanest
from examples.lab.models import layers


@pytest.mark.parametrize("name", TEXTS)
def test_language_models_give_a_logit_for_each_token(name):
    inputs, _ = batch(name)
    assert small(name)(inputs[:, :5]).shape == (8, 5, MODELS[name].small["vocabulary"])


def deviations(model):
    return {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}


def test_matrices_begin_with_the_deviations_of_their_papers():
    options = {"layers": 2, "heads": 2, "width": 96, "vocabulary": 200}
    gpt2 = deviations(make({"name": "gpt2", **options}, 0))
    llama = deviations(make({"name": "llama_60m", **options, "hidden": 100}, 0))
    benchmark = deviations(make({"name": "nanogpt_162m", **options}, 0))
    for found, part, std in [
        (gpt2, "up.weight", 0.02),
        (gpt2, "position.weight", 0.02),
        (gpt2, "down.weight", 0.01),
        (gpt2, "proj.weight", 0.01),
        (llama, "down.weight", 0.02),
        (llama, "head.weight", 0.02),
        (benchmark, "embed.weight", 1.0),
        (benchmark, "q.weight", (0.33 / 96) ** 0.5),
        (benchmark, "up.weight", (0.33 / 96) ** 0.5),
        (benchmark, "down.weight", 0.0),
        (benchmark, "head.weight", 0.0),
    ]:
        values = [value for name, value in found.items() if name.endswith(part)]
        assert values == pytest.approx([std] * len(values), rel=0.05), part
        assert values


@pytest.mark.parametrize("name", TEXTS)
def test_no_token_sees_a_later_one(name):
    inputs, targets = batch(name)
    model = small(name)
    # the benchmark's begins with logits of zero
    step(emanest.AdamW(model.parameters(), lr=1e-2), model, inputs, targets, 2)
    changed = inputs.clone()
    changed[:, 5] = (changed[:, 5] + 1) % MODELS[name].small["vocabulary"]
    with torch.no_grad():
        moved = (model(inputs) - model(changed)).abs().amax((0, 2))
    assert moved[:5].tolist() == [0] * 5
    assert (moved[5:] > 1e-6).all()


def test_rotary_positions_turn_pairs_as_complex_numbers():
    x = torch.randn(2, 6, 3, 8, dtype=torch.float64)
    rates = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turns = torch.polar(torch.ones(6, 4).double(), torch.outer(torch.arange(6).double(), rates))
    expected = torch.complex(x[..., :4], x[..., 4:]) * turns[None, :, None]
    found = layers.rotate(x, layers.frequencies)
    expected = torch.cat((expected.real, expected.imag), -1)
    # angles are float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def attention(q, k, v, scale, rates):
    """Of one head (batch, context, size), pair by pair as complex numbers."""
    context, half = q.shape[1], q.shape[2] // 2
    turns = torch.polar(torch.ones(context, half), torch.outer(torch.arange(context), rates))
    q, k = (torch.complex(x[..., :half], x[..., half:]) * turns for x in (q, k))
    scores = scale * (q @ k.conj().mT).real
    later = torch.ones(context, context).triu(1).bool()
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ v


def unit(x, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def heads(function, *tensors):
    """The function of each of two heads, side by side."""
    parts = zip(*(x.chunk(2, -1) for x in tensors), strict=True)
    return torch.cat([function(*part) for part in parts], -1)


def test_nanogpt_is_that_of_the_papers_runs():
    """Layer by layer, from the weights; two layers, two heads of 8."""
    model = small("nanogpt_124m")
    rates = 10_000.0 ** (-torch.arange(4) / 4)
    inputs, _ = batch("nanogpt_124m")
    embed, *matrices = model.parameters()
    h = embed[inputs]
    for qkv, proj, up, down in (matrices[:4], matrices[4:]):
        q, k, v = (unit(h, 1e-6) @ qkv.T).chunk(3, -1)
        mixed = heads(lambda *x: attention(*x, 8**-0.5, rates), q, k, v)
        h = h + mixed @ proj.T / 2
        h = h + F.gelu(unit(h, 1e-6) @ up.T) @ down.T
    torch.testing.assert_close(model(inputs), unit(h, 1e-6) @ embed.T, rtol=1e-4, atol=1e-5)


def test_nanogpt_is_that_of_the_benchmark():
    """Layer by layer, from the weights; two layers, two heads of 8."""
    model = small("nanogpt_162m")
    with torch.no_grad():
        # away from zeros and ones
        for p in model.parameters():
            p.add_(0.5 * torch.randn_like(p))
    weight = dict(model.named_parameters())
    rates = torch.tensor([1.0, 1 / 1024, 0.0, 0.0])
    inputs, _ = batch("nanogpt_162m")

    def layer(x, name):
        return x @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    def norm(x, name):
        return unit(x, 1e-7) * weight[f"{name}.weight"]

    def attend(q, k, v):
        return attention(unit(q, 1e-7), unit(k, 1e-7), v, 0.12, rates)

    h = norm(weight["embed.weight"][inputs], "norm1")
    for block in ("blocks.0", "blocks.1"):
        x = norm(h, f"{block}.norm1")
        mixed = heads(attend, *(layer(x, f"{block}.{name}") for name in "qkv"))
        h = h + layer(mixed, f"{block}.proj")
        inner = layer(norm(h, f"{block}.norm2"), f"{block}.up").relu()
        h = h + layer(inner**2, f"{block}.down")
    logits = layer(norm(h, "norm2"), "head")
    expected = logits / (1 + (logits / 15) ** 2).sqrt()
    torch.testing.assert_close(model(inputs), expected, rtol=1e-3, atol=1e-3)


def test_llama_is_that_of_the_papers():
    """Layer by layer, from the weights; two layers, two heads of 8."""
    model = small("llama_60m")
    with torch.no_grad():
        # away from ones
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    weight = dict(model.named_parameters())
    rates = 10_000.0 ** (-torch.arange(4) / 4)
    inputs, _ = batch("llama_60m")

    def layer(x, name):
        return x @ weight[f"{name}.weight"].T

    def norm(x, name):
        return unit(x, 1e-6) * weight[f"{name}.weight"]

    h = weight["embed.weight"][inputs]
    for block in ("blocks.0", "blocks.1"):
        x = norm(h, f"{block}.norm1")
        q, k, v = (layer(x, f"{block}.{name}") for name in "qkv")
        mixed = heads(lambda *x: attention(*x, 8**-0.5, rates), q, k, v)
        h = h + layer(mixed, f"{block}.proj")
        x = norm(h, f"{block}.norm2")
        gate = layer(x, f"{block}.gate")
        h = h + layer(gate * gate.sigmoid() * layer(x, f"{block}.up"), f"{block}.down")
    expected = layer(norm(h, "norm"), "head")
    torch.testing.assert_close(model(inputs), expected, rtol=1e-3, atol=1e-4)


def test_half_of_the_benchmarks_pairs_do_not_turn():
    x = torch.randn(2, 6, 3, 8)
    found = layers.rotate(x, layers.half_of_frequencies)
    still, turned = [2, 3, 6, 7], [0, 1, 4, 5]
    assert torch.equal(found[..., still], x[..., still])
    assert (found[:, 1:, :, turned] != x[:, 1:, :, turned]).any(-1).all()


def test_rotary_positions_keep_their_precision_in_a_rounded_model():
    x = torch.randn(1, 300, 1, 8)
    found = layers.rotate(x.bfloat16(), layers.frequencies)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), layers.rotate(x, layers.frequencies), rtol=0.02, atol=0.02
    )


def test_logits_of_the_benchmark_stay_within_15():
    model = small("nanogpt_162m")
    with torch.no_grad():
        model.head.weight.normal_(std=100.0)
        logits = model(batch("nanogpt_162m")[0])
    assert 14 < logits.abs().max() <= 15


@pytest.mark.parametrize("name", TEXTS)
def test_all_weights_are_trained_and_matrices_of_blocks_by_muon(name):
    model = small(name)
    groups = emanest.split_params(model, model.split_rules, verbose=False)
    inner = {n for g in groups if g.get("base") != "adamw" for n, _ in g["params"]}
    assert inner == {
        n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2
    }
    assert {n for g in groups if g.get("split") == 3 for n, _ in g["params"]} == {
        n for n in inner if "qkv" in n
    }
    step(emanest.Muon(groups, lr=0.01), model, *batch(name), 2)
    loss(model, *batch(name)).backward()
    assert all(p.grad.any() for p in model.parameters())
