# SPDX-License-Identifier: MIT
"""The page of results: the answer, how it was measured, and a section for each experiment."""

from .answer import answer
from .drawing import svg
from .measured import measured
from .section import paragraph

HEAD = """# Results

This page is made from the stored runs in `examples/lab/results`: `python -m examples.lab page`.
Every number, figure and verdict is computed from them; a test holds the page to that.
"""


def text(experiments, sections, lines):
    """The page as Markdown.

    Args:
        experiments: by name.
        sections: name -> ``Section`` of each.
        lines: stored lines by key.
    """
    there = {name: part for name, part in sections.items() if part.stored}
    parts = [HEAD.strip(), "## The answer", *map(paragraph, answer(there))]
    how = measured([experiments[name] for name in there], lines)
    parts += ["## How it was measured", *how] if how else []
    for name, part in there.items():
        parts += chapter(experiments[name], part)
    others = [experiments[name] for name in sections if name not in there]
    if others:
        points = [f"`python -m examples.lab run {e.name}` ({e.size}): {e.question}" for e in others]
        parts += ["## Not run yet", paragraph(points)]
    return "\n\n".join(parts) + "\n"


def chapter(experiment, section):
    """The section of an experiment: question, answer, tables, figures, the command."""
    source = f" After {experiment.source}." if experiment.source else ""
    parts = [f"## {experiment.name}", f"**{section.question}** Size: {experiment.size}.{source}"]
    parts += [experiment.note] * bool(experiment.note)
    parts += [paragraph(said) for said in section.answer if said]
    parts += map(str, section.tables)
    parts += [
        f"![{figure.title}](figures/{figure_name(experiment, k)})"
        for k, figure in enumerate(section.figures, 1)
    ]
    name = experiment.name
    command = f"python -m examples.lab run {name}\npython -m examples.lab report {name}"
    return [*parts, f"To repeat it:\n\n```sh\n{command}\n```"]


def figure_name(experiment, number):
    return f"lab_{experiment.name}_{number}.svg"


def write(experiments, sections, lines, folder):
    """Write ``results.md`` and the figures that it shows; those that it no longer shows go."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    shown = {
        figure_name(experiments[name], k): figure
        for name, part in sections.items()
        if part.stored
        for k, figure in enumerate(part.figures, 1)
    }
    for path in figures.glob("lab_*.svg"):
        if path.name not in shown:
            path.unlink()
    for name, figure in shown.items():
        (figures / name).write_bytes(svg(figure))
    page = folder / "results.md"
    page.write_text(text(experiments, sections, lines))
    return page
