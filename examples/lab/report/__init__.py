# SPDX-License-Identifier: MIT
"""Reports of experiments and the page of all results, from stored runs alone."""

from pathlib import Path

from . import along, axis, classes, map, page, readme, sweep
from .section import Section

# Experiment.report -> function of an experiment and the stored lines by key
REPORTS = {
    "sweep": sweep.report,
    "axis": axis.report,
    "along": along.report,
    "map": map.report,
    "classes": classes.report,
}


def section(experiment, lines) -> Section:
    """What the stored runs of an experiment say."""
    return REPORTS[experiment.report](experiment, lines)


def text(experiment, lines) -> str:
    """The same for a terminal."""
    return f"{experiment.name}: {section(experiment, lines)}"


def page_text(experiments, lines) -> str:
    """The page of all results as Markdown, without drawing.

    Args:
        experiments: by name.
        lines: stored lines by key.
    """
    return page.text(experiments, _sections(experiments, lines), lines)


def write_page(experiments, store, folder) -> Path:
    """Write the page and its figures into a folder; returns the path of the page."""
    lines = store.lines()
    return page.write(experiments, _sections(experiments, lines), lines, Path(folder))


def write_readme(experiment, store, path):
    """Write the table of the demo into README.md."""
    path.write_text(readme.written(path.read_text(), experiment, store.lines()))


def _sections(experiments, lines):
    return {name: section(each, lines) for name, each in experiments.items()}
