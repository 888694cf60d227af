# SPDX-License-Identifier: MIT
"""What ``split_params`` makes of shared modules, of outputs, and of numbers of heads."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from emanest import split_params
from test_split import Block, reasons
from test_split_kinds import in_blocks, linear, module

OUTPUT, WIDE, LAST = (("adamw", why) for why in ("output layer", "wide, output?", "last, output?"))
MATRIX, TIED = ("muon", "matrix"), ("adamw", "tied")
FUSED = "muon", "matrix, fused?"


def weights(model, capsys):
    """Matrix or kernel -> (where it goes, why)."""
    found = reasons(model, capsys)
    return {
        name.removesuffix(".weight"): found[name]
        for name, p in model.named_parameters()
        if p.dim() > 1
    }


# ---- shared modules -----------------------------------------------------------------------------


def listed_and_run(order, count=2):
    blocks = [Block() for _ in range(count)]
    children = {"blocks": nn.ModuleList(blocks), "run": nn.Sequential(*blocks)}
    return module(**{name: children[name] for name in order})


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("order", [("blocks", "run"), ("run", "blocks")])
def test_modules_of_several_names_are_not_tied_and_blocks_by_any(order, count, capsys):
    assert weights(listed_and_run(order, count), capsys) == {
        f"{order[0]}.{i}.{layer}": MATRIX for i in range(count) for layer in ("up", "down")
    }


def test_one_block_that_is_run_four_times_is_a_block(capsys):
    model = module(embed=nn.Embedding(9, 8), layers=nn.ModuleList([Block()] * 4))
    found = weights(model, capsys)
    assert found == {
        "embed": ("adamw", "embedding"),
        "layers.0.up": MATRIX,
        "layers.0.down": MATRIX,
    }


def test_tied_is_what_several_modules_or_attributes_hold(capsys):
    model = module(a=linear(8, 8), b=linear(8, 8), own=torch.ones(4, 8), inner=linear(8, 8))
    model.end = linear(8, 3)
    model.b.weight, model.again = model.a.weight, model.own
    assert weights(model, capsys) == {"own": TIED, "a": TIED, "inner": MATRIX, "end": LAST}


def test_rules_are_searched_in_all_names_of_a_shared_module():
    (group, _) = split_params(
        listed_and_run(("blocks", "run")), {r"run\.1": "adamw"}, verbose=False
    )
    assert [n for n, _ in group["params"]] == ["blocks.0.up.weight", "blocks.0.down.weight"]


def test_a_shared_head_is_known_by_any_of_its_names(capsys):
    head = linear(8, 3)
    assert weights(
        module(words=head, lm_head=head, in_=linear(8, 8), after=linear(8, 8)), capsys
    ) == {
        "words": OUTPUT,
        "in_": MATRIX,
        "after": LAST,
    }


# ---- outputs ------------------------------------------------------------------------------------


def named(**children):
    return nn.Sequential(OrderedDict(children))


def convolution(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, bias=False)


ATTENTION = {"a.in_proj_weight": ("muon", "fused: split=3"), "a.out_proj": MATRIX}
# a model -> what its matrices and kernels are
OUTPUTS = {
    "by order alone": (
        lambda: module(inner=linear(8, 8), end=linear(8, 3)), {"inner": MATRIX, "end": LAST}
    ),
    "by width": (
        lambda: module(table=nn.Embedding(9, 8), words=linear(8, 9), inner=linear(8, 8),
                       end=linear(8, 8)),
        {"table": ("adamw", "embedding"), "words": WIDE, "inner": MATRIX, "end": LAST},
    ),
    "attention is none by order": (
        lambda: module(inner=linear(8, 8), a=nn.MultiheadAttention(8, 2, bias=False)),
        {"inner": MATRIX, **ATTENTION},
    ),
    "attention is none by width": (
        lambda: module(table=nn.Embedding(8, 8), a=nn.MultiheadAttention(8, 2, bias=False)),
        {"table": ("adamw", "embedding"), **ATTENTION},
    ),
    "several heads": (
        lambda: module(policy_head=linear(8, 5), value_head=linear(8, 2), body=linear(8, 8),
                       head_dist=linear(8, 3), end=linear(8, 2)),
        {"policy_head": OUTPUT, "value_head": OUTPUT, "body": MATRIX, "head_dist": OUTPUT,
         "end": LAST},
    ),
    "heads of several layers": (
        lambda: module(value_head=nn.Sequential(linear(8, 8), nn.ReLU(), linear(8, 2)),
                       classifier=nn.Sequential(linear(8, 8), linear(8, 2), nn.Dropout()),
                       fc=linear(8, 3)),
        {"value_head.0": MATRIX, "value_head.2": OUTPUT, "classifier.0": MATRIX,
         "classifier.1": OUTPUT, "fc": OUTPUT},
    ),
    "fc, with kernels after it": (
        lambda: module(fc=linear(8, 3), kernel=convolution(8, 8)),
        {"fc": OUTPUT, "kernel": ("muon", "kernel")},
    ),
    "fc, with linear layers after it": (
        lambda: module(fc=linear(8, 8), out=linear(8, 3)), {"fc": MATRIX, "out": OUTPUT}
    ),
    "fc in a wrapper": (
        lambda: nn.Sequential(module(module=module(inner=linear(8, 8), fc=linear(8, 3)))),
        {"0.module.inner": MATRIX, "0.module.fc": OUTPUT},
    ),
    "out of a block": (
        lambda: module(blocks=nn.ModuleList([module(inner=linear(8, 8), out=linear(8, 8))])),
        {"blocks.0.inner": MATRIX, "blocks.0.out": MATRIX},
    ),
    "conv_out": (
        lambda: module(time=linear(8, 8), inner=convolution(8, 8), conv_out=convolution(8, 3)),
        {"time": MATRIX, "inner": ("muon", "kernel"), "conv_out": OUTPUT},
    ),
    "out as a sequence": (
        lambda: module(inner=convolution(8, 8), out=nn.Sequential(nn.SiLU(), convolution(8, 4))),
        {"inner": ("muon", "kernel"), "out.1": OUTPUT},
    ),
    "a last convolution of any name": (
        lambda: named(time=linear(8, 8), inner=convolution(8, 8), colours=convolution(8, 3)),
        {"time": MATRIX, "inner": ("muon", "kernel"), "colours": LAST},
    ),
    "a convolution that is not the last": (
        lambda: module(conv_out=convolution(8, 3), inner=convolution(3, 8), next=convolution(8, 8)),
        {"conv_out": ("muon", "kernel"), "inner": ("adamw", "input layer"),
         "next": ("muon", "kernel")},
    ),
    "a last convolution that reads the input": (
        lambda: module(inner=linear(8, 8), end=linear(8, 3), stem=convolution(3, 4)),
        {"inner": MATRIX, "end": LAST, "stem": ("adamw", "input layer")},
    ),
    "a last convolution to many channels": (
        lambda: module(end=linear(8, 8), inner=convolution(8, 8)),
        {"end": LAST, "inner": ("muon", "kernel")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_known_or_said_to_be_guessed(name, capsys):
    model, expected = OUTPUTS[name]
    assert weights(model(), capsys) == expected


# ---- heads --------------------------------------------------------------------------------------


def attention(columns, rows, **numbers):
    return module(qkv_proj=linear(columns, rows), **numbers)


def parts(*rows):
    return "muon", f"fused: split={rows[0] if len(rows) == 1 else rows}"


# layer -> what its fused projection is
HEADS = {
    "before three rows for each column": (
        lambda: attention(64, 192, num_heads=16, num_kv_heads=4, head_dim=8), parts(128, 32, 32)
    ),
    "without their size": (lambda: attention(64, 96, n_head=8, n_kv_head=2), parts(64, 16, 16)),
    "without their size, of as many": (
        lambda: attention(64, 192, n_head=8, n_kv_head=8), parts(3)
    ),
    "of queries alone": (lambda: attention(64, 192, n_head=8), parts(3)),
    "of queries alone, and their size": (
        lambda: attention(64, 96, n_head=4, head_dim=8), parts(3)
    ),
    "of queries alone, with other rows": (lambda: attention(64, 96, n_head=8), FUSED),
    "in a configuration": (
        lambda: attention(64, 96, config=SimpleNamespace(num_attention_heads=8, num_kv_heads=2)),
        parts(64, 16, 16),
    ),
    "around a dict of layers": (
        lambda: module(layers=nn.ModuleDict({"qkv": linear(64, 96)}), n_head=8, n_kv_head=2),
        parts(64, 16, 16),
    ),
    "that contradict three rows for each column": (
        lambda: attention(64, 192, num_heads=16, head_dim=8), FUSED
    ),
    "that contradict the rows": (
        lambda: attention(64, 192, num_heads=16, num_kv_heads=4, head_dim=16), FUSED
    ),
    "that do not divide the rows": (lambda: attention(64, 192, n_head=5, n_kv_head=2), FUSED),
    "of keys alone": (lambda: attention(64, 192, num_kv_heads=4), FUSED),
    "not at all": (lambda: attention(64, 192, head_dim=8), parts(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_numbers_of_heads_are_asked_first(name, capsys):
    layer, expected = HEADS[name]
    (found,) = weights(in_blocks(layer()), capsys).values()
    assert found == expected
