"""The report's figures, for screen and print.

`scatter` and `curves` take all runs, in the report's order, so that a run has one colour throughout; `svg` and `png`
turn the figure into something to keep.
"""

import html
import io
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, less yellow
MARKERS = "osD^vP*X"  # one more than colours, so that the pairs repeat late
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font
    "svg.hashsalt": "gacd",  # the same figure, the same bytes
    "text.parse_math": False,  # a run called "a$b" is no formula
}
Line = Sequence[tuple[float, float]]


class Point(NamedTuple):
    """A run's natural and robust accuracy, the latter with its interval, as shares; drawn hollow if it is in doubt."""

    natural: float
    robust: float
    low: float
    high: float
    doubted: bool = False


class Picture(NamedTuple):
    """What an attack did to images: (N,C,H,W) in [0,1], and the predicted classes' names before and after."""

    x_adv: np.ndarray
    before: Sequence[str]
    after: Sequence[str]


def scatter(points: Mapping[str, Point | None], threat: str) -> Figure:
    """Robust against natural accuracy, with the Pareto front: the others' where one run beats all, as a teacher may."""
    with rc_context(STYLE):
        figure, axes = _axes(len(points), "natural accuracy", f"robust accuracy, {threat}")
        shown = [(p.natural, p.robust) for p in points.values() if p and not p.doubted]
        front = pareto(shown)
        if len(front) == 1:
            front = pareto([point for point in shown if point not in front]) or front
        if front:
            axes.plot(*zip(*front, strict=True), color="#b0b0b0", drawstyle="steps-pre", zorder=1, gid="front")
        for i, p in enumerate(points.values()):
            if p:
                axes.vlines(p.natural, p.low, p.high, _look(i)["color"], linewidth=0.8)
                inside = dict(markerfacecolor="white") if p.doubted else {}
                axes.plot(p.natural, p.robust, **_look(i) | inside, linestyle="", gid=f"run{i}")
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, high - 0.1) - 0.02, high + 0.01)  # or a tenth of a per cent would look like a gulf
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent)
        _names(axes, [(i, name, p.natural, p.robust) for i, (name, p) in enumerate(points.items()) if p])
    return figure


def curves(
    lines: Mapping[str, Line],
    x: str,
    y: str,
    *,
    share: bool = True,
    whole: bool = True,
    log: bool = False,
    dashed: Collection[str] = (),
) -> Figure:
    """One line a run.

    Args:
        lines: name -> (x, y) pairs in order of x; empty: nothing to draw.
        x: the axis' name.
        y: likewise.
        share: y is a share of images; otherwise a loss, on a logarithmic axis if it can be.
        whole: an axis of shares runs from 0 to 1; otherwise where the lines are.
        log: x, which is positive, on a logarithmic axis with a mark at each of its values.
        dashed: names of lines that are in doubt.
    """
    with rc_context(STYLE):
        figure, axes = _axes(len(lines), x, y)
        for i, (name, line) in enumerate(lines.items()):
            if line:
                look = _look(i) | ({"marker": ""} if len(line) > 30 else {})
                look |= dict(linestyle="--") if name in dashed else {}
                axes.plot(*zip(*line, strict=True), **look, markersize=3.5, gid=f"run{i}")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(sorted({value for line in lines.values() for value, _ in line})))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        if share:
            if whole:
                axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(_percent)
        elif (low := min(values := [value for line in lines.values() for _, value in line])) > 0:
            axes.set_yscale("log")
            decade = max(values) > 10 * low
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if decade else MaxNLocator(6))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
        _names(axes, [(i, name, *line[-1]) for i, (name, line) in enumerate(lines.items()) if line])
    return figure


def pictures(x: np.ndarray, attacked: Mapping[str, Picture]) -> Figure:
    """A row of images (N,C,H,W) in [0,1], then per run the perturbation, magnified, and what it made of them."""
    rows, columns = 1 + 2 * len(attacked), len(x)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(0.9 * columns + 1.7, 0.95 * rows + 0.25 * len(attacked)))
        grid = figure.subplots(rows, columns, squeeze=False)
        _row(grid[0], x, "original")
        for i, (name, picture) in enumerate(zip(shortened(list(attacked)), attacked.values(), strict=True)):
            change = picture.x_adv - x
            _row(grid[1 + 2 * i], 0.5 + change / max(2 * abs(change).max(), 1e-9), "perturbation")
            _row(grid[2 + 2 * i], picture.x_adv, name)
            for axes, before, after in zip(grid[2 + 2 * i], picture.before, picture.after, strict=True):
                changed = before != after
                label = f"{short(before, 9)} → {short(after, 9)}" if changed else short(after, 18)
                axes.set_title(label, fontsize=8, pad=3, color=COLOURS[1] if changed else "black")
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other point beats in one coordinate and equals in the other, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def svg(figure: Figure, name: str, title: str) -> str:
    """The figure for an HTML page; `name` keeps its ids apart from other figures', `title` is read out."""
    text = _save(figure, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))).decode()
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def png(figure: Figure, path: Path, dpi: int = 130) -> None:
    path.write_bytes(_save(figure, format="png", dpi=dpi))


def _save(figure: Figure, **options) -> bytes:
    buffer = io.BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts have it
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _axes(runs: int, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, max(3.3, 0.18 * runs)))
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _names(axes: Axes, ends: list[tuple[int, str, float, float]]) -> None:
    """Names in a column beside the axes, pushed apart until none overlaps, each tied to its point."""
    axes.set_ylim(axes.get_ylim())
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    ends = sorted(ends, key=lambda end: end[3])
    gap = min(0.065, 1 / max(len(ends), 1))
    places: list[float] = []
    for _, _, x, y in ends:
        places.append(max([to_axes((x, y))[1], *(p + gap for p in places[-1:])]))
    ceiling = 1.0
    for n in reversed(range(len(places))):
        places[n] = ceiling = min(places[n], ceiling)
        ceiling -= gap
    names = shortened([name for _, name, *_ in ends])
    for (i, _, x, y), name, place in zip(ends, names, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            color=COLOURS[i % len(COLOURS)],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": COLOURS[i % len(COLOURS)],
                "alpha": 0.45,
                "linewidth": 0.6,
                "relpos": (0, 0.5),  # to the name's left edge, not through it
                "shrinkA": 1,
            },
        )


def _row(row: Sequence[Axes], images: np.ndarray, name: str) -> None:
    for axes, image in zip(row, images, strict=True):
        colour = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
        axes.imshow(colour.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")


def _percent(share: float, _: float) -> str:
    return f"{100 * share:.3g}%"


def short(name: str, length: int = 30) -> str:
    """A name's two ends: what tells it from others is the folder in front, or the run behind."""
    name = name.encode("utf-8", "replace").decode()  # a folder's name may be any bytes
    front = length // 2
    return name if len(name) <= length else f"{name[:front]}…{name[front + 1 - length :]}"


def shortened(names: Sequence[str], length: int = 30) -> list[str]:
    """Likewise of several, numbered where two would look the same."""
    short_names = [short(name, length) for name in names]
    return [
        f"{name} ({short_names[: i + 1].count(name)})" if short_names.count(name) > 1 else name
        for i, name in enumerate(short_names)
    ]
