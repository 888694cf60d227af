# SPDX-License-Identifier: MIT
"""The lab's GPT-2 and Llama beside those of transformers, with the same weights."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from examples.lab.models import make

SIZES = {"layers": 2, "heads": 4, "width": 32, "vocabulary": 50}


def peer_of_gpt2():
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 12, "vocab_size": 50}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def peer_of_llama():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    sizes |= {"intermediate_size": 44, "vocab_size": 50, "rms_norm_eps": 1e-6}
    return LlamaForCausalLM(LlamaConfig(**sizes))


# our names -> theirs; in {} the number of the block
GPT2_NAMES = {
    "embed": "transformer.wte",
    "position": "transformer.wpe",
    "norm": "transformer.ln_f",
    "blocks.{}.norm1": "transformer.h.{}.ln_1",
    "blocks.{}.norm2": "transformer.h.{}.ln_2",
    "blocks.{}.qkv": "transformer.h.{}.attn.c_attn",
    "blocks.{}.proj": "transformer.h.{}.attn.c_proj",
    "blocks.{}.up": "transformer.h.{}.mlp.c_fc",
    "blocks.{}.down": "transformer.h.{}.mlp.c_proj",
}
LLAMA_NAMES = {
    "embed": "model.embed_tokens",
    "head": "lm_head",
    "norm": "model.norm",
    "blocks.{}.norm1": "model.layers.{}.input_layernorm",
    "blocks.{}.norm2": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.q": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.k": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.v": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.proj": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.down": "model.layers.{}.mlp.down_proj",
}


@torch.no_grad()
def take_over(model, peer, names):
    """Give the peer our weights: all of ours, and all of its own."""
    theirs, ours = dict(peer.named_parameters()), dict(model.named_parameters())
    for text, other in names.items():
        for block in range(2) if "{}" in text else [0]:
            for part in ("weight", "bias"):
                value = ours.pop(f"{text.format(block)}.{part}", None)
                if value is not None:
                    # away from zeros and ones
                    value.add_(0.1 * torch.randn_like(value))
                    target = theirs.pop(f"{other.format(block)}.{part}")
                    # GPT-2's layers there are the other way round
                    turned = "c_" in other and part == "weight"
                    target.copy_(value.T if turned else value)
    assert not ours
    assert not theirs


@pytest.mark.parametrize(
    ("settings", "make_peer", "names"),
    [
        ({"name": "gpt2", **SIZES, "context": 12}, peer_of_gpt2, GPT2_NAMES),
        ({"name": "llama_60m", **SIZES, "hidden": 44}, peer_of_llama, LLAMA_NAMES),
    ],
    ids=["gpt2", "llama"],
)
def test_logits_are_those_of_transformers(settings, make_peer, names):
    model, peer = make(settings, 0), make_peer().eval()
    take_over(model, peer, names)
    tokens = torch.randint(50, (3, 12))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), peer(tokens).logits, rtol=1e-4, atol=1e-5)
