# SPDX-License-Identifier: MIT
"""Draw three pictures of what lookahead does; every curve is computed by running the rules.

    python examples/figures.py --out figures

filters.png: what each method's direction passes and how its closed loop amplifies.
damping.png: how fast a quadratic mode shrinks, by its curvature.
valley.png: plain, one-step and EMA lookahead in a noisy river valley.
"""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from emanest import NAG, EMANesterov, LongHorizon
from emanest.tools import analysis

GREY, ORANGE = "#555555", "#d95f02"
LIGHT_BLUE, BLUE, DARK_BLUE = "#8fbfe6", "#1f6fb4", "#0b3a66"
LIGHT_GREEN, GREEN = "#8ccaa3", "#2a8c55"
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 12.5,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}

# label, method, colour; the step size 0.5 doubles a steady drift
FILTERS = [
    ("long horizon, 10 steps", LongHorizon(10, 0.5), LIGHT_GREEN),
    ("long horizon, 50 steps", LongHorizon(50, 0.5), GREEN),
    ("NAG", NAG(0.5), ORANGE),
    ("EMA, decay 0.9", EMANesterov(0.5, 0.9), LIGHT_BLUE),
    ("EMA, decay 0.99", EMANesterov(0.5, 0.99), BLUE),
    ("EMA, decay 0.995", EMANesterov(0.5, 0.995), DARK_BLUE),
]


def filters():
    """The direction filters with their -3 dB points, and the closed-loop gain."""
    w = torch.logspace(-4, math.log10(math.pi), 1500, dtype=torch.float64)
    half_power = math.sqrt(0.5)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
    left.axhline(half_power, color="black", linewidth=0.8, linestyle=":")
    left.text(1.1e-4, half_power * 0.86, "-3 dB", va="top")
    for label, method, color in FILTERS:
        gain = analysis.direction_response(method, w).abs()
        cutoff = ""
        if (gain < half_power).any():
            first = int((gain < half_power).int().argmax())
            left.plot(w[first], half_power, "o", color=color, zorder=3)
            cutoff = f" (-3 dB at {w[first]:.2g})"
        left.loglog(w, gain, color=color, label=label + cutoff)
        right.semilogx(w, analysis.frequency_response(method, w).abs(), color=color)
    left.set(ylim=(2e-3, 1.6), ylabel="gain", title="direction filter: x' - x to y' - x', scaled")
    left.legend(loc="lower left")
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.text(1.1e-4, 0.985, "the base alone", va="top")
    right.set(ylim=(0.6, 2.1), ylabel="gain", title="closed loop: the base's u to x' - x")
    for axes in (left, right):
        axes.set(xlabel="frequency (radians per step)", xlim=(1e-4, math.pi))
    figure.suptitle(
        "EMA lookahead doubles slow motion and leaves the rest to the base;"
        " NAG doubles all but the fastest"
    )
    return figure


# label, method, SGD's momentum, colour, line style
DAMPED = [
    ("SGD", None, 0.0, GREY, "-"),
    ("heavy ball", None, 0.9, GREEN, "--"),
    ("NAG", NAG(0.9), 0.0, ORANGE, "-"),
    ("EMA, decay 0.9", EMANesterov(0.9, 0.9), 0.0, LIGHT_BLUE, "-"),
    ("EMA, decay 0.99", EMANesterov(0.9, 0.99), 0.0, BLUE, "-"),
]


def damping():
    """The factor per step of each curvature mode: linear for the sharp ones, log for the flat."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
    sharp = torch.linspace(0, 4, 4001, dtype=torch.float64)
    flat = torch.logspace(-6, math.log10(4), 1500, dtype=torch.float64)
    for label, method, momentum, color, line in DAMPED:
        radius = analysis.spectral_radius(method, 1.0, sharp, momentum=momentum)
        left.plot(sharp, radius, line, color=color)
        label += f" (stable below {sharp[radius < 1 - 1e-9].max():.2f})"
        rate = 1 - analysis.spectral_radius(method, 1.0, flat, momentum=momentum)
        right.loglog(flat, rate.where(rate > 0, math.nan), line, color=color, label=label)
    left.axhline(1, color="black", linewidth=0.8, linestyle=":")
    left.text(2.9, 1.01, "diverges above", ha="center", va="bottom")
    left.text(2.1, 0.86, "EMA: m forgets at its decay", fontsize=9)
    left.set(xlim=(0, 4), ylim=(0, 1.3), ylabel="spectral radius")
    left.set_title("sharp modes: NAG's damping grows with curvature, heavy ball's is constant")
    right.set(xlim=(1e-6, 4), ylim=(1e-6, 1), ylabel="1 - spectral radius")
    right.set_title("the flattest modes: all are 10 times as fast as SGD")
    right.legend(loc="lower right", title="momentum or step size 0.9")
    for axes in (left, right):
        axes.set_xlabel("learning rate x curvature")
    figure.suptitle(
        "NAG pays for speed on flat modes with stability on sharp ones;"
        " EMA-Nesterov is stable nearly as far as SGD"
    )
    return figure


LR, WALL, SLOPE, NOISE, STEPS = 0.1, 13.0, 0.3, 1.0, 400

# label, details, method, colour; the step size 0.8 makes a steady drift 5 times as fast
RUNNERS = [
    ("plain SGD", f"learning rate x curvature of the walls = {LR * WALL:.1f}", None, GREY),
    ("one-step lookahead", "NAG, momentum 0.8", NAG(0.8), ORANGE),
    ("EMA lookahead", "step size 0.8, decay 0.95", EMANesterov(0.8, 0.95), BLUE),
]


def river(x):
    """Where the floor of the valley is: the second coordinate as a function of the first."""
    return torch.sin(x / 10)


def above_river(point):
    return WALL / 2 * (point[..., 1] - river(point[..., 0])) ** 2


def noisy_gradient():
    """The gradient of a river that falls slowly between steep walls; the same noise every run."""
    # of seeds 0 to 19, the one nearest to their mean in distances and heights
    generator = torch.Generator().manual_seed(17)

    def gradient(y):
        y = y.clone().requires_grad_()
        (g,) = torch.autograd.grad(above_river(y) - SLOPE * y[0], y)
        return g + NOISE * torch.randn(2, generator=generator, dtype=y.dtype)

    return gradient


def valley():
    """Three runs from one start with the same noise: where they go, how fast, and how high."""
    start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    figure = plt.figure(figsize=(11, 6))
    maps, curves = figure.subfigures(1, 2, width_ratios=(1.25, 1), wspace=0.04)
    maps = maps.subplots(3, 1, sharex=True, sharey=True)
    progress, bounce = curves.subplots(2, 1, sharex=True)
    along, across = torch.linspace(-2, 68, 400), torch.linspace(-2, 2, 200)
    ground = above_river(torch.stack(torch.meshgrid(along, across, indexing="xy"), -1)).sqrt()
    for axes, (label, details, method, color) in zip(maps, RUNNERS, strict=True):
        x = analysis.trajectory(method, noisy_gradient(), start, LR, STEPS).x
        axes.contourf(along, across, ground, levels=12, cmap="Greys", alpha=0.45)
        axes.plot(x[:, 0], x[:, 1], color=color, linewidth=0.8)
        axes.plot(*x[-1], "o", color=color, markeredgecolor="white", markersize=8)
        axes.set(title=f"{label}: {details}", ylabel="across")
        axes.grid(False)
        progress.plot(x[:, 0], color=color, label=label)
        # without the fall from the wall at the start
        height = above_river(x)[10:].unfold(0, 25, 1).mean(-1)
        bounce.plot(STEPS - len(height) + 1 + torch.arange(len(height)), height, color=color)
    maps[-1].set(xlabel="along the river")
    progress.set(ylabel="distance along the river")
    progress.legend(loc="upper left")
    bounce.set(ylabel="height above it, mean of 25 steps", xlabel="step", ylim=(0, None))
    figure.suptitle(
        "Both lookaheads run down the river 4 to 5 times as fast as SGD;"
        " only the one-step one is thrown up the walls"
    )
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PNGs")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    for draw in (filters, damping, valley):
        path = out / f"{draw.__name__}.png"
        draw().savefig(path, dpi=150)
        print(path)


if __name__ == "__main__":
    main()
