# SPDX-License-Identifier: MIT
"""The table that ``split_params`` prints: one line for what is alike, once, in one process."""

import copy
import gc
import re
import weakref

import pytest
import torch.distributed as dist
from torch import nn

from emanest import split_params
from emanest.tools import listing
from emanest.tools.listing import Row, table
from ranks import ranks
from test_split import WIDTH, Model


def printed(model, capsys, **options):
    split_params(model, **options)
    return capsys.readouterr().out


def names(*rows):
    """The first two cells of each line, of parameters that differ in nothing but their names."""
    lines = table([Row(row, (2, 2), "muon", "matrix") for row in rows]).splitlines()[1:-1]
    return [tuple(line.split()[:2]) for line in lines]


def test_parameters_that_differ_in_numbers_are_one_line(capsys):
    assert printed(Model(), capsys).splitlines() == [
        "parameter                  tensors  shape   to     because",
        "pos                        1        4x8     adamw  embedding",
        "temperature                1        scalar  adamw  vector",
        "embed.weight               1        32x8    adamw  embedding",
        "blocks.{0..1}.norm.weight  2        8       adamw  vector",
        "blocks.{0..1}.norm.bias    2        8       adamw  vector",
        "blocks.{0..1}.up.weight    2        16x8    muon   matrix",
        "blocks.{0..1}.up.bias      2        16      adamw  vector",
        "blocks.{0..1}.down.weight  2        8x16    muon   matrix",
        "head.weight                1        32x8    adamw  output layer",
        "adamw: 10 tensors, 609 values; muon: 4 tensors, 512 values",
    ]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH) for n in "qkvo"})
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)


def test_a_model_of_48_layers_takes_20_lines(capsys):
    model = nn.Module()
    model.embed, model.head = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, 64, bias=False)
    model.layers = nn.ModuleList(Layer() for _ in range(48))
    lines = printed(model, capsys).splitlines()
    assert len(lines) == 18
    assert "layers.{0..47}.attn.q.weight      48       8x8    muon   matrix" in lines
    assert len(printed(model, capsys, verbose="all").splitlines()) == 48 * 16 + 2 + 2


def test_only_names_that_exist_are_meant():
    assert names("a.0.w", "a.2.w", "a.3.w", "a.4.w") == [("a.{0,2..4}.w", "4")]
    assert names("a.0.b1", "a.1.b1", "a.0.b2", "a.1.b2") == [("a.{0..1}.b{1..2}", "4")]
    # not all combinations
    assert names("a.0.b1", "a.1.b2") == [("a.0.b1", "2x2"), ("a.1.b2", "2x2")]
    assert names("a.0.b1", "a.1.b1", "a.0.b2") == [("a.{0..1}.b1", "2"), ("a.0.b2", "1")]
    assert names("a.9", "a.10", "a.08") == [("a.{08,9..10}", "3")]
    assert names("w", "w1", "w1.2", "v1", "v2") == [
        ("w", "1"), ("w1", "1"), ("w1.2", "1"), ("v{1..2}", "2")
    ]  # fmt: skip


def test_every_name_is_in_the_table_once():
    """Patterns written out are the names, whatever they are."""
    rows = [f"x{i}.y{j}.z{k}" for i in range(4) for j in range(3) for k in range(3) if i * j != k]
    found = []
    for pattern, count in names(*rows):
        meant = expanded(pattern)
        assert len(meant) == int(count)
        found += meant
    assert sorted(found) == sorted(rows)


def expanded(pattern):
    """All names that a pattern stands for."""
    match = re.search(r"\{([^}]*)\}", pattern)
    if match is None:
        return [pattern]
    values = []
    for run in match[1].split(","):
        first, _, last = run.partition("..")
        values += range(int(first), int(last or first) + 1)
    ends = pattern[: match.start()], pattern[match.end() :]
    return [name for value in values for name in expanded(f"{value}".join(ends))]


def test_what_is_treated_otherwise_has_a_line_of_its_own(capsys):
    model = Model()
    model.blocks[1].up = nn.Linear(WIDTH, 3 * WIDTH)
    lines = printed(model, capsys, rules={r"0\.down": {"lr": 0.5}}).splitlines()
    starts = [line.split()[0] for line in lines]
    assert {"blocks.0.up.weight", "blocks.1.up.weight", "blocks.0.down.weight"} <= {*starts}


def test_a_table_is_printed_once_for_a_model(capsys):
    model = Model()
    assert printed(model, capsys)
    assert printed(model, capsys) == ""
    # another one, and that of another model
    changed = printed(model, capsys, rules={"head": "muon"})
    assert "rule 'head'" in changed
    assert printed(model, capsys, rules={"head": "muon"}) == ""
    assert printed(copy.deepcopy(model), capsys)
    assert printed(model, capsys, verbose=False) == ""
    assert printed(model, capsys, verbose="all") == printed(model, capsys, verbose="all") != ""


def test_no_model_is_kept(capsys):
    model = Model()
    printed(model, capsys)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("verbose", [2, "yes", None])
def test_other_ways_are_refused(verbose):
    with pytest.raises(ValueError, match=r"verbose must be one of \[True, False, 'all'\], got"):
        split_params(Model(), verbose=verbose)


@pytest.mark.parametrize(("rank", "lines"), [("0", 11), ("1", 0)])
def test_a_launched_process_but_the_first_is_silent(rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    assert len(printed(Model(), capsys).splitlines()) == lines


def lines_here():
    """How many lines a process prints."""
    texts = []
    listing.print = texts.append
    try:
        split_params(Model(), verbose="all")
    finally:
        del listing.print
    return dist.get_rank(), len(texts)


def test_one_of_several_processes_prints():
    assert ranks()(2, lines_here) == [(0, 1), (1, 0)]
