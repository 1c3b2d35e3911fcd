"""How the evaluations of several runs compare: a section per data set, a line per run."""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from gacd.parser import Ratio
from gacd.records import Measured, Run


class Line(NamedTuple):
    """A line of the headline table; accuracies may be missing.

    `images` is the hash of the n images where others of as many are in the section too, else None.
    """

    run: Run
    n: int
    natural: Measured | None
    attacks: dict[str, Measured]
    worst: Measured | None
    images: str | None = None


@dataclass
class Section:
    """One data set's evaluations, at the radius that most runs share; `runs` are all, evaluated on it or not."""

    data: str
    runs: list[Run]

    @cached_property
    def threat(self) -> tuple[str, Ratio] | None:
        """(norm, eps) of most runs; among equals the one trained with, then 8/255."""
        tried = Counter(
            t for run in self.runs for t in {(m.norm, m.eps) for m in self.shown(run) if m.attack != "natural"}
        )
        trained = Counter(str(run.options.get("eps")) for run in self.runs)
        return max(tried, key=lambda t: (tried[t], trained[str(t[1])], t[1] == 8 / 255, -t[1]), default=None)

    @cached_property
    def attacks(self) -> list[str]:
        return list(dict.fromkeys(name for line in self.lines for name in line.attacks))

    @cached_property
    def lines(self) -> list[Line]:
        """The most robust first; what is in doubt after what is not."""
        lines = [self._line(run, n) for run in self.runs for n in self._counts(run)]
        known = {n: {line.images for line in lines if line.n == n} - {None} for n in {line.n for line in lines}}
        lines = [line if len(known[line.n]) > 1 else line._replace(images=None) for line in lines]
        return sorted(lines, key=lambda line: (line.worst.suspect, -line.worst.accuracy) if line.worst else (True, 1.0))

    @cached_property
    def whole(self) -> list[bool]:
        """Which lines are of the most images, and of those that most lines are of: whose accuracies may be ranked."""
        most = max((line.n for line in self.lines), default=0)
        images = Counter(line.images for line in self.lines if line.n == most).most_common(1)
        return [line.n == most and line.images == images[0][0] for line in self.lines]

    @cached_property
    def comparable(self) -> list[bool]:
        """Which lines' worst cases may be ranked: of the most images and not in doubt, if these were attacked alike."""
        shown = [counts and line.worst is not None for counts, line in zip(self.whole, self.lines, strict=True)]
        alike = len({frozenset(line.attacks) for line, counts in zip(self.lines, shown, strict=True) if counts}) == 1
        sure = [line.worst is not None and not line.worst.suspect for line in self.lines]
        return [alike and counts and trusted for counts, trusted in zip(shown, sure, strict=True)]

    @property
    def title(self) -> str:
        within = ", attacked within {} {}".format(*self.threat) if self.threat else ""
        return f"Accuracy on {self.data}{within}"

    def of(self, run: Run) -> list[Measured]:
        return [m for m in run.measured if m.data == self.data]

    def at(self, threat: tuple[str, Ratio]) -> "Section":
        """The same evaluations at another radius."""
        section = Section(self.data, self.runs)
        section.threat = threat
        return section

    def line(self, run: Run) -> Line | None:
        """A run's line with the most images."""
        return max((line for line in self.lines if line.run is run), key=lambda line: line.n, default=None)

    def robust(self, run: Run, attack: str) -> list[tuple[float, float]]:
        """(eps, accuracy) under one attack in the section's norm, from the natural accuracy at 0 on."""
        line, norm = self.line(run), self.threat[0] if self.threat else ""
        if line is None:
            return []
        found = dict[float, float]()
        for m in self._same(run, line.n):
            if (m.attack, m.norm) == (attack, norm):
                found[float(m.eps)] = min(m.accuracy, found.get(float(m.eps), 1.0))
        start = {0.0: line.natural.accuracy} if line.natural and found else {}
        return sorted((start | found).items())

    def by_steps(self, run: Run, family: str) -> list[tuple[float, float]]:
        """(steps, accuracy) under the attacks of a family, such as "pgd", that take a number of steps."""
        line, found = self.line(run), dict[float, float]()
        for m in self._same(run, line.n) if line else ():
            name, steps = family_of(m.attack)
            if (name, m.norm, m.eps) == (family, *(self.threat or ("", 0))) and steps:
                found[steps] = min(m.accuracy, found.get(steps, 1.0))
        return sorted(found.items())

    def doubted(self, run: Run, attacks: Collection[str]) -> bool:
        """Whether a number that is shown of a run under some attacks is in doubt, at any radius."""
        return any(m.suspect for m in self.shown(run) if m.attack in attacks)

    def _counts(self, run: Run) -> list[int]:
        return sorted({m.n for m in self.of(run)}, reverse=True)

    def shown(self, run: Run) -> list[Measured]:
        """What was measured of a run, of as many images as there are those evaluated last."""
        return [m for n in self._counts(run) for m in self._same(run, n)]

    def _same(self, run: Run, n: int) -> list[Measured]:
        """What was measured of a run on the n images that were evaluated last."""
        same = [m for m in self.of(run) if m.n == n]
        images = [sha256 for m in same if (sha256 := m.row.get("data_sha256"))]  # of older entries unknown
        return [m for m in same if m.row.get("data_sha256") in (None, *images[-1:])]

    def _line(self, run: Run, n: int) -> Line:
        same = self._same(run, n)
        here = [m for m in same if (m.norm, m.eps) == self.threat]
        names = dict.fromkeys(m.attack for m in here if m.attack not in ("natural", "worst"))
        attacks = {name: min((m for m in here if m.attack == name), key=_belief) for name in names}
        natural = next((m for m in same if m.attack == "natural"), None)
        images = next((str(sha256) for m in same if (sha256 := m.row.get("data_sha256"))), None)
        return Line(run, n, natural, attacks, min(here, key=_belief, default=None), images)


def _belief(m: Measured) -> tuple[float, bool, bool]:
    """Each accuracy is an upper bound, so the lowest is the one to believe; of equals the one in doubt."""
    return m.accuracy, not m.suspect, m.attack != "worst"


def sections(runs: list[Run]) -> list[Section]:
    """One per data set that anything was evaluated on."""
    return [Section(name, runs) for name in sorted({m.data for run in runs for m in run.measured})]


def percent(accuracy: float, n: int) -> str:
    return f"{100 * accuracy:.{decimals(n)}f}"


def decimals(n: int) -> int:
    """Of a percentage: as many as n images can tell."""
    return 2 if n >= 5000 else 1


def family_of(attack: str) -> tuple[str, int]:
    """ "pgd20" -> ("pgd", 20); 0 steps where the name has no number, or one of restarts, as in "pgd20x5"."""
    match = re.fullmatch(r"(.*?)(\d{1,9})", attack, re.DOTALL)
    return (match[1], int(match[2])) if match and not re.search(r"x\d+$", attack) else (attack, 0)
