"""Runs -> one self-contained HTML page. What stands in files is shown, never trusted: all of it is escaped."""

import base64
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from gacd import checkpoint, claim, figures, paper, records, tables
from gacd import data as datasets
from gacd.attacks import evaluating, pgd
from gacd.errors import GacdError, UsageError
from gacd.groups import Group, grouped, mean_line, mean_point, over_seeds
from gacd.parser import Ratio
from gacd.records import Measured, Run, collect, finite
from gacd.sections import Line, Section, family_of, percent, sections
from gacd.tables import MISSING, Cell, Column, Table

NOTE = (
    "Per cent of the first n test images. Worst counts an image only if it withstood every attack that was tried on it "
    "together; it is an upper bound on robustness, and its interval is Clopper and Pearson’s, of 95 %."
)
FORMATS = ("html", "md", "csv", "tex", "claim")
# In names, which figures have too; bidirectional marks would turn the line around.
UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def report(
    runs: list[str],
    *,
    out: str | None = None,
    formats: list[str] = ["html"],  # noqa: B006  read by the command line, never changed
    images: int = 6,
) -> None:
    """Gathers every run beneath some folders in one HTML page: tables, figures, commands and versions.

    Args:
        runs: folders that hold run directories, at any depth, and those of gacd analyze.
        out: the page; report.html in the first folder if absent.
        formats: html is the page; md, csv and tex have its tables and stand beside it, as does claim, which is
            RobustBench's form for a new model.
        images: adversarial images shown for the most and the least robust run of each data set; 0: none.
    """
    if unknown := [form for form in formats if form not in FORMATS]:
        raise UsageError("unknown format", ", ".join(unknown), f"--formats takes any of {', '.join(FORMATS)}")
    place = Path(out) if out else Path(runs[0]) / "report.html"
    if place.is_dir():
        raise UsageError("--out is a folder", place, f"name the page, such as {place / 'report.html'}")
    found = collect(runs)
    drawn, left_out = records.drawn(runs) if "html" in formats else ([], [])
    warnings = [f"{run.name}: {run.warning}" for run in found if run.warning]
    for warning in [*warnings, *left_out]:
        print(f"gacd: warning: {tables.clean(warning)}", file=sys.stderr)
    made = {form: place.with_suffix(f".{form}") for form in dict.fromkeys(formats)}
    if "claim" in made:
        made["claim"] = place.with_name(f"{place.stem}-claim.md")
    if "html" in made and place not in made.values():
        made["html"] = place
    for form, path in made.items():
        if form == "html":
            write(path, found, images=images, drawn=drawn)
        else:
            checkpoint.replace(path, _text(found, form).encode("utf-8", "replace"))
        print(f"{len(found)} runs in {path}")


def write(
    place: Path,
    runs: list[Run],
    *,
    images: int = 6,
    title: str = "Runs",
    remarks: Sequence[str] = (),
    beside: Sequence[Table] = (),
    drawn: Sequence[records.Figure] = (),
) -> None:
    """Writes the page.

    Args:
        place: the file.
        runs: from `collect`.
        images: adversarial images per run shown.
        title: the heading.
        remarks: paragraphs below it.
        beside: tables before all others, such as those that have the paper's numbers.
        drawn: figures from elsewhere, from `records.drawn`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gacd"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= dict(sha256=_sha256)
    groups = grouped(runs)
    shown = [(section, _drawn(section, groups, images, f"s{i}")) for i, section in enumerate(sections(runs))]
    page = environment.get_template("report.html.j2").render(
        title=title,
        remarks=remarks,
        beside=beside,
        sections=[(accuracies(section), over_seeds(section, groups), made) for section, made in shown],
        training=_training(groups),
        repeated=any(len(group.runs) > 1 for group in groups),
        drawn=drawn,
        runs=[(run, evaluations(run)) for run in runs],
    )
    checkpoint.replace(place, UNSEEN.sub("\N{REPLACEMENT CHARACTER}", page).encode("utf-8", "replace"))


def accuracies(section: Section) -> Table:
    """The headline table: a row per run and number of test images, the most robust first."""
    columns = [Column("run"), Column("method"), Column("model"), Column("parameters", True), Column("natural", True)]
    columns += [Column(name, True) for name in (*section.attacks, "worst")]
    worst = len(columns) - 1
    columns += [Column("95 % interval", True, ("low", "high")), Column("n", True), Column("audits")]
    usual = section.threat == ("Linf", Ratio("8/255"))
    theirs = [paper.of(line.run.stages, section.data) if usual else None for line in section.lines]
    known = any(theirs)
    columns += [Column(f"paper: {name}", True) for name in ("natural", "pgd20") if known]
    rows = []
    for line, published in zip(section.lines, theirs, strict=True):
        run = line.run
        sources = {"from": run.options.get("init"), "by": run.options.get("teacher")}
        note = " ".join(f"{word} {_last(source)}" for word, source in sources.items() if source)
        method = Cell(str(run.options.get("method") or MISSING), note=note)
        size = Cell(f"{run.parameters:,}", (float(run.parameters),)) if run.parameters else Cell(MISSING)
        doubted = bool(line.worst and line.worst.suspect)  # then the last column says so, of all
        shares = [_share(m, doubted) for m in (line.natural, *map(line.attacks.get, section.attacks), line.worst)]
        found = [_interval(line.worst), _plain(line.n), _verdict(line)]
        found += [tables.number(value) for value in (published or (None, None)) if known]
        rows.append([Cell(run.name), method, Cell(run.model), size, *shares, *found])
    note = NOTE
    if not all(section.whole):
        note += " The rows differ in their images and are hard to compare: the best are of most images."
    if len({frozenset(line.attacks) for line in section.lines if line.worst}) > 1:
        note += " The rows were not attacked alike: who had fewer attacks looks more robust."
    if known:
        note += " Paper: what the GACD paper reports for these networks, method and data, whatever the schedule."
    if any(m.suspect for line in section.lines for m in line.attacks.values()):
        note += " SUSPECT is an unverified upper bound: results.json says why. Audits: of the worst case."
    rows = tables.best(rows, {4: section.whole, worst: section.comparable})
    return Table(section.title, columns, rows, note)


def evaluations(run: Run) -> Table:
    """Every evaluation of a run's weights, as results.json has it."""
    columns = [Column("data"), Column("attack"), Column("norm"), Column("eps", True), Column("step", True)]
    columns += [Column("accuracy", True), Column("95 % interval", True, ("low", "high")), Column("n", True)]
    columns += [Column("seed", True), Column("weights")]
    rows = []
    for m in run.measured:
        row, weights = m.row, f"{m.row.get('weights') or ''} {str(m.row.get('sha256') or '')[:8]}"
        threat = [Cell(m.data), Cell(m.attack), Cell(m.norm), _plain(row.get("eps")), _plain(row.get("step_size"))]
        numbers = [_share(m), _interval(m), _plain(m.n), _plain(row.get("seed"))]
        rows.append([*threat, *numbers, Cell(weights)])
    return Table(run.name, columns, rows)


def _drawn(section: Section, groups: Sequence[Group], images: int, name: str) -> dict[str, Markup | str]:
    """The figures that there is something for, and why there are no pictures."""
    if section.threat is None:
        return {}
    norm, eps = section.threat
    runs = {group.name: [line.run for line in group.alike(section)] for group in groups}
    points = {name: mean_point([_point(section.line(run)) for run in of]) for name, of in runs.items()}

    def doubted(attacks: list[str]) -> list[str]:
        return [name for name, of in runs.items() if any(section.doubted(run, attacks) for run in of)]

    attack = "pgd20" if "pgd20" in section.attacks else [*section.attacks, "worst"][0]
    lines = {name: mean_line([section.robust(run, attack) for run in of]) for name, of in runs.items()}
    drawn: dict[str, Markup | str] = dict(attack=attack)
    if any(points.values()):
        drawn["scatter"] = _svg(figures.scatter(points, f"{norm} {eps}"), f"{name}a", "robust by natural accuracy")
    if any(len(line) > 2 for line in lines.values()):
        figure = figures.curves(lines, f"eps, {norm}", f"accuracy, {attack}", dashed=doubted([attack]))
        drawn["curve"] = _svg(figure, f"{name}b", "accuracy by eps")
    families = dict.fromkeys(family_of(name)[0] for name in section.attacks)
    stepped = {
        family: {name: mean_line([section.by_steps(run, family) for run in of]) for name, of in runs.items()}
        for family in families
    }
    family = max(families, key=lambda name: max(map(len, stepped[name].values())), default="")
    if family and max(map(len, stepped[family].values())) > 1:
        axes = f"steps of {family}", f"accuracy, {norm} {eps}"
        own = [name for name in section.attacks if family_of(name)[0] == family]
        figure = figures.curves(stepped[family], *axes, log=True, dashed=doubted(own))
        drawn |= dict(family=family, steps=_svg(figure, f"{name}d", "accuracy by steps"))
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
    x, names = datasets.pixels(split.images), dict(enumerate(images.classes))
    norm, eps = section.threat or ("Linf", Ratio("8/255"))
    attacked = {}
    for name, source in opened.items():
        model = source.model
        x_adv = pgd(model, x, split.labels, norm=norm, eps=eps, step_size=eps / 4, index=torch.arange(len(x)))
        with torch.no_grad(), evaluating(model):
            before, after = ([names.get(k, str(k)) for k in model(z).argmax(1).tolist()] for z in (x, x_adv))
        attacked[name] = figures.Picture(x_adv.numpy(), before, after)
    return figures.pictures(x.numpy(), attacked)


def _training(groups: Sequence[Group]) -> list[Markup]:
    drawn = []
    for key, label in dict(val_natural="held-out natural accuracy", val_robust="held-out PGD", loss="loss").items():
        lines = {group.name: mean_line([run.curve(key) for run in group.runs]) for group in groups}
        if any(lines.values()):
            drawn.append(_svg(figures.curves(lines, "epoch", label, share=key != "loss"), key, label))
    return drawn


def _point(line: Line | None) -> figures.Point | None:
    if line is None or line.natural is None or line.worst is None:
        return None
    return figures.Point(line.natural.accuracy, line.worst.accuracy, *line.worst.interval, line.worst.suspect)


def _text(runs: list[Run], form: str) -> str:
    """The page's tables in another form, or RobustBench's."""
    found = sections(runs)
    if form == "claim":
        return claim.claims(found)
    groups = grouped(runs)
    made = [table for section in found for table in (accuracies(section), over_seeds(section, groups)) if table]
    if form == "csv":
        return tables.csv(*made)
    if form == "md":
        return "\n".join(map(tables.markdown, made))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(tables.latex, made))


def _share(m: Measured | None, doubted: bool = False) -> Cell:
    if m is None:
        return Cell(MISSING)
    return Cell(percent(m.accuracy, m.n), (100 * m.accuracy,), note="unverified" * (m.suspect and not doubted))


def _verdict(line: Line) -> Cell:
    """The audits' verdict on the worst case; missing where one attack's number has none."""
    verdicts = [m.row.get("verdict") for m in (*line.attacks.values(), line.worst) if m]
    return Cell(str(verdicts[-1]) if verdicts and all(verdicts) else MISSING)


def _interval(m: Measured | None) -> Cell:
    if m is None:
        return Cell(MISSING)
    low, high = m.interval
    return Cell(f"{percent(low, m.n)} – {percent(high, m.n)}", (100 * low, 100 * high))


def _plain(value: Any) -> Cell:
    return Cell("" if value is None else str(value), (float(value),) if finite(value) else ())


def _last(source: object) -> str:
    """The last name of a path, if it is not long."""
    name = str(source).rstrip("/").split("/")[-1]
    return name if len(name) <= 24 else name[:23] + "…"


def _svg(figure: figures.Figure, name: str, title: str) -> Markup:
    return Markup(figures.svg(figure, name, title))  # matplotlib escapes the names in it


def _sha256(text: str) -> str:
    """As a Content-Security-Policy names the one script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
