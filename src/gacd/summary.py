"""An analysis as tables in the terminal, one page of Markdown, and the figures that it embeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from gacd import checkpoint, figures, plots, similarity
from gacd.tables import Cell, Column, Table, markdown, markdown_text, number, terminal

KINDS = ("natural", "adversarial")
Groups = Mapping[str, list[Tensor]]  # "fixed" and "own" -> unit vectors of the two classes and the adversarial images


def write(place: Path, result: dict[str, Any], groups: Mapping[str, Groups], say: Console) -> None:
    """Draws, writes and prints an analysis.

    Args:
        place: directory, which holds analysis.json already.
        result: what analysis.json holds.
        groups: network -> what t-SNE embeds.
        say: where the tables go.
    """
    drawn = draw(result, groups)
    for name, (figure, title) in drawn.items():
        figures.png(figure, place / f"{name}.png", dpi=160)
        checkpoint.replace(place / f"{name}.svg", figures.svg(figure, name, title).encode())
    made = tables(result)
    for table in made:
        say.print(terminal(table))
    titles = {name: title for name, (_, title) in drawn.items()}
    checkpoint.replace(place / "analysis.md", page(result, made, titles).encode())
    say.print(f"written to {place}: analysis.json, analysis.md, {', '.join(drawn)}", markup=False)


def tables(result: dict[str, Any]) -> list[Table]:
    """Three tables: what is alike, whose errors are inherited, how the two classes lie; each at most 80 wide."""
    a, b = result["clusters"]["classes"]
    alike, errors, lying = [], [], []
    for name, row in result["students"].items():
        kinds = [row[kind] for kind in KINDS]
        numbers = [number(kind["correlation"]["difference"], 3) for kind in kinds]
        numbers += [number(kind["cka"], 3) for kind in kinds]
        numbers += [number(row["information"][key]) for key in ("bound", "eq11")]
        alike.append([Cell(name), *numbers])
        for kind in KINDS:
            e = row[kind]["errors"]
            shares = [_share(e[key]) for key in ("wrong", "wrong_by_chance", "same", "same_by_chance")]
            errors.append([Cell(name), Cell(kind), number(e["errors"], 0), *shares])
    for name, row in result["clusters"]["networks"].items():
        sets, keys = [row[name] or {} for name in ("before", "fixed", "own")], ("wrong_cluster", "misclassified")
        shares = [_share(numbers.get(key)) for numbers in sets for key in keys]
        lying.append([Cell(name), *(number(row[key]) for key in ("intra", "inter", "ratio")), *shares])
    k = next(iter(result["students"].values()))["information"]["k"]
    teacher, host = result["teacher"], result["clusters"]["crafted_on"]
    return [
        Table(
            f"Alike to the teacher, {teacher}",
            _columns("student", "corr. nat.", "corr. adv.", "CKA nat.", "CKA adv.", "I at least", "Eq. 11"),
            alike,
            f"{_images(result)} corr.: mean absolute difference of the logits' correlations, off the diagonal. "
            f"CKA: linear, debiased, of the features. I at least: lower bound of the features' mutual information in "
            f"nats, k = {k} negatives of all classes. Eq. 11: as the paper prints it, which bounds nothing.",
        ),
        Table(
            f"Errors that {teacher} makes, and its students too, %",
            _columns("student", "images", "errors", "wrong too", "by chance", "same class", "by chance", words=2),
            errors,
            "same class: of the teacher's errors, those in the same wrong class. by chance: if the student's "
            "predictions were shuffled among the images of a class.",
        ),
        Table(
            f"Clusters: {a} and {b}, and {b} attacked towards {a}",
            _columns(
                "network", "intra", "inter", "ratio", "before cl.", "wrong", "fixed cl.", "wrong", "own cl.", "wrong"
            ),
            lying,
            "intra, inter: mean distances within and between the classes, of centred features of length 1. "
            f"before: the {result['clusters']['attacked']} {b} images before an attack; own: the same, attacked on the "
            f"network itself. fixed: the {result['clusters']['fixed']} that {host} called {b} before and {a} after an "
            "attack on it. "
            f"cl.: % nearer to the centroid of {a}; wrong: % not called {b}.",
        ),
    ]


def draw(result: dict[str, Any], groups: Mapping[str, Groups]) -> dict[str, tuple[figures.Figure, str]]:
    """File name -> figure and its title."""
    clusters, names = result["clusters"], result["classes"]
    students = dict(zip(figures.shortened(list(result["students"]), 20), result["students"].values(), strict=True))
    pairs = {kind: [_pair(name, row[kind]) for name, row in students.items()] for kind in KINDS}
    limit = max(abs(pair.student - pair.teacher).max() for rows in pairs.values() for pair in rows)
    drawn = {}
    for kind, rows in pairs.items():
        figure = plots.correlations(
            rows, figures.short(result["teacher"], 20), names if len(names) <= 20 else None, limit or 1.0
        )
        drawn[f"correlations-{kind}"] = figure, f"Correlations of logits, {kind} images"
    a, b = clusters["classes"]
    labels = dict(
        fixed=f"the {clusters['fixed']} that fool\n{figures.short(clusters['crafted_on'], 20)}",
        own="crafted on each\nnetwork itself",
    )
    panels = [
        (label, [_panel(result, name, kind, g[kind]) for name, g in groups.items()])
        for kind, label in labels.items()
        if kind == "own" or clusters["fixed"]
    ]
    figure = plots.clusters(panels, figures.shortened(list(groups), 20), (a, b, f"{b}, attacked towards {a}"))
    drawn["clusters"] = figure, f"Features of {a} and {b}, t-SNE"
    return drawn


def captions(result: dict[str, Any]) -> dict[str, str]:
    """File -> what its picture shows, as `gacd report` reads it from analysis.json."""
    of = f"{', '.join(result['students'])}, on {result['n']} test images of {result['data']}"
    rows = (
        f"Correlations of logits of {of}; a row a student: its teacher, itself, the difference (student - teacher); on "
    )
    crafted = f"PGD's images ({_threat(result)}) crafted on the row's student; the teacher sees the same images."
    clusters = result["clusters"]
    (a, b), points = clusters["classes"], clusters["points"]
    lying = (
        f"t-SNE of penultimate features of {', '.join(clusters['networks'])}: test images of {result['data']}, "
        f"{points[0]} of {a}, {points[1]} of {b}, and {b} attacked towards {a} ({_threat(result)}), "
        f"{clusters['fixed']} that fool {clusters['crafted_on']} and {clusters['attacked']} crafted on each network "
        "itself; the numbers are of the features themselves, not of the picture."
    )
    return {
        "correlations-natural.png": rows + "natural images.",
        "correlations-adversarial.png": rows + crafted,
        "clusters.png": lying,
    }


def page(result: dict[str, Any], made: list[Table], drawn: dict[str, str]) -> str:
    """GitHub's Markdown."""
    parts = ["# Students beside their teacher\n", *map(markdown, made)]
    for name, title in drawn.items():
        shown, caption = markdown_text(title), markdown_text(result["figures"][f"{name}.png"])
        parts.append(f"### {shown}\n\n![{shown}]({name}.png)\n\n{caption}\n")
    return "\n".join(parts)


def _pair(name: str, row: dict[str, Any]) -> plots.Pair:
    teacher, student = (np.array(row["correlation"][side]) for side in ("teacher", "student"))
    return plots.Pair(name, teacher, student, row["correlation"]["difference"])


def _panel(result: dict[str, Any], name: str, kind: str, groups: list[Tensor]) -> plots.Panel:
    clusters = result["clusters"]
    embedded = similarity.tsne(torch.cat(groups), perplexity=clusters["perplexity"], seed=result["seed"])
    numbers, (a, b) = clusters["networks"][name][kind], clusters["classes"]
    text = f"{numbers['wrong_cluster']:.0%} nearer to {a},\n{numbers['misclassified']:.0%} not called {b}"
    return plots.Panel([part.numpy() for part in embedded.split(list(map(len, groups)))], text)


def _images(result: dict[str, Any]) -> str:
    threat = f"adv.: {_threat(result)} on each student, the teacher sees the same."
    return f"{result['n']} test images of {result['data']}; {threat}"


def _threat(result: dict[str, Any]) -> str:
    return f"PGD-{result['threat']['steps']}, {result['threat']['norm']} {result['threat']['eps']}"


def _columns(*names: str, words: int = 1) -> list[Column]:
    return [Column(name, number=i >= words) for i, name in enumerate(names)]


def _share(share: float | None) -> Cell:
    return number(None if share is None else 100 * share, 1)
