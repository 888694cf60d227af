# SPDX-License-Identifier: MIT
"""The table that says where each parameter of a model goes: one line for those that are alike."""

import itertools
import os
import re
import weakref
from collections import Counter
from math import prod
from typing import NamedTuple

import torch

_NUMBER = re.compile(r"(\d+)")
_SAID = {"-": "left out"}
# model -> what was printed of it last; weak: nothing else keeps a model
_PRINTED = weakref.WeakKeyDictionary()


class Row(NamedTuple):
    """Where a parameter goes, and why."""

    name: str
    shape: tuple[int, ...]
    to: str  # a base; "-": none
    because: str


def show(model, rows, everything):
    """Print the table of a model, in the first process alone.

    Args:
        model: a table that was printed of it last is not printed again.
        rows: a ``Row`` for each parameter.
        everything: one line for each parameter; and again.
    """
    text = table(rows, everything)
    if not _first_process() or (_PRINTED.get(model) == text and not everything):
        return
    _PRINTED[model] = text
    print(text)


def _first_process():
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    # as torchrun sets it, before the processes know each other
    return os.environ.get("RANK", "0") == "0"


def table(rows, everything=False):
    """The text: columns, and totals in the last line."""
    kinds = [(row.name, 1, row) for row in rows] if everything else _patterns(rows)
    titles = ("parameter", "tensors", "shape", "to", "because")
    cells = [
        (name, str(count), "x".join(map(str, row.shape)) or "scalar", row.to, row.because)
        for name, count, row in kinds
    ]
    if all(count == 1 for _, count, _ in kinds):
        titles, *cells = [(first, *others) for first, _, *others in (titles, *cells)]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip()
        for each in (titles, *cells)
    ]
    counts, sizes = Counter(row.to for row in rows), Counter()
    for row in rows:
        sizes[row.to] += prod(row.shape)
    totals = [f"{_SAID.get(to, to)}: {counts[to]} tensors, {sizes[to]:,} values" for to in counts]
    return "\n".join([*lines, "; ".join(totals)])


def _patterns(rows):
    """(pattern, how many, a row): names that differ in numbers alone, in all combinations."""
    found = {}
    for row in rows:
        # text and numbers in turn
        words = _NUMBER.split(row.name)
        numbers = tuple(frozenset([number]) for number in words[1::2])
        found[tuple(words[::2]), row[1:], numbers] = row
    # number by number: those that differ there alone become one, so that no name is made up
    for k in range(max((len(numbers) for *_, numbers in found), default=0)):
        together = {}
        for (words, what, numbers), row in found.items():
            others = words, what, numbers[:k], numbers[k + 1 :], len(numbers) > k
            together.setdefault(others, []).append((numbers, row))
        found = {
            (words, what, (*before, *_united(its, k), *after)): its[0][1]
            for (words, what, before, after, _), its in together.items()
        }
    return [
        (_pattern(words, numbers), prod(map(len, numbers)), row)
        for (words, _, numbers), row in found.items()
    ]


def _united(its, k):
    every = [numbers[k] for numbers, _ in its if len(numbers) > k]
    return [frozenset().union(*every)] if every else []


def _pattern(words, numbers):
    """A name, with what stands for its numbers, such as ``{0..11}``."""
    texts = [*map(_numbers, numbers), ""]
    return "".join(itertools.chain.from_iterable(zip(words, texts, strict=True)))


def _numbers(values):
    if len(values) == 1:
        return next(iter(values))
    runs = []
    for value in sorted(values, key=lambda value: (int(value), value)):
        last = runs[-1][-1] if runs else ""
        # "01" is no number that another follows, or that follows one
        if last == str(int(value) - 1) and value == str(int(value)):
            runs[-1].append(value)
        else:
            runs.append([value])
    return "{" + ",".join(run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs) + "}"
