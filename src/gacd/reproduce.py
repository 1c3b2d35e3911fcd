"""The paper's tables and figures: what is missing of their recipes is run, and our numbers shown beside the paper's."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean as mean_of
from typing import NamedTuple

import torch
from rich.console import Console

from gacd import checkpoint, cost, figures, paper, records, report, tables
from gacd.errors import GacdError, InputError, UsageError
from gacd.groups import Mean, mean, mean_point, share
from gacd.processes import run
from gacd.recipe import Row, check, expand, makes, missing, script
from gacd.records import Measured
from gacd.sections import Line as Evaluated
from gacd.sections import sections


def reproduce(
    recipe: str,
    *,
    preset: str = "small",
    out: str | None = None,
    seeds: list[int] = [0, 1, 2],  # noqa: B006  read by the command line, never changed
    jobs: int | None = None,
    dry_run: bool = False,
) -> None:
    """Runs what is missing of a recipe, in its order, and prints its tables beside the paper's; stopped, it goes on.

    Args:
        recipe: claim, table1, table2, table3, table4, figure2, ablation, rates, figures34 or figure5; or a file of
            your own: a shell script of `gacd ...` lines.
        preset: of networks and schedules: small (two CPU cores), paper (a GPU), or a file of your own.
        out: folder of the runs; runs/PRESET if absent.
        seeds: of the recipes claim and rates; the others have seed 0.
        jobs: commands at a time; one per GPU, or one, if absent.
        dry_run: only print the commands that would run, for a cluster's own queue.
    """
    if jobs is not None and jobs < 1:
        raise UsageError("jobs must be at least 1", jobs)
    path, settings = script(recipe, ""), script(preset, "presets")
    folder = Path(out or f"runs/{settings.stem}")
    if len(set(seeds)) < len(seeds):
        raise UsageError("a seed stands twice", " ".join(map(str, seeds)), "each once")
    commands, rows = expand(path, OUT=str(folder), PRESET=str(settings), SEEDS=" ".join(map(str, seeds)))
    check(commands)
    steps = missing(commands)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(f"# Preset {settings.stem}:"):
            print(line[2:], file=sys.stderr)
    if dry_run:
        for task in steps:
            print(shlex.join(["gacd", *task.argv]))
        return
    say = Console(highlight=False)
    say.print(f"{len(commands)} commands, {len(commands) - len(steps)} of them done or not needed", markup=False)
    failed = run(steps, folder / "logs", jobs or max(1, torch.cuda.device_count()), say)
    show(rows, folder, say)
    for argv in commands:
        if argv[0] == "analyze" and (made := (makes(argv) or Path()).with_suffix(".md")).exists():
            say.print(f"analysis: {made}", markup=False)
    if failed:
        raise GacdError(f"{len(failed)} of {len(steps)} commands failed or lack what failed", folder / "logs")


def show(rows: Sequence[Row], folder: Path, say: Console) -> None:
    """Prints the rows' tables, and writes them beside pictures of them and a page of their runs."""
    for name in dict.fromkeys(row.table for row in rows):
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError("a table's name may hold letters, digits, - and _", repr(name))
        own = [row for row in rows if row.table == name]
        lines = lines_of(own)
        table, place = beside(name, lines), folder / name
        say.print(tables.terminal(table))
        for suffix, text in dict(md=tables.markdown(table), csv=tables.csv(table), tex=tables.latex(table)).items():
            checkpoint.replace(place.with_suffix(f".{suffix}"), text.encode())
        pictures = drawn(name, lines)
        for part, figure in pictures.items():
            figures.png(figure, Path(f"{place}{part}.png"))
            checkpoint.replace(Path(f"{place}{part}.svg"), figures.svg(figure, name, table.title).encode())
        named = [(row.cell + (f" {path.name}" if row.runs[1:] else ""), path) for row in own for path in row.runs]
        runs = [records.read(path, label) for label, path in named if path.is_dir()]
        report.write(place.with_suffix(".html"), runs, title=table.title, beside=[table], images=0)
        parts = ", ".join(f"{place}{part}.png and .svg" for part in pictures)
        say.print(f"written to {place}.html, .md, .csv, .tex{', ' * bool(parts)}{parts}", markup=False)


class Line(NamedTuple):
    """A row with what was measured of each of its runs: attack -> accuracy, and the paper's natural and robust one.

    `costs` are the operations of the runs' trainings and of those before them, where they are known. `evaluated` counts
    the runs that would be measured, were all on the same images.
    """

    cell: str
    measured: list[dict[str, Measured]]
    theirs: list[float]
    costs: list[float] = []  # noqa: RUF012  never changed
    evaluated: int = 0

    def mean(self, attack: str) -> Mean | None:
        """Over the runs; of the worst case only if they were attacked alike."""
        alike = len({frozenset(m) - {"worst"} for m in self.measured}) < 2
        return mean(m.get(attack) for m in self.measured) if alike or attack != "worst" else None


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """A line per row; of each run, what it shares with most: one data set, one radius, as many images as it has.

    Of a row's runs those are measured that most others are like in that.
    """
    runs = {path: records.read(path, path.name) for row in rows for path in row.runs if path.is_dir()}
    parts = sorted(sections(list(runs.values())), key=lambda part: -len(part.lines))
    lines = []
    for row in rows:
        evaluated = [runs[path] for path in row.runs if path in runs]
        shown = [[(part.data, line) for part in parts if (line := part.line(run))] for run in evaluated]
        found = [of_run[0] for of_run in shown if of_run]
        images = [(data, line.n, line.images) for data, line in found]
        if len({sha256 for *_, sha256 in images} - {None}) < 2:  # of older entries it is not known
            images = [(data, n, None) for data, n, _ in images]
        most = max(images, key=images.count, default=None)
        alike = [_measured(line) for (_, line), same in zip(found, images, strict=True) if same == most]
        costs = [spent for path in row.runs if (spent := cost.spent(path)) is not None]
        theirs = paper.table(row.table)["cells"].get(row.cell, [])
        lines.append(Line(row.cell, alike, theirs, costs, len(found)))
    return lines


def _measured(line: Evaluated) -> dict[str, Measured]:
    worst = [line.worst] if line.worst and line.worst.attack == "worst" else []
    return {m.attack: m for m in [line.natural, *line.attacks.values(), *worst] if m}


def beside(name: str, lines: Sequence[Line]) -> tables.Table:
    """Our accuracies in per cent and costs, means over seeds, beside the paper's; what was not measured stays empty."""
    about = paper.table(name)
    attacks = list(dict.fromkeys(a for line in lines for measured in line.measured for a in measured)) or ["natural"]
    columns = [tables.Column(""), *(tables.Column(attack, True, ("mean", "sd")) for attack in attacks)]
    columns += [tables.Column("seeds", True), tables.Column("1e12 operations", True)]
    columns += [tables.Column(f"paper: {a}", True) for a in ("natural", about["attack"])] if about["cells"] else []
    body = []
    for line in lines:
        doubted = {attack for m in line.measured for attack in m if m[attack].suspect}
        seeds = len(line.measured)
        cells = [share(line.mean(attack), seeds, attack in doubted) for attack in attacks]
        note = f"of {line.evaluated} on the same images" * (seeds < line.evaluated)
        cells.append(tables.Cell(str(seeds), (seeds,), note=note) if seeds else tables.Cell(tables.MISSING))
        operations = mean_of(line.costs) / 1e12 if line.costs else None
        cells.append(tables.Cell(f"{operations:.3g}", (operations,)) if operations else tables.Cell(tables.MISSING))
        cells += [tables.number(value) for value in (line.theirs or (None, None))] if about["cells"] else []
        body.append([tables.Cell(line.cell.replace("/", " / ")), *cells])
    return tables.Table(about["title"], columns, body, " ".join(filter(None, [_note(lines), about.get("note", "")])))


def _note(lines: Sequence[Line]) -> str:
    """What the numbers of a table are."""
    measured = [m for line in lines for of_run in line.measured for m in of_run.values()]
    threats = dict.fromkeys(f"{m.norm} {m.eps}" for m in measured if m.attack != "natural")
    images = dict.fromkeys(f"{m.n:,}" for m in measured)
    said = (
        f"Per cent of {' or '.join(images)} test images{', attacked within ' * bool(threats)}{' or '.join(threats)}."
        * bool(measured)
    )
    if any(m.attack == "worst" for m in measured):
        said += " worst: withstood every attack here."
    if any(len(line.measured) > 1 for line in lines):
        said += " ±: sample standard deviation over seeds."
    if any(line.costs for line in lines):
        said += " Operations: floating-point ones of the training and of those before it, without the teacher's."
    return said.strip()


def drawn(name: str, lines: Sequence[Line]) -> dict[str, figures.Figure]:
    """Cells such as k/16 as curves over k, named "-k"; other cells as robust against natural accuracy, named ""."""
    attack = "worst" if any(line.mean("worst") for line in lines) else paper.table(name)["attack"]
    shown = [line for line in lines if line.mean("natural") and line.mean(attack)]
    matches = [re.fullmatch(r"(\w+)/(\d+\.?\d*)", line.cell) for line in shown]
    if not all(matches):
        points = {line.cell: mean_point([_point(measured, attack) for measured in line.measured]) for line in shown}
        return {"": figures.scatter(points, "worst case" if attack == "worst" else attack)} if points else {}
    doubted = {attack for line in shown for m in line.measured for attack in m if m[attack].suspect}
    swept: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line, match in zip(shown, matches, strict=True):
        for kind in line.measured[0]:
            if found := line.mean(kind):
                curve = swept.setdefault(match[1], {}).setdefault(kind, [])  # type: ignore[index]
                curve.append((float(match[2]), found.mean))  # type: ignore[index]
    return {
        f"-{parameter}": figures.curves(
            {a: sorted(c) for a, c in curves.items()}, parameter, "accuracy", whole=False, log=True, dashed=doubted
        )
        for parameter, curves in swept.items()
    }


def _point(measured: dict[str, Measured], attack: str) -> figures.Point | None:
    if "natural" not in measured or attack not in measured:
        return None
    robust = measured[attack]
    return figures.Point(measured["natural"].accuracy, robust.accuracy, *robust.interval, robust.suspect)
