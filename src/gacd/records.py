"""What run directories say of themselves, in whatever state they are, and how their evaluations compare."""

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gacd import checkpoint, results
from gacd.cli import Ratio
from gacd.errors import GacdError, InputError
from gacd.evaluation import interval


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

    @property
    def origins(self) -> list[str]:
        """Commit, device and versions of the evaluations, each once."""
        said: dict[str, None] = {}
        for m in self.measured:
            versions = m.row.get("versions")
            pairs = [f"{k} {v}" for k, v in versions.items()] if isinstance(versions, dict) else []
            words = [f"commit {m.row.get('commit') or 'unknown'}", str(m.row.get("device") or "unknown device"), *pairs]
            said[", ".join(words)] = None
        return list(said)

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(epochs done, value) of what was logged under a name."""
        if not self.log:
            return []
        epoch = (self.log[-1]["epoch"] + 1) / max(self.log[-1]["step"], 1)
        return [(row["step"] * epoch, row[key]) for row in self.log if finite(row.get(key))]


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


def sections(runs: list[Run]) -> list[Section]:
    """One per data set that anything was evaluated on."""
    return [Section(name, runs) for name in sorted({m.data for run in runs for m in run.measured})]


def percent(accuracy: float, n: int) -> str:
    """With as many decimals as n images can tell."""
    return f"{100 * accuracy:.{2 if n >= 5000 else 1}f}"


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
    except (GacdError, RuntimeError) as error:  # RuntimeError: weights that do not fit their network
        run.warning = str(error) if (path / "results.json").exists() else "not evaluated: gacd evaluate does it"
        return run
    run.measured = [m for m in measured if m.row.get("sha256") == sha256]
    if not run.measured:
        run.warning = f"not evaluated: results.json is of other weights than {weights}, which a reader takes"
    return run


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
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None
    return m if 0 <= accuracy <= 1 and 0 < n < 2**53 and math.isfinite(eps) else None


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
        if isinstance(row, dict) and all(isinstance(row.get(key), int) and row[key] >= 0 for key in ("step", "epoch")):
            yield row


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
