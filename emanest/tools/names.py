# SPDX-License-Identifier: MIT
"""What the names of parameters and layers say about them."""

import re

# words in the name of a parameter that no layer of torch's owns
EMBEDDING_WORD = re.compile(r"emb.*|.*emb(ed(ding)?s?)?|pos|position.*|tokens?|wte|wpe|cls")
BIAS_WORD = re.compile(r".*bias(es)?")
HEAD_NAME = re.compile(r"(^|\.)(lm_head|head|heads\.\d+|classifier|unembed|output_projection)$")
# of layers that the model itself has, not one of its blocks; those of the second kind if no linear
# layer comes after them, of the third no layer at all
TOP_NAME = re.compile(r"\w+_head|head_\w+|(to_)?logits")
LAST_NAME = re.compile(r"fc|fc_?out|out|output|out_proj")
LAST_CONVOLUTION = re.compile(r"conv_?out|out_?conv|outc?|output")
# what acts on values one by one though it has two dimensions: Mamba's and S4's A, RWKV's time
ELEMENT_WORD = re.compile(
    r"A_logs?|log_A(_real|_imag)?|A_(real|imag)|(log|inv)_dt|dt_bias"
    r"|time_(decay|first|faaaa)|time_(mix|maa)_[a-z]+"
)
# linear layers of these names have queries, keys and values, or gates and their inputs, one below
# the other
QKV_NAME = re.compile(r"qkv|Wqkv|to_qkv|qkv_proj|in_proj_qkv|c_attn")
GATED_NAME = re.compile(r"gate_up(_proj)?|w1_?w3|w12|w13")
# those of these names may, in an order that is not known
FUSED_NAME = re.compile(
    r"(.*_)?w?qkv(_.*)?|query_key_value|c_attn|(to_)?kv(_proj|_b_proj)?|Wkv"
    r"|(gate_up|up_gate)(_.*)?|w1_?w3|w12|w13|in_proj|Wi",
    re.IGNORECASE,
)
ROUTER_NAME = re.compile(r"(.*_)?(router|gate|gating|switch)|wg")
ADAPTER_NAME = re.compile(r"lora_.*")
# under which ``nn.utils.parametrize`` keeps what a parameter is made of
PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.(\w+)\.original\d*$")
