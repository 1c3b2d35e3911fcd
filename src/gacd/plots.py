"""An analysis' figures: correlations as heat maps, features as clouds. Looks and saving are those of figures.py."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gacd.figures import COLOURS, STYLE

DIVERGING = "RdBu_r"  # told apart with every kind of colour vision
FRAMED = {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}


class Pair(NamedTuple):
    """A student: its name, the teacher's and its own correlations (K,K), and their mean absolute difference."""

    name: str
    teacher: np.ndarray
    student: np.ndarray
    difference: float


class Panel(NamedTuple):
    """A cloud: (N,2) points of each group, and what to say below."""

    groups: Sequence[np.ndarray]
    text: str


def correlations(rows: Sequence[Pair], teacher: str, classes: Sequence[str] | None, limit: float) -> Figure:
    """A row a student: the teacher's matrix, the student's, and their difference.

    Args:
        rows: the students.
        teacher: its name.
        classes: K names; None: too many to show.
        limit: of the differences' scale, which figures of the same analysis share.
    """
    labels = [name if len(name) <= 14 else name[:13] + "…" for name in classes or []]
    ticks, text = range(len(labels)), dict(fontsize=7 if len(labels) <= 12 else 5.5)
    with rc_context(STYLE | FRAMED):
        figure = Figure(figsize=(7.2, 2.35 * len(rows) + 1.0))
        grid = figure.subplots(len(rows), 3, squeeze=False, sharex=True, sharey=True)
        for axes, (name, t, s, difference) in zip(grid, rows, strict=True):
            for ax, matrix, most in zip(axes, (t, s, s - t), (1, 1, limit), strict=True):
                image = ax.imshow(matrix, cmap=DIVERGING, vmin=-most, vmax=most, interpolation="none")
                ax.set_xticks(ticks, labels, rotation=90, **text)
                ax.set_yticks(ticks, labels, **text)
                ax.tick_params(length=0)
            for ax, title in zip(axes, (teacher, name, f"difference, mean size {difference:.3f}"), strict=True):
                ax.set_title(title, fontsize=9)
        left, right = grid[0, 0].images[0], image
        for image, columns, label in ((left, grid[:, :2], "correlation"), (right, grid[:, 2:], "student − teacher")):
            bar = figure.colorbar(image, ax=columns, location="bottom", shrink=0.8, aspect=30, pad=0.02)
            bar.set_label(label, fontsize=8)
            bar.ax.tick_params(labelsize=7)
            bar.outline.set_linewidth(0.5)
    return figure


def clusters(rows: Sequence[tuple[str, Sequence[Panel]]], names: Sequence[str], groups: Sequence[str]) -> Figure:
    """A column a network, a row a set of adversarial images.

    Args:
        rows: a label, and each network's cloud of three groups.
        names: the networks'.
        groups: their names.
    """
    looks: tuple[dict[str, Any], ...] = (
        dict(color=COLOURS[0], marker="o", markersize=3.5, alpha=0.75),
        dict(color=COLOURS[4], marker="s", markersize=3.3, alpha=0.8),
        dict(color="black", marker="x", markersize=4, markeredgewidth=0.9),
    )
    with rc_context(STYLE | FRAMED):
        figure = Figure(figsize=(max(1.75 * len(names) + 0.9, 4.6), 1.95 * len(rows) + 0.55))
        grid = figure.subplots(len(rows), len(names), squeeze=False)
        for axes, (label, row) in zip(grid, rows, strict=True):
            for ax, panel in zip(axes, row, strict=True):
                for points, look in zip(panel.groups, looks, strict=True):
                    ax.plot(*points.T, linestyle="", **look)
                ax.set_xlabel(panel.text, fontsize=7.5)
                ax.set_xticks([])
                ax.set_yticks([])
                for side in ax.spines.values():
                    side.set_color("#b0b0b0")
            axes[0].set_ylabel(label, fontsize=8)
        for ax, name in zip(grid[0], names, strict=True):
            ax.set_title(name, fontsize=9)
        handles = [Line2D([], [], linestyle="", **look) for look in looks]
        figure.legend(handles, groups, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
