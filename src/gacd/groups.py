"""Runs that differ only by their seed: which they are, and their accuracies' means and spreads."""

import re
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gacd import figures, tables
from gacd.records import Measured, Run
from gacd.runs import FREE, PLACES
from gacd.sections import Line, Section, decimals
from gacd.tables import Cell, Column, Table

NOTE = (
    "Per cent: mean ± sample standard deviation over runs that differ only by their seed. The spread is that of "
    "training: that the test images are a sample too is not in it. Worst stays empty where the runs were not attacked "
    "alike."
)


@dataclass
class Group:
    """Runs that are repetitions of each other.

    Attributes:
        name: theirs, without the seed.
        runs: by seed; no seed twice. A run that nothing says the seed of is alone.
    """

    name: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int | None]:
        return [_seed(run) for run in self.runs]

    def alike(self, section: Section) -> list[Line]:
        """Its runs' lines that a mean may be taken of: of most of them, the same images and attacks."""
        lines = [line for run in self.runs if (line := section.line(run))]
        kinds = [(line.n, line.images, frozenset(line.attacks)) for line in lines]
        return [line for line, kind in zip(lines, kinds, strict=True) if kind == max(kinds, key=kinds.count)]


class Mean(NamedTuple):
    """Of shares of images: their mean, their sample standard deviation (None for one), and of how many runs."""

    mean: float
    spread: float | None
    runs: int


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Every run in one group, in the order of their first runs."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_key(run, skip=PLACES), []).append(run)
    groups: dict[object, Group] = {}
    for members in alike.values():
        # One teacher for all seeds is the same source as it stands; a teacher for each is so without its seed.
        shared = [name for name in PLACES if len({str(run.options.get(name)) for run in members}) == 1]
        for run in members:
            key, seed = _key(run, skip=shared), _seed(run)
            if seed is None or (key in groups and seed in groups[key].seeds):  # a copy adds nothing to a spread
                groups[id(run)] = Group(run.name, [run])
            else:
                groups.setdefault(key, Group(_seedless(run.name, seed), [])).runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: _seed(run) or 0)
        if len(group.runs) == 1 or [other.name for other in groups.values()].count(group.name) > 1:
            group.name = group.runs[0].name
    place = {id(run): i for i, run in enumerate(runs)}
    return sorted(groups.values(), key=lambda group: min(place[id(run)] for run in group.runs))


def mean(measured: Iterable[Measured | None]) -> Mean | None:
    """Of those that are there; None if none is."""
    shares = [m.accuracy for m in measured if m]
    spread = statistics.stdev(shares) if len(shares) > 1 else None
    return Mean(statistics.fmean(shares), spread, len(shares)) if shares else None


def mean_point(points: Sequence[figures.Point | None]) -> figures.Point | None:
    """The mean of several runs' accuracies, from the lowest to the highest; a single one with its own interval."""
    shown = [point for point in points if point]
    if len(shown) < 2:
        return shown[0] if shown else None
    natural, robust, *_, doubted = zip(*shown, strict=True)
    return figures.Point(statistics.fmean(natural), statistics.fmean(robust), min(robust), max(robust), any(doubted))


def mean_line(lines: Sequence[figures.Line]) -> figures.Line:
    """The mean of several runs' curves (x, y), where all that have any point have one; else the longest of them."""
    values = [dict(line) for line in lines if line]
    shared = sorted(set.intersection(*map(set, values))) if values else []
    return [(x, statistics.fmean(line[x] for line in values)) for x in shared] or max(lines, key=len, default=[])


def over_seeds(section: Section, groups: Sequence[Group]) -> Table | None:
    """A row per group and set of test images, the most robust first; None if nothing was repeated."""
    lines: dict[tuple[int, int, str | None], list[Line]] = {}
    place = {id(run): i for i, group in enumerate(groups) for run in group.runs}
    for line in section.lines:
        lines.setdefault((place[id(line.run)], line.n, line.images), []).append(line)
    if all(len(same) < 2 for same in lines.values()):
        return None
    places = {id(line): place for place, line in enumerate(section.lines)}
    rows, ranked = [], []
    for (i, n, _), same in lines.items():
        rows.append(_row(section, groups[i].name, n, same))
        ranked.append([all(may[places[id(line)]] for line in same) for may in (section.whole, section.comparable)])
    whole, comparable = zip(*ranked, strict=True)
    columns = [Column("run"), Column("method"), Column("model"), Column("seeds", True)]
    columns += [Column(name, True, ("mean", "sd")) for name in ("natural", *section.attacks, "worst")]
    rows = tables.best(rows, {4: whole, len(columns) - 1: comparable})
    rows.sort(key=lambda row: ("unverified" in row[-2].note, -row[-2].values[0] if row[-2].values else 1.0))
    return Table(f"{section.title}, over seeds", [*columns, Column("n", True)], rows, NOTE)


def _row(section: Section, name: str, n: int, lines: Sequence[Line]) -> list[Cell]:
    found = [[line.natural for line in lines]]
    found += [[line.attacks.get(name) for line in lines] for name in section.attacks]
    alike = len({frozenset(line.attacks) for line in lines}) == 1
    found += [[line.worst for line in lines] if alike else []]
    run = lines[0].run
    words = [Cell(name), Cell(str(run.options.get("method") or tables.MISSING)), Cell(run.model)]
    count = Cell(str(len(lines)), (float(len(lines)),))
    doubts = [any(m is not None and m.suspect for m in column) for column in found]
    shares = [share(mean(c), len(lines), doubted, decimals(n)) for c, doubted in zip(found, doubts, strict=True)]
    return [*words, count, *shares, Cell(str(n), (float(n),))]


def share(found: Mean | None, runs: int, doubted: bool, places: int = 2) -> Cell:
    """A mean in per cent, and what to know of it: that it is not of all the runs, or in doubt."""
    if found is None:
        return Cell(tables.MISSING)
    notes = [f"of {found.runs}"] * (found.runs < runs) + ["unverified"] * doubted
    spread = None if found.spread is None else 100 * found.spread
    return tables.number(100 * found.mean, places, spread=spread)._replace(note=", ".join(notes))


def _key(run: Run, skip: Collection[str]) -> str:
    """What repetitions have in common, as text."""
    seed, skipped = _seed(run), {"seed", "out", *FREE, *skip}
    kept = {str(name): value for name, value in run.options.items() if name not in skipped}
    kept |= {name: _seedless(str(kept[name]), seed) for name in PLACES if name in kept}
    return repr((_seedless(run.name, seed), sorted(kept.items(), key=lambda item: item[0])))


def _seed(run: Run) -> int | None:
    seed = run.options.get("seed")
    return seed if isinstance(seed, int) else None


def _seedless(path: str, seed: int | None) -> str:
    """A path without the seed that ends the names in it: "a" for "a-0" and "a_s0", "a/x" for "a-seed0/x".

    Of bare numbers the last alone is the seed: "wrn-16-1/a" for "wrn-16-1/a-1".
    """
    if seed is None:
        return path
    start, end = r"(?:(?<=[^/])[-_.]|(?<![^/]))", r"(?=(?:\.[a-z]+)?(?:/|$))"
    found = re.sub(rf"{start}(?:seed[-_=]?|s){seed}{end}", "", path)
    *_, last = [None, *re.finditer(rf"{start}{seed}{end}", found)]
    found = found[: last.start()] + found[last.end() :] if last and found == path else found
    return re.sub("//+", "/", found).strip("/") or path
