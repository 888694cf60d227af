# SPDX-License-Identifier: MIT
"""Real models of Transformers: what their layers are, and how fused ones come apart."""

import pytest
import torch
import transformers

from emanest import Muon, split_params

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64},
    **{"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "eos_token_id": 2}

# model -> its configuration, and for ends of names why their parameters go where they go
MODELS = {
    "Phi3": (
        GROUPED,
        {
            "qkv_proj.weight": "fused: split=(32, 16, 16)",
            "gate_up_proj.weight": "fused: split=2",
            "o_proj.weight": "matrix",
        },
    ),
    "GPT2": (GPT2, {"c_attn.weight": "transposed", "wpe.weight": "embedding"}),
    "GPTNeoX": (SIZES, {"query_key_value.weight": "matrix, fused?", "h_to_4h.weight": "matrix"}),
    "Mixtral": (
        {**GROUPED, "num_local_experts": 4},
        {
            "gate.weight": "matrix, router?",
            "gate_up_proj": "experts, fused?",
            "down_proj": "experts",
        },
    ),
    "Mamba": (
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 8},
        {
            "A_log": "per element",
            "conv1d.weight": "depthwise",
            "x_proj.weight": "matrix",
            "dt_proj.bias": "vector",
            "in_proj.weight": "matrix, fused?",
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_their_parameters_are_known_and_stepped(name, capsys):
    sizes, expected = MODELS[name]
    kind = "ForCausalLM" if hasattr(transformers, f"{name}ForCausalLM") else "LMHeadModel"
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, name + kind)(config)
    capsys.readouterr()
    groups = split_params(model, verbose="all")
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()[1:-1]]
    for end, why in expected.items():
        found = {line[3] for line in lines if line[0].endswith(end)}
        assert found == {why}
    optimizer = Muon(groups, 0.02)
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved >= {n for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n}
