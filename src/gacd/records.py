"""What run directories say of themselves, in whatever state they are."""

import base64
import json
import math
import os
import shlex
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gacd import checkpoint, results
from gacd.errors import GacdError, InputError
from gacd.evaluation import interval
from gacd.parser import Ratio
from gacd.runs import UNFINISHED, config, story, unfinished

ANALYSIS = "analysis.json"
PNG, PNG_LIMIT = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 4 << 20


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
    def split(self) -> int:
        """How many test images there are; n where an older entry does not say."""
        return self.row["split_n"] if isinstance(self.row.get("split_n"), int) else self.n

    @property
    def suspect(self) -> bool:
        """Whether an audit doubts it: an unverified upper bound."""
        return self.row.get("verdict") == "SUSPECT"

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
        starts: of the training, from run.json.
        stages: likewise, from the first on.
        warning: what is missing or damaged, in a line.
    """

    name: str
    path: Path
    options: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    parameters: int | None = None
    measured: list[Measured] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    stages: list[Any] = field(default_factory=list)
    warning: str = ""

    @property
    def command(self) -> str:
        """The command that makes the run, with every option."""
        if "method" not in self.options:
            return ""
        words = ["gacd", "distill" if self.options.get("teacher") else "train", str(self.options["method"])]
        said = {"method"}
        if self.options["method"] == "probe":
            words, said = ["gacd", "probe", str(self.options.get("init"))], {"method", "init", "model"}
        for name, value in self.options.items():
            if name not in said and value is not None:
                values = value if isinstance(value, list) else [value]
                words += [
                    "--" + str(name).replace("_", "-"),
                    *(json.dumps(v) if isinstance(v, bool) else str(v) for v in values),
                ]
        return shlex.join([*words, "--out", str(self.path)])

    @property
    def origins(self) -> list[str]:
        """Commit, device and versions, each once: of the evaluations, then of each start and resume of the training."""
        said = {f"Evaluated with {_origin(m.row)}": None for m in self.measured}
        said |= {
            f"Trained from {row.get('time') or 'an unknown time'} on with {_origin(row)}": None for row in self.starts
        }
        return list(said)

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(epochs done, value) of what was logged under a name; nothing before an epoch has ended."""
        ends = [row for row in self.log if "val_natural" in row]
        if not ends:
            return []
        epoch = (ends[-1]["epoch"] + 1) / max(ends[-1]["step"], 1)
        return [(row["step"] * epoch, row[key]) for row in self.log if finite(row.get(key))]


def collect(roots: Sequence[str]) -> list[Run]:
    """Every run directory (it holds config.yaml or results.json) beneath some folders."""
    runs = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise InputError("no such folder", root)
        for path in sorted({file.parent for name in ("config.yaml", "results.json") for file in root.rglob(name)}):
            base = root if len(roots) == 1 else root.parent
            runs[path.resolve()] = read(path, path.resolve().name if path == base else os.path.relpath(path, base))
    if not runs:
        raise InputError("no runs in", " ".join(roots), "a run is a folder with config.yaml; gacd train makes one")
    names = [run.name for run in runs.values()]
    for run in runs.values():
        if names.count(run.name) > 1:
            run.name = str(run.path)
    return list(runs.values())


class Figure(NamedTuple):
    """A picture that `gacd analyze` left: its file's stem, what it shows, the file as a data URI, width and height."""

    name: str
    caption: str
    uri: str
    width: int
    height: int


def drawn(roots: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """The PNG files beside every analysis.json beneath some folders, and a line for each that is left out."""
    figures, left_out = [], []
    for folder in dict.fromkeys(file.parent.resolve() for root in roots for file in sorted(Path(root).rglob(ANALYSIS))):
        captions = _captions(folder / ANALYSIS)
        for path in sorted(folder.glob("*.png")):
            try:
                with open(path, "rb") as file:
                    content = file.read(PNG_LIMIT + 1)
            except OSError as error:
                left_out.append(f"{path}: {error.strerror}")
                continue
            if content.startswith(PNG) and len(PNG) + 8 <= len(content) <= PNG_LIMIT:
                size, uri = struct.unpack_from(">II", content, len(PNG)), base64.b64encode(content).decode()
                figures.append(Figure(path.stem, captions.get(path.name, ""), f"data:image/png;base64,{uri}", *size))
            else:
                left_out.append(f"{path}: not a PNG file of at most {PNG_LIMIT >> 20} MiB")
    return figures, left_out


def _captions(path: Path) -> dict[str, str]:
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return {name: str(caption) for name, caption in captions.items()}
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):
        return {}


def read(path: Path, name: str) -> Run:
    """One run directory, whatever state it is in."""
    run = _read(path, name)
    if unfinished(path):
        run.warning = "; ".join(filter(None, [UNFINISHED, run.warning]))
    return run


def _read(path: Path, name: str) -> Run:
    run = Run(name, path)
    try:
        run.options = config(path)
    except InputError:
        run.warning = "no readable config.yaml"
    run.model = str(run.options.get("model") or "")
    run.log = list(_log(path / "metrics.jsonl"))
    told = story(path)
    starts, stages = told.get("starts"), told.get("stages")
    run.starts = [row for row in starts if isinstance(row, dict)] if isinstance(starts, list) else []
    run.stages = stages if isinstance(stages, list) else []
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
    run.model = str(content.get("model") or run.model)
    parameters = content.get("parameters")
    run.parameters = parameters if isinstance(parameters, int) and 0 < parameters < 2**53 else None
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
        except (RecursionError, ValueError):
            continue
        counts = [row.get(key) for key in ("step", "epoch")] if isinstance(row, dict) else [None]
        if all(isinstance(count, int) and 0 <= count < 2**53 for count in counts):
            yield row


def _origin(row: dict[str, Any]) -> str:
    versions = row.get("versions")
    pairs = [f"{k} {v}" for k, v in versions.items()] if isinstance(versions, dict) else []
    return ", ".join([f"commit {row.get('commit') or 'unknown'}", str(row.get("device") or "unknown device"), *pairs])


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
