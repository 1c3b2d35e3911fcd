"""Runs -> one self-contained HTML page. What stands in files is shown, never trusted: all of it is escaped."""

import base64
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import torch
from markupsafe import Markup

from gacd import checkpoint, figures
from gacd import data as datasets
from gacd.attacks import evaluating, pgd
from gacd.cli import Ratio
from gacd.errors import GacdError
from gacd.records import Line, Run, Section, collect, percent, sections


def report(runs: list[str], *, out: str | None = None, images: int = 6) -> None:
    """Gathers every run beneath some folders in one HTML page: tables, figures, commands and versions.

    Args:
        runs: folders that hold run directories, at any depth.
        out: the page; report.html in the first folder if absent.
        images: adversarial images shown for the most and the least robust run of each data set; 0: none.
    """
    place = Path(out) if out else Path(runs[0]) / "report.html"
    found = collect(runs)
    for run in found:
        if run.warning:
            print(f"gacd: warning: {run.name}: {run.warning}", file=sys.stderr)
    write(place, found, images=images)
    print(f"{len(found)} runs in {place}")


def write(place: Path, runs: list[Run], *, images: int = 6, title: str = "Runs", remarks: Sequence[str] = ()) -> None:
    """Writes the page.

    Args:
        place: the file.
        runs: from `collect`.
        images: adversarial images per run shown.
        title: the heading.
        remarks: paragraphs below it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gacd"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= dict(percent=percent, sha256=_sha256)
    page = environment.get_template("report.html.j2").render(
        title=title,
        remarks=remarks,
        runs=runs,
        sections=[(section, _drawn(section, images, f"s{i}")) for i, section in enumerate(sections(runs))],
        training=_training(runs),
    )
    checkpoint.replace(place, page.encode("utf-8", "replace"))


def _drawn(section: Section, images: int, name: str) -> dict[str, Markup | str]:
    """The figures that there is something for, and why there are no pictures."""
    if section.threat is None:
        return {}
    norm, eps = section.threat
    points = {run.name: _point(section.line(run)) for run in section.runs}
    attack = "pgd20" if "pgd20" in section.attacks else [*section.attacks, "worst"][0]
    lines = {run.name: section.robust(run, attack) for run in section.runs}
    drawn: dict[str, Markup | str] = dict(attack=attack)
    if any(points.values()):
        drawn["scatter"] = _svg(figures.scatter(points, f"{norm} {eps}"), f"{name}a", "robust by natural accuracy")
    if any(len(line) > 2 for line in lines.values()):
        figure = figures.curves(lines, f"eps, {norm}", f"accuracy, {attack}")
        drawn["curve"] = _svg(figure, f"{name}b", "accuracy by eps")
    if images:
        try:
            drawn["pictures"] = _svg(pictures(section, images), f"{name}c", "adversarial images")
        except (GacdError, OSError, RuntimeError) as error:  # RuntimeError: weights that do not fit their network
            drawn["no_pictures"] = str(error)
    return drawn


def pictures(section: Section, n: int) -> figures.Figure:
    """The first n test images, attacked by PGD-20 on the most and the least robust run."""
    ranked = [line.run for line in section.lines if line.worst]
    chosen = ranked[:1] + ranked[1:][-1:]
    opened = {run.name: checkpoint.open_source(str(run.path)) for run in chosen}
    data_dir, size = chosen[0].options.get("data_dir"), opened[chosen[0].name].record.get("size")
    images = datasets.load(section.data, data_dir=data_dir and str(data_dir), size=size)
    split = images.test.take(torch.arange(min(n, len(images.test))))
    x, names = split.images.float() / 255, dict(enumerate(images.classes))
    norm, eps = section.threat or ("Linf", Ratio("8/255"))
    attacked = {}
    for name, source in opened.items():
        model = source.model
        x_adv = pgd(model, x, split.labels, norm=norm, eps=eps, step_size=eps / 4, index=torch.arange(len(x)))
        with torch.no_grad(), evaluating(model):
            before, after = ([names.get(k, str(k)) for k in model(z).argmax(1).tolist()] for z in (x, x_adv))
        attacked[name] = figures.Picture(x_adv.numpy(), before, after)
    return figures.pictures(x.numpy(), attacked)


def _training(runs: list[Run]) -> list[Markup]:
    drawn = []
    for key, label in dict(val_natural="held-out natural accuracy", val_robust="held-out PGD", loss="loss").items():
        lines = {run.name: run.curve(key) for run in runs}
        if any(lines.values()):
            drawn.append(_svg(figures.curves(lines, "epoch", label, share=key != "loss"), key, label))
    return drawn


def _point(line: Line | None) -> figures.Point | None:
    if line is None or line.natural is None or line.worst is None:
        return None
    return figures.Point(line.natural.accuracy, line.worst.accuracy, *line.worst.interval)


def _svg(figure: figures.Figure, name: str, title: str) -> Markup:
    return Markup(figures.svg(figure, name, title))  # matplotlib escapes the names in it


def _sha256(text: str) -> str:
    """As a Content-Security-Policy names the one script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
