"""results.json: one entry per weights, data, threat and attack; evaluations add."""

import hashlib
import json
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gacd import checkpoint, locks
from gacd.audit import Audit, Finding
from gacd.device import describe
from gacd.errors import InputError
from gacd.evaluation import Evaluation, interval
from gacd.parser import Ratio, exact
from gacd.readers import Split

# What makes two entries the same measurement.
SAME = ("sha256", "data", "n", "attack", "of", "norm", "eps", "step_size", "seed", "chunk", "search")

EARLIER = "earlier, full audits"  # findings' names
BLIND = "beside other attacks"
LASTING = ("black box, transfer, noise", "planted region")  # these are of the network, whatever the seed and attacks
HIDDEN = 0.1  # of the images, and ten: an attack of several steps that leaves more than others beat is blind somewhere


def entries(result: Evaluation, origin: dict[str, Any], audit: Audit, audits: str) -> list[dict[str, Any]]:
    """An evaluation as entries: natural, each attack, and the worst case per image.

    Args:
        result: of all images.
        origin: the weights, their SHA-256, data and n, seed, chunk, precision of the search, and `provenance`.
        audit: of it.
        audits: "quick" or "full".
    """
    masks = dict(result.correct)
    if len(result.threats) > 1:
        masks["worst"] = result.survivors
    doubts = [str(finding) for finding in audit.troubles]
    skipped = [finding.name for finding in audit.findings if finding.outcome == "skipped"]
    rows = []
    for name, mask in masks.items():
        threat = in_full(result.threats.get(name, {}))
        if name == "worst":
            first = next(iter(result.threats.values()))
            threat = in_full(dict(norm=first["norm"], eps=first["eps"], of=list(result.threats)))
        correct = int(mask.sum())
        number = dict(accuracy=correct / result.n, correct=correct, interval=list(interval(correct, result.n)))
        verdict = dict(verdict=audit.verdict, audits=audits, doubts=list(doubts)) if threat else {}
        if threat and skipped:
            verdict["skipped"] = skipped
        rows.append(origin | dict(split="test", attack=name) | threat | number | verdict)
    return _compared(rows)


def in_full(values: dict[str, Any]) -> dict[str, Any]:
    """The same, its floats as `exact` writes them."""
    return {name: exact(value) if isinstance(value, float) else value for name, value in values.items()}


def named(model: nn.Module) -> str:
    """What a network is called: its name in our grammar, else its class."""
    name = getattr(model, "name", None)
    return name if isinstance(name, str) and name else type(model).__name__


def identity(digest: str, source: str) -> str:
    """SHA-256 of a network, from its weights': a factory's is of its name and file, too, not of what that imports."""
    if not checkpoint.is_factory(source):
        return digest
    place, name = source.rsplit(":", 1)
    file = place if place.endswith(".py") else getattr(sys.modules[place], "__file__", None)
    code = Path(file).read_bytes() if file else b""
    return hashlib.sha256(f"{digest} {name} ".encode() + code).hexdigest()


def fingerprint(split: Split) -> str:
    """SHA-256 of images and labels."""
    h = hashlib.sha256(f"{split.images.dtype} {tuple(split.images.shape)}".encode())
    for tensor in (split.images, split.labels.long()):
        h.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def add(run: Path, new: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Puts entries into run/results.json, each in the place of one equal in SAME and of the same images.

    Where full audits trusted the very same number, found by the same code, that stays so.

    Returns:
        The entries as they stand there.
    """
    with locks.owned(run, ".results.lock", wait=60):
        old = read(run)["results"] if (run / "results.json").exists() else []
        full = [_number(row) for row in old if (row.get("verdict"), row.get("audits")) == ("TRUSTED", "full")]
        new = [row | {"audits": "full"} if _number(row) in full and _committed(row) else row for row in new]
        data = {_key(row): row.get("data_sha256") for row in new}
        rows = [row for row in old if row.get("data_sha256", data.get(_key(row))) != data.get(_key(row), ...)]
        rows = _compared(rows + new)
        size = sum(p.numel() for p in model.parameters())
        _write(run, dict(format=1, model=named(model), parameters=size, results=rows))
    return rows[-len(new) :]


def revoke(run: Path, audit: Audit, same: dict[str, str]) -> int:
    """After INVALID: what was TRUSTED before of the same weights and images is SUSPECT until evaluated anew.

    Returns:
        How many entries of run/results.json.
    """
    if not (run / "results.json").exists():
        return 0
    with locks.owned(run, ".results.lock", wait=60):
        content, trusted = read(run), same | {"verdict": "TRUSTED"}
        rows = [row for row in content["results"] if trusted.items() <= row.items()]
        for row in rows:
            row.update(verdict="SUSPECT", audits="quick", doubts=list(map(str, audit.troubles)))
        _write(run, content)
    return len(rows)


def earlier_doubts(run: Path, new: list[dict[str, Any]]) -> list[str]:
    """What full audits found against the same numbers, or lasts for the same threat: quick ones cannot take it back."""
    old = read(run)["results"] if (run / "results.json").exists() else []
    new = [row for row in new if "verdict" in row]
    same, threats = {(_key(row), row.get("data_sha256")) for row in new}, {_threat(row) for row in new}
    found, lasting = set[str](), set[str]()
    for row in (row for row in old if row.get("audits") == "full"):
        doubts = {doubt.removeprefix(f"suspect: {EARLIER}: ") for doubt in _of_audits(row) if inherits(doubt)}
        doubts = doubts or {doubt.removeprefix("suspect: ") for doubt in _of_audits(row)}  # else quick audits' own
        if (_key(row), row.get("data_sha256")) in same:
            found |= doubts
        if _threat(row) in threats:  # what full audits trust later is trusted
            lasting = {d for d in doubts if d.startswith(LASTING)} | (lasting if doubts else set())
    return sorted(found | lasting)


def read(run: Path) -> dict[str, Any]:
    """A run's results.json: a mapping whose "results" are a list of mappings."""
    path = run / "results.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise InputError("cannot read results", f"{path}: {error}", "gacd evaluate writes it") from None
    rows = content.get("results") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("not evaluated: damaged", path)
    return content


def _write(run: Path, content: dict[str, Any]) -> None:
    checkpoint.replace(run / "results.json", (json.dumps(content, indent=1) + "\n").encode())


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Commit (in a checkout), device and versions, for every file of numbers."""
    names = ("gacd", "torch", "numpy", "lightning-fabric")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return dict(commit=_commit(), device=describe(device), versions=versions)


def _commit() -> str | None:
    """HEAD of the checkout that this code runs from, "+" if the code differs; None for an installed package."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> list[str]:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
        ).stdout.split()

    try:
        lines = git("rev-parse", "--show-toplevel", "--short=12", "HEAD")
        if len(lines) != 2 or here != Path(lines[0]) / "src" / "gacd":
            return None
        return lines[1] + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, in doubt where an attack of several steps leaves many images that others beat, whenever that was."""
    attacked = [(i, _threat(row)) for i, row in enumerate(rows) if "verdict" in row and _counted(row)]
    least: dict[str, int] = {}
    for i, threat in attacked:
        least[threat] = min(rows[i]["correct"], least.get(threat, rows[i]["correct"]))
    for i, threat in attacked:
        row, doubts = rows[i], _of_audits(rows[i])
        hidden = row["correct"] - least[threat]
        if row.get("steps") != 1 and hidden > max(HIDDEN * row["n"], 10):
            says = f"they beat {hidden} more of {row['n']} images"
            doubts.append(str(Finding(BLIND, "suspect", says, "count the worst case")))
        if doubts != (row.get("doubts") or []):
            rows[i] = row | dict(verdict="SUSPECT" if doubts else "TRUSTED", doubts=doubts)
    return rows


def _counted(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(name), int) for name in ("correct", "n"))


def _threat(row: dict[str, Any]) -> str:
    return json.dumps([row.get(name) for name in ("sha256", "data", "data_sha256", "n", "norm", "eps")])


def inherits(doubt: object) -> bool:
    """Whether a doubt is one of earlier, full audits, beside a number that quick ones looked at since."""
    return str(doubt).startswith(f"suspect: {EARLIER}: ")


def _of_audits(row: dict[str, Any]) -> list[str]:
    """An entry's doubts, but for the comparison with others."""
    return [doubt for doubt in map(str, row.get("doubts") or []) if not doubt.startswith(f"suspect: {BLIND}")]


def _key(row: dict[str, Any]) -> str:
    step = row.get("step_size")
    with suppress(TypeError, ValueError):
        step = f"{Ratio(step):.6g}" if step is not None else None  # older entries have six digits
    return json.dumps([step if name == "step_size" else row.get(name) for name in SAME])


def _committed(row: dict[str, Any]) -> bool:
    """Whether its commit says all of the code that it was found by."""
    return isinstance(row.get("commit"), str) and not row["commit"].endswith("+")


def _number(row: dict[str, Any]) -> str:
    """What makes a number and its verdict the very same ones, found by the same code."""
    return json.dumps([row.get(name) for name in (*SAME, "data_sha256", "commit", "versions", "correct", "verdict")])
