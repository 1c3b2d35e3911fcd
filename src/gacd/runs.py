"""A run directory: what training keeps on disk, who may write there, and how a run comes back."""

import contextlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from torch.optim.swa_utils import AveragedModel

from gacd import checkpoint, ranks
from gacd.data import Dataset, same
from gacd.errors import InputError, UsageError
from gacd.methods.base import Method
from gacd.readers import holds
from gacd.results import fingerprint, provenance

FREE = {"device", "devices", "nodes", "data_dir", "log_every", "save_every"}  # may change between a run and its resume
UNFINISHED = "its training has not ended"
PLACES = {"teacher", "init", "cost_of"}  # options that name a run: a path may be written otherwise


class Run:
    """What a run keeps on disk, and how it comes back."""

    def __init__(self, out: Path, method: Method, optimizer: Any, average: AveragedModel | None, data: Dataset):
        self.out, self.method, self.optimizer, self.average = out, method, optimizer, average
        self.origin = dict(data=data.name, size=data.size, classes=data.classes, method=type(method).__name__.lower())
        self.given = dict(data_sha256=fingerprint(data.train))
        if method.teacher is not None:
            self.given["teacher_sha256"] = checkpoint.digest(method.teacher)
        self.logged = 0  # bytes of metrics.jsonl that belong to the newest checkpoint
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.saved = self.began = time.monotonic()
        self.writes = ranks.rank() == 0

    @property
    def weights(self) -> Any:
        """The network that counts: the averaged one if there is one."""
        return self.method.student if self.average is None else self.average.module

    @property
    def summary(self) -> dict[str, Any]:
        return self.last | {"best": self.best}

    def restore(self) -> int:
        """Loads the newest checkpoint and cuts metrics.jsonl to its length; returns the step to go on from."""
        folder = self.out / "checkpoints"
        state = checkpoint.read_newest(folder / "last.pt", folder / "previous.pt")
        if state is None:
            return 0
        for name, what in dict(data_sha256="training images are", teacher_sha256="teacher is").items():
            if name in state and state[name] != self.given.get(name):
                raise InputError(f"the {what} not what it was started with", self.out, "another --out")
        try:
            self.method.load_state_dict(state["method"])
        except RuntimeError as error:
            what = " ".join(str(error).split())[:200]
            raise InputError("its method has changed since", f"{self.out}: {what}", "another --out") from None
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.logged, self.best, self.last = state["logged"], state["best"], state["last"]
        return state["step"]

    def __enter__(self) -> "Run":
        if self.writes:
            self.out.mkdir(parents=True, exist_ok=True)
            self.metrics = open(self.out / "metrics.jsonl", "a+b")
            kept = self.metrics.seek(0, 2)
            if kept < self.logged:
                print(f"gacd: warning: {self.out / 'metrics.jsonl'} lost its first rows", file=sys.stderr)
            self.metrics.truncate(min(self.logged, kept))
            self._tick()
        return self

    def __exit__(self, *error: object) -> None:
        if self.writes:
            self.metrics.close()

    def log(self, **row: float) -> None:
        if self.writes:
            self.metrics.write((json.dumps(row) + "\n").encode())
            self.metrics.flush()
            self._tick(step=row["step"])

    def _tick(self, step: float | None = None) -> None:
        """A row of timing.jsonl: seconds since the start or resume, whose own row has no step."""
        with open(self.out / "timing.jsonl", "a") as file:
            file.write(json.dumps(dict(step=step, seconds=round(time.monotonic() - self.began, 3))) + "\n")

    def validated(self, step: int, epoch: int, row: dict[str, float]) -> None:
        """Logs a validation, and keeps the weights if they are the best so far (without validation: the newest)."""
        if row:
            self.log(step=step, epoch=epoch, **row)
        self.last = row
        by = self.method.best_by
        if row.get(by, 0.0) >= self.best.get(by, 0.0):
            self.best = row | {"epoch": epoch}
            if self.writes:
                checkpoint.write(self.out / "checkpoints" / "best.pt", self.network(self.best))

    def network(self, row: dict[str, Any]) -> dict[str, Any]:
        """What a file of weights holds: config, weights, and a record with a validation's row."""
        student = self.weights
        record = self.origin | row | ({} if self.method.trains_head else dict(head="untrained"))
        return dict(model=student.config(), weights=student.state_dict(), record=record)

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self.saved

    def save(self, step: int) -> None:
        if self.writes:
            state = self.network(self.last) | dict(
                method=self.method.state_dict(),
                optimizer=self.optimizer.state_dict(),
                average=None if self.average is None else self.average.state_dict(),
                step=step,
                logged=self.metrics.seek(0, 2),
                best=self.best,
                last=self.last,
                **self.given,
            )
            with checkpoint.writing(self.out / "metrics.jsonl"):
                os.fsync(self.metrics.fileno())  # the checkpoint promises its length
            folder = self.out / "checkpoints"
            checkpoint.write(folder / "last.pt", state, previous=folder / "previous.pt")
            self._tick(step)
        self.saved = time.monotonic()


class Stopping:
    """Turns Ctrl-C and SIGTERM into a request that training answers between two steps."""

    signal = 0

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device

    def __enter__(self) -> "Stopping":
        self.handlers = {s: signal.signal(s, self._remember) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def agreed(self, save: bool) -> tuple[bool, int]:
        """Whether any process wants to save, and the signal that any received."""
        if ranks.size() == 1:
            return save, self.signal
        wishes = ranks.gather(torch.tensor([[int(save), self.signal]], device=self.device)).amax(0)
        return bool(wishes[0]), int(wishes[1])

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal:  # a second Ctrl-C does not wait for the step
            raise KeyboardInterrupt
        self.signal = number


def remember(out: Path, options: dict[str, Any]) -> None:
    """Writes config.yaml, or compares: a run resumed with other options is refused, with their names.

    Args:
        out: run directory.
        options: flat names and plain values; those in FREE may change.
    """
    path, kept = out / "config.yaml", {file.name for file in (out / "checkpoints").glob("*.pt")}
    if kept and finished(out) and not resumable(out):
        raise InputError("the run is finished, and its checkpoints/last.pt is gone", out, "another --out")
    if resumable(out) or "probe.pt" in kept:
        check_options(out, dict.fromkeys(config(out)) | options, FREE)
    elif ranks.rank() == 0:
        checkpoint.replace(path, yaml.safe_dump(options, sort_keys=False).encode())


def resumable(out: Path) -> bool:
    """Whether a training has a checkpoint to go on from."""
    return any((out / "checkpoints" / name).exists() for name in ("last.pt", "previous.pt"))


def check_options(out: Path, options: dict[str, Any], free: set[str]) -> None:
    """Refuses options that a run was not started with, but for the free ones."""
    old = config(out)
    changed = [n for n in sorted(options) if n not in free and not _alike(n, old.get(n), options[n])]
    if changed:
        what = ", ".join(f"{name} {old.get(name)} -> {options[name]}" for name in changed)
        raise UsageError(f"the run was started with other options: {what}", out, "give those, or another --out")


def _alike(name: str, old: Any, new: Any) -> bool:
    """Equal; or one place, however it is written."""
    here = name in PLACES and old is not None and new is not None
    return old == new or (here and Path(old).resolve() == Path(new).resolve()) or (name == "data" and same(old, new))


def began(
    out: Path, cost: dict[str, Any], precision: str, device: torch.device, stage: dict[str, Any], init: str | None
) -> None:
    """Notes in run.json what a training is, what it costs, and when, where and by what it was started or resumed.

    Args:
        out: run directory.
        cost: from `cost.price`.
        precision, device: chosen.
        stage: "method", "model", "teacher" (its network, or None), "data", and the method's "weights", if it has any.
        init: source of the weights that it starts from; if a run, its stages come before this one.
    """
    if ranks.rank() == 0:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        start = dict(time=now, precision=precision, **provenance(device))
        starts = [*(story(out).get("starts", []) if resumable(out) else []), start]
        before = [] if init is None else story(run_of(init)).get("stages")
        before = before if isinstance(before, list) else [{}]  # nobody knows
        _tell(out, dict(format=1, stages=[*before, stage], cost=cost, starts=starts))


def ended(out: Path) -> None:
    """Notes in run.json that the training is complete, and how long it took over all of its resumes."""
    rows, timing = [], out / "timing.jsonl"
    for line in timing.read_text(errors="replace").splitlines() if timing.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that a full disk cut
            rows.append(float(json.loads(line)["seconds"]))
    seconds = sum(max(b - a, 0) for a, b in itertools.pairwise(rows))  # falls are resumes
    _tell(out, story(out) | dict(seconds=round(seconds)))


def run_of(source: str) -> Path:
    """The run directory that a source names, itself or by a file in its checkpoints/; another source as it is."""
    path = Path(source)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def story(out: Path) -> dict[str, Any]:
    """A run's run.json; empty where there is none."""
    try:
        content = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def finished(out: Path | None) -> bool:
    """Whether a run's training has ended, and did not merely stop."""
    return out is not None and story(out).get("seconds") is not None


def unfinished(out: Path | None) -> list[str]:
    """What to say of a run whose training was stopped, or goes on; nothing of others."""
    if out is None or not story(out) or finished(out):
        return []
    epochs = _told(out).get("epochs")
    return [f"{out}: {UNFINISHED}, these are its weights so far ({epochs} epochs were asked for)"]


def _told(out: Path | None) -> dict[str, Any]:
    """A run's options where they can be read."""
    with contextlib.suppress(InputError):
        return config(out) if out else {}
    return {}


def _tell(out: Path, content: dict[str, Any]) -> None:
    checkpoint.replace(out / "run.json", (json.dumps(content, indent=1) + "\n").encode())


def data_dir_of(opened: checkpoint.Opened, data: str) -> str | None:
    """Where a source's run was told that data sets lie, if this one is there."""
    place = _told(opened.run).get("data_dir")
    return str(place) if place and holds(Path(str(place)), data) else None


def held_out(opened: checkpoint.Opened) -> dict[str, int]:
    """Which images a source's training held out, by its run's config.yaml, else by its own record."""
    options = config(opened.run) if opened.run and (opened.run / "config.yaml").exists() else opened.record
    return {name: value for name in ("seed", "val_size") if type(value := options.get(name)) is int}


def config(out: Path) -> dict[str, Any]:
    """A run's options, from its config.yaml."""
    try:
        options = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        options = None
    if not isinstance(options, dict):
        raise InputError("not a run directory: no readable config.yaml", out)
    return options
