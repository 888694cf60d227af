# SPDX-License-Identifier: MIT
"""How the figures of reports look, and how they are kept: the same bytes whenever drawn again."""

import io
import math
import textwrap
from typing import NamedTuple

from emanest.tools.statistics import mean

# for labels in their order; the first is for what others are compared with
PALETTE = "#555555", "#1f6fb4", "#d95f02", "#2a8c55", "#8e5ea2", "#b02a37", "#b8860b", "#17becf"
MARKERS = "osD^vPd*"
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "font.size": 9.5,
    "grid.alpha": 0.25,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "savefig.facecolor": "white",
    # text that can be searched, and a third of the bytes of drawn letters
    "svg.fonttype": "none",
    # names of what is drawn: without it, they are drawn by chance
    "svg.hashsalt": "emanest",
}
WIDTH, HEIGHT, LETTERS = 5.2, 3.9, 9  # of a panel in inches; of a title, in an inch
TICKS = 8  # at most, of a logarithmic axis
ROOM = 0.25  # of the lowest loss: what lies further above it is drawn at the edge


class Edge(NamedTuple):
    """How what has no place on an axis is marked: at a height from 0 to 1."""

    height: float
    marker: str
    words: str


ABOVE, GONE = Edge(1.0, "$\u2191$", "above the axis"), Edge(1.0, "x", "diverged")
NEVER = Edge(0.03, "x", "not reached by all")


def svg(figure):
    """The bytes of a ``Figure`` as SVG."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        drawn = figure.draw()
        drawn.suptitle(wrapped(figure.title, round(LETTERS * drawn.get_figwidth())))
        file = io.BytesIO()
        drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def wrapped(title, most):
    """The title in lines of about the same length; a number stays beside its error."""
    lines = math.ceil(len(title) / most)
    width = min(most, math.ceil(len(title) / lines) + 8)
    return "\n".join(textwrap.wrap(title.replace(" ± ", "\u00a0±\u00a0"), width))


def panels(rows, columns, width=WIDTH, height=HEIGHT, **options):
    """A figure and its axes, in the order of ``subplots``; sides of a panel in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows + 0.4))
    return figure, figure.subplots(rows, columns, **options)


def colors(labels, first=None):
    """Colour and marker of each label; grey is for ``first``, beside which the others are seen."""
    order = [first, *(label for label in labels if label != first)]
    return {
        label: (PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)])
        for k, label in enumerate(order)
        if label in labels
    }


def shades(places):
    """Colours from light to dark, without a marker, for places in time."""
    import matplotlib

    shade = matplotlib.colormaps["viridis_r"]
    span = max(1, len(places) - 1)
    return {at: (shade(0.15 + 0.85 * k / span), None) for k, at in enumerate(places)}


def apart(places):
    """Places on a logarithmic axis whose numbers have room beside each other."""
    least = max(1.9, (places[-1] / places[0]) ** (1 / TICKS)) if places else 1.0
    kept = []
    for place in places:
        if not kept or place > 0.999 * least * kept[-1]:
            kept.append(place)
    return kept


def ceiling(values):
    """The loss above which points are drawn at the edge."""
    finite = [value for value in values if math.isfinite(value)]
    return min(finite) * (1 + ROOM) if finite else math.inf


def errors(axes, points, color, label, top=math.inf, gone=GONE):
    """Means and their standard errors, by place.

    Args:
        points: place -> ``Mean``.
        color: and marker, or None for a line alone.
        top: what lies above is marked at the edge.
        gone: how a place without a mean is marked.
    """
    face, marker = color
    inside = {at: m for at, m in points.items() if m.mean <= top}
    bars = [0 if math.isnan(m.error) else m.error for m in inside.values()]
    means = [m.mean for m in inside.values()]
    axes.errorbar(list(inside), means, bars, color=face, marker=marker, label=label)
    _at_edge(axes, [at for at, m in points.items() if m.mean > top], face, ABOVE)
    _at_edge(axes, [at for at, m in points.items() if math.isnan(m.mean)], face, gone)


def _at_edge(axes, places, color, edge):
    """Marks without a value, and what they mean, once for all colours."""
    if not places:
        return
    options = {"transform": axes.get_xaxis_transform(), "clip_on": False, "linestyle": "none"}
    axes.plot(places, [edge.height] * len(places), marker=edge.marker, color=color, **options)
    if edge.words not in axes.get_legend_handles_labels()[1]:
        axes.plot([], [], marker=edge.marker, color="black", linestyle="none", label=edge.words)


def dots(axes, points, color, label):
    """Means and their standard errors to the side; what diverged has none.

    Args:
        points: height -> ``Mean``.
    """
    finite = {at: m for at, m in points.items() if math.isfinite(m.mean)}
    bars = [0 if math.isnan(m.error) else m.error for m in finite.values()]
    means = [m.mean for m in finite.values()]
    face, marker = color
    options = {"color": face, "marker": marker, "label": label}
    axes.errorbar(means, list(finite), xerr=bars, linestyle="none", **options)
    for at in points.keys() - finite.keys():
        axes.text(0.5, at, "diverged", transform=axes.get_yaxis_transform(), ha="center")


def rows(axes, labels):
    """Names of the heights of ``dots``."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.5, len(labels) - 0.5)


def heat(axes, values, text):
    """A map whose white is 0, with the text of each cell, by column and row.

    Returns:
        What a bar of colours is made of.
    """
    finite = sorted(abs(value) for row in values for value in row if math.isfinite(value))
    # what is far off must not make all else white
    top = 2 * finite[len(finite) // 2] if finite else 1.0
    bar = axes.pcolormesh(values, cmap="RdBu_r", vmin=-top, vmax=top)
    for (column, row), words in text.items():
        strong = not abs(values[row][column]) < 0.7 * top
        color = "white" if strong and math.isfinite(values[row][column]) else "black"
        axes.text(column + 0.5, row + 0.5, words, ha="center", va="center", color=color, size=8.5)
    axes.grid(False)
    return bar


def band(axes, curves, color, label):
    """The mean of the curves of several seeds, and its standard error as a band."""
    steps = next(iter(curves.values()))[0]
    # as far as the shortest: a run ends where it diverges
    found = [mean(at) for at in zip(*(values for _, values in curves.values()), strict=False)]
    steps = steps[: len(found)]
    middle = [each.mean for each in found]
    error = [0 if math.isnan(each.error) else each.error for each in found]
    axes.plot(steps, middle, color=color[0], label=label)
    low, high = ([m + sign * e for m, e in zip(middle, error, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=color[0], alpha=0.25, linewidth=0)


def late(axes, part=0.4):
    """Limits that fit the curves after the first part of a run, whose fall flattens all else."""
    lines = axes.get_lines()
    last = max(line.get_xdata()[-1] for line in lines)
    shown = [
        y
        for line in lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        if x >= part * last and math.isfinite(y)
    ]
    axes.set_xlim(part * last, last)
    if shown:
        room = 0.05 * (max(shown) - min(shown)) + 1e-3
        axes.set_ylim(min(shown) - room, max(shown) + room)


def legend(figure, axes):
    """What the axes show, once, below them; marks at an edge last."""
    found = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    edges = {edge.words for edge in (ABOVE, GONE, NEVER)}
    labels = sorted(found, key=lambda label: label in edges)
    handles = [found[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(found), 3))
