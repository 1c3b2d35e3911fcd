"""Evaluations by the command in processes that are killed at random moments, until one ends."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch

from gacd import assess, noise
from gacd.audit import Audit
from gacd.cli import main

ARGV = ["evaluate", "t", "--data", "digits", "--n", "60", "--attacks", "pgd4", "margin4", "--precision", "32"]
ARGV += ["--chunk", "8", "--eps", "8/255", "0.02", "--device", "cpu"]


def ended(where: str, seconds: float | None = None) -> int:
    """The exit code of the command; -9 where it was killed after that time."""
    process = multiprocessing.get_context("fork").Process(target=evaluated, args=(*ARGV, "--out", where))
    process.start()
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode or 0


def of_evaluations(n: int) -> tuple[int, int]:
    """Kills in all of n evaluations of the run "t", and how many of them left files that differ from a whole one's."""
    began = time.perf_counter()
    assert ended("whole") == 0
    whole, kills, differ = time.perf_counter() - began, 0, 0
    for number in range(n):
        moments = noise.uniform(noise.key("kills", number), torch.arange(1000)).tolist()
        for tries, moment in enumerate(moments):
            if (code := ended(f"killed-{number}", whole * moment * (1 + tries / 4))) != -signal.SIGKILL:
                break
            kills += 1
        assert code == 0
        differ += files(f"killed-{number}") != files("whole")
    return kills, differ


def files(where: str) -> dict[str, bytes]:
    """Everything that an evaluation has left, by name."""
    return {path.name: path.read_bytes() for path in Path(where).iterdir() if path.is_file()}


def unaudited(*args, **options) -> Audit:
    return Audit()


def evaluated(*argv: str) -> None:
    """A process's main(argv), without audits."""
    torch.set_num_threads(1)
    assess.audit = unaudited  # type: ignore[assignment]
    sys.exit(main(list(argv)))
