"""Runs -> one self-contained HTML page. What stands in files is shown, never trusted: all of it is escaped."""

import base64
import hashlib
import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
import yaml
from markupsafe import Markup

from gacd import checkpoint, figures, results
from gacd import data as datasets
from gacd.attacks import evaluating, pgd
from gacd.cli import Ratio
from gacd.errors import GacdError, InputError
from gacd.evaluation import interval


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


class Measured(NamedTuple):
    """An entry of results.json; `row` is all of it."""

    data: str
    n: int
    attack: str
    norm: str
    eps: Ratio
    accuracy: float
    row: dict[str, Any]

    @property
    def interval(self) -> tuple[float, float]:
        return interval(round(self.accuracy * self.n), self.n)


@dataclass
class Run:
    """What a run directory says of itself.

    Attributes:
        name: relative to the folder that was asked for.
        path: the directory.
        options: config.yaml.
        model: the network's name.
        parameters: their number.
        measured: the evaluations of the weights that a reader takes.
        log: rows of metrics.jsonl.
        warning: what is missing or damaged, in a line.
    """

    name: str
    path: Path
    options: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    parameters: int | None = None
    measured: list[Measured] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    warning: str = ""

    @property
    def command(self) -> str:
        """The command that makes the run, with every option."""
        if "method" not in self.options:
            return ""
        words = ["gacd", "distill" if self.options.get("teacher") else "train", str(self.options["method"])]
        for name, value in self.options.items():
            if name != "method" and value is not None:
                values = value if isinstance(value, list) else [value]
                words += [
                    "--" + name.replace("_", "-"),
                    *(json.dumps(v) if isinstance(v, bool) else str(v) for v in values),
                ]
        return shlex.join([*words, "--out", str(self.path)])

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(epochs done, value) of what was logged under a name."""
        if not self.log:
            return []
        epoch = (self.log[-1]["epoch"] + 1) / self.log[-1]["step"]
        return [(row["step"] * epoch, row[key]) for row in self.log if _finite(row.get(key))]


class Line(NamedTuple):
    """A line of the headline table; accuracies may be missing."""

    run: Run
    n: int
    natural: Measured | None
    attacks: dict[str, Measured]
    worst: Measured | None


@dataclass
class Section:
    """One data set's evaluations, at the radius that most runs share; `runs` are all, evaluated on it or not."""

    data: str
    runs: list[Run]

    @cached_property
    def threat(self) -> tuple[str, Ratio] | None:
        """(norm, eps) of most runs; among equals the one trained with, then 8/255."""
        tried = Counter(
            t for run in self.runs for t in {(m.norm, m.eps) for m in self.of(run) if m.attack != "natural"}
        )
        trained = Counter(str(run.options.get("eps")) for run in self.runs)
        return max(tried, key=lambda t: (tried[t], trained[str(t[1])], t[1] == 8 / 255, -t[1]), default=None)

    @cached_property
    def attacks(self) -> list[str]:
        return list(dict.fromkeys(name for line in self.lines for name in line.attacks))

    @cached_property
    def lines(self) -> list[Line]:
        """The most robust first."""
        lines = [self._line(run, n) for run in self.runs for n in sorted({m.n for m in self.of(run)}, reverse=True)]
        return sorted(lines, key=lambda line: -line.worst.accuracy if line.worst else 1.0)

    def of(self, run: Run) -> list[Measured]:
        return [m for m in run.measured if m.data == self.data]

    def line(self, run: Run) -> Line | None:
        """A run's line with the most images."""
        return max((line for line in self.lines if line.run is run), key=lambda line: line.n, default=None)

    def robust(self, run: Run, attack: str) -> list[tuple[float, float]]:
        """(eps, accuracy) under one attack in the section's norm, from the natural accuracy at 0 on."""
        line, norm = self.line(run), self.threat[0] if self.threat else ""
        if line is None:
            return []
        found = {float(m.eps): m.accuracy for m in self.of(run) if (m.attack, m.norm, m.n) == (attack, norm, line.n)}
        start = {0.0: line.natural.accuracy} if line.natural and found else {}
        return sorted((start | found).items())

    def _line(self, run: Run, n: int) -> Line:
        same = [m for m in self.of(run) if m.n == n]
        here = [m for m in same if (m.norm, m.eps) == self.threat]
        names = dict.fromkeys(m.attack for m in here if m.attack not in ("natural", "worst"))
        # Each accuracy is an upper bound, so the lowest of several is the one to believe.
        attacks = {name: min((m for m in here if m.attack == name), key=lambda m: m.accuracy) for name in names}
        natural = next((m for m in same if m.attack == "natural"), None)
        return Line(run, n, natural, attacks, min(here, key=lambda m: m.accuracy, default=None))


def collect(roots: Sequence[str]) -> list[Run]:
    """Every run directory (it holds config.yaml or results.json) beneath some folders."""
    runs = {}
    for root in map(Path, roots):
        for path in sorted({file.parent for name in ("config.yaml", "results.json") for file in root.rglob(name)}):
            base = root if len(roots) == 1 else root.parent
            runs[path.resolve()] = read(path, path.name if path == base else os.path.relpath(path, base))
    if not runs:
        raise InputError("no runs in", " ".join(roots), "a run is a folder with config.yaml; gacd train makes one")
    return list(runs.values())


def read(path: Path, name: str) -> Run:
    """One run directory, whatever state it is in."""
    run = Run(name, path)
    try:
        options = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        run.options = options if isinstance(options, dict) else {}
    except (OSError, ValueError, yaml.YAMLError):
        run.warning = "no readable config.yaml"
    run.model = str(run.options.get("model") or "")
    run.log = list(_log(path / "metrics.jsonl"))
    try:
        measured = _evaluations(run)
        weights, sha256 = _weights(path) or [measured[-1].row.get(key) for key in ("weights", "sha256")]
    except GacdError as error:
        run.warning = str(error) if (path / "results.json").exists() else "not evaluated: gacd evaluate does it"
        return run
    run.measured = [m for m in measured if m.row.get("sha256") == sha256]
    if not run.measured:
        run.warning = f"not evaluated: results.json is of other weights than {weights}, which a reader takes"
    return run


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
    environment.tests["finite"] = _finite
    page = environment.get_template("report.html.j2").render(
        title=title,
        remarks=remarks,
        runs=runs,
        sections=[(section, _drawn(section, images, f"s{i}")) for i, section in enumerate(sections(runs))],
        training=_training(runs),
    )
    checkpoint.replace(place, page.encode("utf-8", "replace"))


def sections(runs: list[Run]) -> list[Section]:
    """One per data set that anything was evaluated on."""
    return [Section(name, runs) for name in sorted({m.data for run in runs for m in run.measured})]


def percent(accuracy: float, n: int) -> str:
    """With as many decimals as n images can tell."""
    return f"{100 * accuracy:.{2 if n >= 5000 else 1}f}"


def _evaluations(run: Run) -> list[Measured]:
    content = results.read(run.path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        raise InputError("not evaluated: damaged", run.path / "results.json")
    run.model = str(content.get("model") or run.model)
    run.parameters = content["parameters"] if isinstance(content.get("parameters"), int) else None
    measured = [m for m in map(_measured, content["results"]) if m]
    if not measured:
        raise InputError("not evaluated: no usable entry", run.path / "results.json")
    return measured


def _measured(row: Any) -> Measured | None:
    try:
        eps, n, accuracy = Ratio(row.get("eps", 0)), int(row["n"]), float(row["accuracy"])
        m = Measured(str(row["data"]), n, str(row["attack"]), str(row.get("norm", "")), eps, accuracy, row)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return m if 0 <= accuracy <= 1 and n > 0 and math.isfinite(eps) else None


def _weights(path: Path) -> tuple[str, str] | None:
    """Name and digest of the weights that a reader takes; None where only the results were kept."""
    if not (path / "checkpoints").is_dir():
        return None
    opened = checkpoint.open_source(str(path))
    return opened.weights, checkpoint.digest(opened.model)


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of metrics.jsonl; the last may be half-written."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(row, dict)
            and all(isinstance(row.get(key), int) for key in ("step", "epoch"))
            and row["step"] > 0
        ):
            yield row


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


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _sha256(text: str) -> str:
    """As a Content-Security-Policy names the one script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
