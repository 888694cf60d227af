# SPDX-License-Identifier: MIT
"""The documentation's code as files for type checkers, which say where on a page a line is."""

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)

# what a reader has before the first block, as tests/test_docs.py makes it; a variable without an
# annotation may become something else on the page
READER = """\
from collections.abc import Mapping, Sequence
from typing import Any

import emanest
import torch
from torch import nn


class Model(nn.Sequential):
    pass


def validate(model: nn.Module) -> None: ...
def log(figures: Mapping[str, float]) -> None: ...


def validation_loss(model: nn.Module) -> torch.Tensor:
    return torch.zeros(())


model = Model()
loss_fn = nn.MSELoss()
embeddings: list[nn.Parameter] = []
others: list[nn.Parameter] = []
opt = emanest.AdamW(model.parameters(), lookahead=emanest.EMANesterov())
"""
BATCHES = "loader: Sequence[torch.Tensor] = []\n"
PAIRS = "loader: Sequence[tuple[torch.Tensor, torch.Tensor]] = []\n"
# what the sections of docs/frameworks.md have besides, as tests/integrations/test_docs.py
FRAMEWORKS = """\
import lightning
import lightning.pytorch
from torch.utils.data import DataLoader, Dataset
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig
from transformers import Trainer, TrainingArguments

optimizer = emanest.AdamW(model.parameters(), lookahead=emanest.EMANesterov())
arguments = TrainingArguments()
module = lightning.LightningModule()
callbacks: list[lightning.Callback] = []
options: dict[str, Any] = {}
train_dataset: Dataset[Any] = Dataset()
eval_dataset: Dataset[Any] = Dataset()
train_loader: DataLoader[Any] = DataLoader(train_dataset)
validation_loader: DataLoader[Any] = DataLoader(eval_dataset)


def make_net() -> nn.Module:
    return nn.Sequential()


"""
NEEDED = ("accelerate", "lightning", "timm", "torchtitan", "transformers")


class Unit(NamedTuple):
    """Code that is read from top to bottom: a page, of docs/frameworks.md a section."""

    path: Path
    preamble: str
    begin: int = 0  # characters of the page
    end: int | None = None
    needs: tuple[str, ...] = ()

    def code(self):
        """The code below its preamble, with an empty line for every other line of the page."""
        text = self.path.read_text()
        lines = [""] * (text.count("\n") + 1)
        for match in BLOCK.finditer(text, self.begin, len(text) if self.end is None else self.end):
            first = text.count("\n", 0, match.start(1))
            block = match[1].splitlines()
            lines[first : first + len(block)] = block
        return self.preamble + "\n".join([*lines, ""])

    def line(self, line):
        """The number of a line on the page; 0 and below is the preamble."""
        return line - self.preamble.count("\n")

    def text(self, line):
        """A line on the page."""
        return self.path.read_text().splitlines()[line - 1]

    def missing(self):
        """Frameworks that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def units():
    """Name of a module -> what is in it."""
    found = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text, name = path.read_text(), f"{path.stem.lower()}_page"
        if path.name == "frameworks.md":
            begins = [match.start() for match in SECTION.finditer(text)]
            for i, (begin, end) in enumerate(zip(begins, [*begins[1:], None], strict=True)):
                if BLOCK.search(text[begin:end]):
                    preamble = READER + PAIRS + FRAMEWORKS
                    found[f"{name}_{i}"] = Unit(path, preamble, begin, end, NEEDED)
        elif BLOCK.search(text):
            found[name] = Unit(path, READER + (BATCHES if path.name == "README.md" else PAIRS))
    return found


UNITS = units()
