"""The paper's tables and figures: what is missing of their recipes is run, and our numbers shown beside the paper's."""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from gacd import checkpoint, records, tables
from gacd.errors import GacdError, Stopped, UsageError
from gacd.recipe import Row, Task, expand, missing, script

PAPER = Path(__file__).parent / "paper.json"


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
        recipe: claim, table1, table2, table3, table4, figure2, ablation, figures34 or figure5; or a file of your own:
            a shell script of `gacd ...` lines.
        preset: of networks and schedules: small (two CPU cores), paper (a GPU), or a file of your own.
        out: folder of the runs; runs/PRESET if absent.
        seeds: of the recipe claim; the others have seed 0.
        jobs: commands at a time; one per GPU, or one, if absent.
        dry_run: only print the commands that would run, for a cluster's own queue.
    """
    if jobs is not None and jobs < 1:
        raise UsageError("jobs must be at least 1", jobs)
    path, settings = script(recipe, ""), script(preset, "presets")
    folder = Path(out or f"runs/{settings.stem}")
    commands, rows = expand(path, OUT=str(folder), PRESET=str(settings), SEEDS=" ".join(map(str, seeds)))
    steps = missing(commands)
    if dry_run:
        for task in steps:
            print(shlex.join(["gacd", *task.argv]))
        return
    say = Console(highlight=False)
    say.print(f"{len(commands)} commands, {len(commands) - len(steps)} of them done or not needed", markup=False)
    run(steps, folder / "logs", jobs or max(1, torch.cuda.device_count()), say)
    for table in beside(rows):
        say.print(tables.terminal(table))
        place = folder / table.title.split(":")[0].lower().replace(" ", "")
        for suffix, text in dict(md=tables.markdown(table), csv=tables.csv(table), tex=tables.latex(table)).items():
            checkpoint.replace(place.with_suffix(f".{suffix}"), text.encode())
        say.print(f"written to {place}.md, .csv and .tex", markup=False)


def run(tasks: Sequence[Task], logs: Path, jobs: int, say: Console) -> None:
    """Runs tasks as processes, some at a time, each once those before it that it reads have ended.

    Raises:
        GacdError: some failed; what does not need them has run.
        Stopped: a signal came; the processes were told to save and stop.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, failed = list(tasks), [], []  # type: ignore[var-annotated]
    signals: list[int] = []
    handlers = {s: signal.signal(s, lambda number, _: signals.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        while (waiting or running) and not signals:
            for task in list(waiting):
                if any(t.makes in task.all_reads for t in failed):
                    waiting.remove(task)
                    failed.append(task)
                elif len(running) < jobs and not any(
                    t.makes in task.all_reads for t in [*waiting, *(p.task for p in running)]
                ):
                    waiting.remove(task)
                    slot = next(n for n in range(jobs) if n not in [p.slot for p in running])
                    running.append(Process(task, logs / f"{tasks.index(task):03}.log", slot, jobs))
            for process in [p for p in running if p.ended]:
                running.remove(process)
                if process.failed:
                    failed.append(process.task)
                left = len(waiting) + len(running)
                say.print(process.said, f"({left} left)", markup=False, soft_wrap=True)
            time.sleep(0.05)
        for process in running:
            process.stop()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if signals:
        raise Stopped(signals[0], logs.parent)
    if failed:
        raise GacdError(f"{len(failed)} of {len(tasks)} commands failed or lack what failed", logs)


class Process:
    """A task at work, with its log; one GPU per slot, or a share of the processor's threads."""

    def __init__(self, task: Task, log: Path, slot: int, jobs: int):
        self.task, self.log, self.slot, self.began = task, log, slot, time.monotonic()
        environment = dict(os.environ)
        if jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        if (gpus := torch.cuda.device_count()) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
        with open(log, "w") as file:
            file.write(shlex.join(["gacd", *task.argv]) + "\n")
            file.flush()
            # A session of its own: Ctrl-C reaches this process alone, which tells the others once.
            command = [sys.executable, "-m", "gacd", *task.argv]
            self.child = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)

    @property
    def ended(self) -> bool:
        return self.child.poll() is not None

    @property
    def failed(self) -> bool:
        return self.child.returncode != 0

    @property
    def said(self) -> str:
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        verdict = f"FAILED, see {self.log}" if self.failed else ""
        return f"{minutes:3}:{seconds:02}  gacd {' '.join(self.task.argv[:2])} → {self.task.makes} {verdict}"

    def stop(self) -> None:
        self.child.send_signal(signal.SIGTERM)
        self.child.wait()


def beside(rows: Sequence[Row]) -> list[tables.Table]:
    """Our accuracies beside the paper's, a table for each that the rows name, in per cent; missing cells stay empty."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    made = []
    for name in dict.fromkeys(row.table for row in rows):
        about = paper.get(name, dict(title=name, attack="pgd20", cells={}))
        lines = [(row.cell, [_measured(path) for path in row.runs], about["cells"].get(row.cell)) for row in rows]
        lines = [line for line, row in zip(lines, rows, strict=True) if row.table == name]
        attacks = [a for a in dict.fromkeys(a for _, ms, _ in lines for m in ms for a in m) if a != "natural"]
        columns = [tables.Column(""), *(tables.Column(a, True, ("mean", "sd")) for a in ("natural", *attacks))]
        columns += [tables.Column("seeds", True)]
        columns += [tables.Column(f"paper: {a}", True) for a in ("natural", about["attack"])] if about["cells"] else []
        body = []
        for cell, measured, theirs in lines:
            found = [m for m in measured if m]
            cells = [_mean([m[a] for m in found if a in m]) for a in ("natural", *attacks)]
            cells.append(tables.Cell(str(len(found)) if found else tables.MISSING, (float(len(found)),)))
            cells += [tables.number(value) for value in (theirs or (None, None))] if about["cells"] else []
            body.append([tables.Cell(cell.replace("/", " / ")), *cells])
        made.append(tables.Table(about["title"], columns, body, about.get("note", "")))
    return made


def _measured(path: Path) -> dict[str, float]:
    """Natural accuracy and those under attacks, in per cent, of a run that was evaluated."""
    found = records.read(path, path.name).measured if path.is_dir() else []
    return {m.attack: 100 * m.accuracy for m in found}


def _mean(values: Sequence[float]) -> tables.Cell:
    if not values:
        return tables.number(None)
    spread = statistics.stdev(values) if len(values) > 1 else None
    return tables.number(statistics.fmean(values), spread=spread)
