"""A recipe's commands as processes: some at a time, each once what it reads is made, all told of a signal."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from gacd.errors import Locked, Stopped
from gacd.recipe import Task

PAUSE = 60.0  # seconds


def run(tasks: Sequence[Task], logs: Path, jobs: int, say: Console) -> list[Task]:
    """Runs tasks as processes, some at a time, each once those before it that it reads have ended.

    Returns:
        Those that failed, or need what failed; the others have run.

    Raises:
        Stopped: a signal came; the processes were told to save and stop, by a second one to stop at once.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(tasks)
    running: list[Process] = []
    failed: list[Task] = []
    again: dict[int, float] = {}  # when to try those again whose run was at work elsewhere
    signals: list[int] = []
    # What is ignored stays so: nohup's hang-up.
    heard = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    handlers = {s: signal.signal(s, lambda number, _: signals.append(number)) for s in heard}
    try:
        while (waiting or running) and not signals:
            for task in list(waiting):
                if any(task.needs(other) for other in failed):
                    waiting.remove(task)
                    failed.append(task)
                elif (
                    len(running) < jobs
                    and time.monotonic() >= again.get(id(task), 0)
                    and not any(task.needs(other) for other in [*waiting, *(p.task for p in running)])
                ):
                    waiting.remove(task)
                    slot = next(n for n in range(jobs) if n not in [p.slot for p in running])
                    running.append(Process(task, logs / f"{tasks.index(task):03}.log", slot, jobs))
            for process in [p for p in running if p.ended]:
                running.remove(process)
                told = id(process.task) in again
                if process.child.returncode == Locked.exit_code:  # as an earlier call's, which was killed
                    waiting.append(process.task)
                    again[id(process.task)] = time.monotonic() + PAUSE
                    if told:
                        continue
                elif process.failed:
                    failed.append(process.task)
                left = len(waiting) + len(running)
                say.print(process.said, f"({left} left)", markup=False, soft_wrap=True)
            time.sleep(0.05)
    finally:
        for process in running:
            process.child.terminate()
        while not all(process.ended for process in running):
            if signals[1:]:
                for process in running:
                    process.child.kill()
            time.sleep(0.05)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if signals:
        raise Stopped(signals[0], logs.parent)
    return failed


class Process:
    """A task at work, with its log; one GPU per slot, or a share of the processor's threads."""

    def __init__(self, task: Task, log: Path, slot: int, jobs: int):
        self.task, self.log, self.slot, self.began = task, log, slot, time.monotonic()
        environment = dict(os.environ)
        if jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        if (gpus := torch.cuda.device_count()) > 1:
            given = environment.get("CUDA_VISIBLE_DEVICES", "")
            names = given.split(",") if given else list(map(str, range(gpus)))
            environment["CUDA_VISIBLE_DEVICES"] = names[slot % gpus]
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
        return self.child.returncode not in (0, 3)  # SUSPECT: the result is there, and says so

    @property
    def said(self) -> str:
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        verdict = f"FAILED, see {self.log}" if self.failed else ""
        verdict = "is at work elsewhere: tried again" if self.child.returncode == Locked.exit_code else verdict
        return f"{minutes:3}:{seconds:02}  gacd {' '.join(self.task.argv[:2])} → {self.task.makes} {verdict}"
