# SPDX-License-Identifier: MIT
"""What ``split_params`` makes of recurrent, state space, gated and sparse layers, and of heads."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import helpers
from emanest import Muon, split_params
from helpers import bits, gradients
from test_split import reasons

WIDTH, HEADS, GROUPS, SIZE = 32, 4, 2, 8


def linear(columns, rows):
    return nn.Linear(columns, rows, bias=False)


def module(**children):
    """A module of a class of its own with some parameters, modules and attributes."""
    made = type("Own", (nn.Module,), {})()
    for name, child in children.items():
        child = nn.Parameter(child) if isinstance(child, torch.Tensor) else child
        setattr(made, name, child)
    return made


def in_blocks(block):
    """Nothing in a block is an output layer."""
    return module(blocks=nn.ModuleList([block]))


def mamba():
    """As in state-spaces/mamba: names, shapes and layers."""
    return module(
        in_proj=linear(WIDTH, 4 * WIDTH),
        conv1d=nn.Conv1d(2 * WIDTH, 2 * WIDTH, 4, groups=2 * WIDTH),
        x_proj=linear(2 * WIDTH, 2 + 2 * 16),
        dt_proj=nn.Linear(2, 2 * WIDTH),
        A_log=torch.ones(2 * WIDTH, 16),
        D=torch.ones(2 * WIDTH),
        dt_bias=torch.ones(2 * WIDTH),
        out_proj=linear(2 * WIDTH, WIDTH),
    )


def rwkv():
    """RWKV-5's and 6's mixtures over time, and the matrices beside them."""
    return module(
        time_maa_x=torch.ones(1, 1, WIDTH),
        time_mix_k=torch.ones(2, WIDTH),
        time_decay=torch.ones(HEADS, SIZE),
        time_faaaa=torch.ones(HEADS, SIZE),
        time_maa_w1=torch.ones(WIDTH, 20),
        time_decay_w2=torch.ones(8, WIDTH),
        receptance=linear(WIDTH, WIDTH),
    )


class MoEGate(nn.Module):
    """A router that owns its matrix, as in Transformers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, WIDTH))


class Conv1D(nn.Module):
    """As in Transformers: a linear layer with (inputs, outputs)."""

    def __init__(self, columns, rows):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, columns))
        self.bias = nn.Parameter(torch.zeros(columns))


def attention(name, rows, **attributes):
    return module(**{name: linear(WIDTH, rows)}, **attributes)


GROUPED = (HEADS + 2 * GROUPS) * SIZE
NUMBERS = {"num_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": SIZE}
CONFIG = SimpleNamespace(num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=SIZE)
APART = f"fused: split=({HEADS * SIZE}, {GROUPS * SIZE}, {GROUPS * SIZE})"
VECTOR, ELEMENT = ("adamw", "vector"), ("adamw", "per element")
MATRIX, FUSED, ROUTER = (("muon", f"matrix{what}") for what in ("", ", fused?", ", router?"))

# name -> a layer, and what becomes of its parameters
LAYERS = {
    "mamba": (
        mamba,
        {
            "in_proj.weight": FUSED,
            "conv1d.weight": ("adamw", "depthwise"),
            "conv1d.bias": VECTOR,
            "x_proj.weight": MATRIX,
            "dt_proj.weight": MATRIX,
            "dt_proj.bias": VECTOR,
            "A_log": ELEMENT,
            "D": VECTOR,
            "dt_bias": VECTOR,
            "out_proj.weight": MATRIX,
        },
    ),
    "rwkv": (
        rwkv,
        {
            "time_maa_x": VECTOR,
            "time_mix_k": ELEMENT,
            "time_decay": ELEMENT,
            "time_faaaa": ELEMENT,
            "time_maa_w1": MATRIX,
            "time_decay_w2": MATRIX,
            "receptance.weight": MATRIX,
        },
    ),
    "norms of images": (
        lambda: module(norm=nn.LayerNorm((4, 4)), rms=nn.RMSNorm((4, 4)), mix=linear(4, 4)),
        {
            "norm.weight": ELEMENT,
            "norm.bias": ("adamw", "bias"),
            "rms.weight": ELEMENT,
            "mix.weight": MATRIX,
        },
    ),
    "recurrent layers": (
        lambda: module(
            lstm=nn.LSTM(8, 8, bias=False, proj_size=4),
            gru=nn.GRUCell(8, 8, bias=False),
            rnn=nn.RNN(8, 8, bias=False),
        ),
        {
            "lstm.weight_ih_l0": ("muon", "fused: split=4"),
            "lstm.weight_hh_l0": ("muon", "fused: split=4"),
            "lstm.weight_hr_l0": MATRIX,
            "gru.weight_ih": ("muon", "fused: split=3"),
            "gru.weight_hh": ("muon", "fused: split=3"),
            "rnn.weight_ih_l0": MATRIX,
            "rnn.weight_hh_l0": MATRIX,
        },
    ),
    "gates and their inputs": (
        lambda: module(
            gate_up_proj=linear(WIDTH, 48), w12=linear(WIDTH, 48), w13=linear(WIDTH, 47),
            gate_proj=linear(WIDTH, 48), Wi=linear(WIDTH, 48),
        ),
        {
            "gate_up_proj.weight": ("muon", "fused: split=2"),
            "w12.weight": ("muon", "fused: split=2"),
            "w13.weight": FUSED,
            "gate_proj.weight": MATRIX,
            "Wi.weight": FUSED,
        },
    ),
    "routers": (
        lambda: module(
            gate=MoEGate(), router=linear(WIDTH, 8), gating=linear(8, 8),
            gate_up_proj=torch.ones(8, WIDTH, 2 * WIDTH), down_proj=torch.ones(8, WIDTH, WIDTH),
        ),
        {
            "gate.weight": ROUTER,
            "router.weight": ROUTER,
            "gating.weight": MATRIX,
            "gate_up_proj": ("muon", "experts, fused?"),
            "down_proj": ("muon", "experts"),
        },
    ),
    "thirds": (
        lambda: module(**{n: linear(WIDTH, 3 * WIDTH) for n in ("qkv", "Wqkv", "c_attn", "wqkv",
                                                                "query_key_value")}),
        {
            "qkv.weight": ("muon", "fused: split=3"),
            "Wqkv.weight": ("muon", "fused: split=3"),
            "c_attn.weight": ("muon", "fused: split=3"),
            # in an order that differs from model to model
            "wqkv.weight": FUSED,
            "query_key_value.weight": FUSED,
        },
    ),
    "unknown heads": (lambda: attention("qkv_proj", GROUPED), {"qkv_proj.weight": FUSED}),
    "known heads": (
        lambda: attention("qkv_proj", GROUPED, **NUMBERS), {"qkv_proj.weight": ("muon", APART)}
    ),
    "heads of a configuration": (
        lambda: attention("qkv_proj", GROUPED, config=CONFIG), {"qkv_proj.weight": ("muon", APART)}
    ),
    "heads that do not add up": (
        lambda: attention("qkv_proj", GROUPED + 1, **NUMBERS), {"qkv_proj.weight": FUSED}
    ),
    "heads that are no numbers": (
        lambda: attention("qkv_proj", GROUPED, **{**NUMBERS, "num_key_value_heads": None}),
        {"qkv_proj.weight": FUSED},
    ),
    "a linear layer of columns": (
        lambda: module(c_attn=Conv1D(3 * WIDTH, WIDTH)),
        {"c_attn.weight": ("muon", "transposed"), "c_attn.bias": VECTOR},
    ),
    "adapters": (
        lambda: module(q=module(lora_A=nn.ModuleDict({"default": linear(WIDTH, 4)}),
                                lora_B=nn.ParameterDict({"default": torch.ones(WIDTH, 4)}))),
        {"q.lora_A.default.weight": ("muon", "low rank"), "q.lora_B.default": ("muon", "low rank")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_is_known(layer, capsys):
    made, expected = LAYERS[layer]
    found = reasons(in_blocks(made()), capsys)
    assert found == {f"blocks.0.{name}": what for name, what in expected.items()}


def test_what_is_printed_reaches_the_groups():
    model = in_blocks(attention("qkv_proj", GROUPED, **NUMBERS))
    (group,) = split_params(model, verbose=False)
    assert group["split"] == (HEADS * SIZE, GROUPS * SIZE, GROUPS * SIZE)
    (group,) = split_params(model, {"qkv": {"split": HEADS + 2 * GROUPS}}, verbose=False)
    assert group["split"] == HEADS + 2 * GROUPS


def test_gates_of_torch_are_stepped_one_by_one():
    lstm = nn.LSTM(8, 6, bias=False)
    optimizer = Muon(split_params(lstm, verbose=False), 0.05)
    names = [name for name, _ in lstm.named_parameters()]
    gates = [nn.Parameter(g.clone()) for p in lstm.parameters() for g in p.detach().chunk(4)]
    alone = Muon(gates, 0.05)
    for t in range(3):
        for p, g in zip(lstm.parameters(), gradients([*lstm.parameters()], t), strict=True):
            p.grad = g
        for gate, g in zip(
            gates, [g for p in lstm.parameters() for g in p.grad.chunk(4)], strict=True
        ):
            gate.grad = g.clone()
        optimizer.step()
        alone.step()
    assert names == ["weight_ih_l0", "weight_hh_l0"]
    found = [gate for p in lstm.parameters() for gate in p.detach().chunk(4)]
    assert [bits(a) for a in found] == [bits(b) for b in gates]


def test_heads_are_stepped_one_by_one():
    """Of grouped queries, and of GPT-NeoX's (head, (query, key, value), head size)."""
    for count in (HEADS + 2 * GROUPS, 3 * HEADS):
        whole = nn.Parameter(torch.randn(count * SIZE, WIDTH))
        heads = [nn.Parameter(each.clone()) for each in whole.detach().split(SIZE)]
        one, many = Muon([whole], 0.05, split=count), Muon(heads, 0.05)
        for t in range(3):
            helpers.set_gradients([whole], t)
            for head, g in zip(heads, whole.grad.split(SIZE), strict=True):
                head.grad = g.clone()
            one.step()
            many.step()
        assert bits(whole) == bits(torch.cat([head.detach() for head in heads]))
