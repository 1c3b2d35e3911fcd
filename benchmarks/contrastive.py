"""One contrastive step, both directions: GACD's product with a shared draw beside CRD's gathers. Linux.

Each side runs in processes of its own, in turn, so that its peak of resident memory is its own. Ours draws its
negatives inside the time; CRD's drawing, which its data loader does, is timed apart and `speedup` leaves it out.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from peers import ClassPools, CRDMemory
from torch import Tensor
from torch.nn import functional as F

from gacd.methods.base import Clock
from gacd.methods.gacd import GACD
from gacd.models import build

Step = Callable[[int, Tensor, Tensor, Tensor], tuple[float, float]]  # (number, t, s, index) -> seconds, of drawing


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(batch=64, k=16384, images=50_000, dim=128, classes=10, repeats=10, rounds=3).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "contrastive.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a process of its own, started by this file
    options = parser.parse_args(argv)
    if options.side:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options)))
        return

    from gacd.results import provenance

    runs: dict[str, list] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side, found in runs.items():
            found.append(alone(side, argv, options.threads))
    found = {side: summary(rows) for side, rows in runs.items()}
    ours, crd = found["ours"], found["crd"]
    result = dict(
        speedup=crd["ms"] / ours["ms"],
        speedup_with_drawing=crd["ms_with_drawing"] / ours["ms"],
        memory_ratio=ours["peak_mb"] / crd["peak_mb"],  # of what a step takes beside banks and imports
        **found,
        sizes={name: getattr(options, name) for name in ("batch", "k", "images", "dim", "classes")},
        threads=options.threads,
        repeats=options.repeats * options.rounds,
        command=shlex.join(["python", "benchmarks/contrastive.py", *argv]),
        **provenance(),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("speedup", "speedup_with_drawing", "memory_ratio", *SIDES)}))


def alone(side: str, argv: list[str], threads: int) -> dict:
    command = [sys.executable, __file__, *argv, "--threads", str(threads), "--side", side]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict:
    """Times and memory of one side, in this process."""
    make = SIDES[options.side]
    run(make(8, 100, 16, 10), 2, 100, 16, 2)  # what torch loads at first use is nobody's working memory
    step = make(options.k, options.images, options.dim, options.classes)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    times = run(step, options.batch, options.images, options.dim, 1 + options.repeats)[1:]
    peak = resident("VmHWM")
    return dict(times=times, peak_mb=peak - before, process_mb=peak)


def run(step: Step, batch: int, images: int, dim: int, repeats: int) -> list[tuple[float, float]]:
    times = []
    for i in range(repeats):
        t, s = (F.normalize(torch.randn(batch, dim), dim=1).requires_grad_() for _ in range(2))
        times.append(step(i, t, s, torch.randperm(images)[:batch]))
    return times


def ours(k: int, images: int, dim: int, classes: int) -> Step:
    labels = torch.arange(images) % classes
    method = GACD(build("resnet8-x0.1", classes), build("resnet8-x0.1", classes), labels, k=k, dim=dim)

    def step(i: int, t: Tensor, s: Tensor, index: Tensor) -> tuple[float, float]:
        y, w = labels[index], torch.ones(len(index))
        start = time.perf_counter()
        method.clock = Clock(step=i)
        loss = method.contrast(t, s, y, w).mean()
        method.bank_t.update(index, t, method.bank_momentum)
        method.bank_s.update(index, s, method.bank_momentum)
        loss.backward()
        return time.perf_counter() - start, 0.0

    return step


def crd(k: int, images: int, dim: int, classes: int) -> Step:
    memory, pools = CRDMemory(images, dim), ClassPools((torch.arange(images) % classes).tolist(), k)

    def step(i: int, t: Tensor, s: Tensor, index: Tensor) -> tuple[float, float]:
        start = time.perf_counter()
        places = pools.batch(index)
        drawn = time.perf_counter()
        memory(t, s, places).backward()
        return time.perf_counter() - drawn, drawn - start

    return step


SIDES = {"ours": ours, "crd": crd}


def summary(rows: list[dict]) -> dict[str, float]:
    """Medians over all repetitions; memory's over the processes."""
    steps, drawings = zip(*(times for row in rows for times in row["times"]), strict=True)
    found = dict(ms=1e3 * median(steps), fastest_ms=1e3 * min(steps))
    if any(drawings):
        found["drawing_ms"] = 1e3 * median(drawings)
        found["ms_with_drawing"] = 1e3 * median(map(sum, zip(steps, drawings, strict=True)))
    return found | {key: median(row[key] for row in rows) for key in ("peak_mb", "process_mb")}


def resident(field: str) -> float:
    """MB resident now (VmRSS) or at most (VmHWM). Not ru_maxrss: a child starts with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


if __name__ == "__main__":
    main()
