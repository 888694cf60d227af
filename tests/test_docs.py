# SPDX-License-Identifier: MIT
"""What the documentation shows runs, and the tests that it names exist."""

import ast
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

import emanest

ROOT = Path(__file__).parents[1]
# whose blocks need frameworks is run with them, in tests/integrations
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/frameworks.md"})
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`(?:tests/)?(test_\w+)(?:\.py)?(?:::(test_\w+))?`")


class Model(nn.Sequential):
    """Takes and returns vectors; has hidden matrices, vectors and statistics."""

    def __init__(self):
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
        super().__init__(*layers)


def names(page):
    """What a reader has before the first block of a page."""
    model = Model()
    batches = [torch.randn(6, 4) for _ in range(3)]
    pairs = [(batch, torch.randn(6, 2)) for batch in batches]
    first, *others = model.parameters()
    opt = emanest.AdamW(model.parameters(), lr=1e-2, lookahead=emanest.EMANesterov())
    for batch in batches:
        model(batch).mean().backward()
        opt.step()
        opt.zero_grad()
    return {
        "torch": torch,
        "emanest": emanest,
        "Model": Model,
        "model": model,
        "loader": batches if page.name == "README.md" else pairs,
        "loss_fn": nn.functional.mse_loss,
        "validate": lambda model: model(batches[0]),
        "validation_loss": lambda model: model(batches[0]).square().mean(),
        "log": lambda figures: None,
        "embeddings": [first],
        "others": others,
        "opt": opt,
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@mock.patch.dict(emanest.OPTIMIZERS)  # into which a page may put one of the reader's own
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    """One after another, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    found = names(page)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for match in BLOCK.finditer(page.read_text()):
            line = page.read_text()[: match.start(1)].count("\n")
            exec(compile("\n" * line + match[1], str(page), "exec"), found)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page):
    for module, name in TEST.findall(page.read_text()):
        paths = [*(ROOT / "tests").rglob(f"{module}.py")]
        assert paths, module
        functions = [
            node.name
            for path in paths
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef)
        ]
        assert not name or name in functions, f"{module}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_documentation_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]*)", page.read_text()):
        assert not target or (page.parent / target).exists(), target
