# SPDX-License-Identifier: MIT
"""What a report is made of: sections with sentences, tables and figures, as Markdown."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Rows of text below a line that says what they are."""

    caption: str
    columns: tuple
    rows: list

    def __str__(self):
        return f"{self.caption}\n\n{grid(self.columns, self.rows)}"


class Figure(NamedTuple):
    """A figure: the finding as a sentence, and how it is drawn.

    Args:
        title: over the figure, and in its place where it cannot be seen.
        draw: returns a figure of matplotlib without that title.
    """

    title: str
    draw: Callable[[], Any]


@dataclasses.dataclass
class Section:
    """What the stored runs of an experiment say.

    Attributes:
        question: that the experiment asks.
        answer: sentences, or lists of them.
        tables, figures: in order.
        findings: comparisons with a verdict, for the answer of the page.
        summary: sentences for the answer of the page, beside those of the findings.
        stored: how many of the experiment's runs there are.
    """

    question: str
    answer: list = dataclasses.field(default_factory=list)
    tables: list = dataclasses.field(default_factory=list)
    figures: list = dataclasses.field(default_factory=list)
    findings: list = dataclasses.field(default_factory=list)
    summary: list = dataclasses.field(default_factory=list)
    stored: int = 0

    def __str__(self):
        return "\n\n".join([self.question, *map(paragraph, self.answer), *map(str, self.tables)])


def paragraph(said):
    """A sentence, or a list with a point for each."""
    return said if isinstance(said, str) else "\n".join(f"- {each}" for each in said)


def grid(columns, rows):
    """A table of Markdown whose columns stand below each other; the first to the left."""
    rows = [tuple(map(str, row)) for row in (columns, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(row):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1])] + [cell.rjust(width) for cell, width in others]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def listed(words):
    """``a, b and c``."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(number, what):
    """``1 run``, ``2 runs``."""
    return f"{number:,} {what}{'s' * (number != 1)}"
