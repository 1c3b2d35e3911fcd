"""Training steps a second of every method, against the machine's own matrix products and ARD's public loop.

Everything is measured in turn, round after round, so that another load on the machine falls on all alike; a ratio is
the median of the rounds' ratios.
"""

import argparse
import inspect
import itertools
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from lightning_fabric import Fabric
from peers import PILImages, ard_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from gacd import methods
from gacd.data import PUBLISHED, Loader
from gacd.device import launch
from gacd.methods.base import Clock, Method
from gacd.models import Classifier, build
from gacd.readers import Split
from gacd.results import provenance

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
PEERS = {  # name -> options: whether images come ready made, whether the attack computes parameter gradients
    "ard public loop": (True, False),
    "ard public loop, images ready": (False, False),
    "ard public loop, attack by backward": (True, True),
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(methods.names()))
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--teacher", default="resnet20")
    for name, default in {"images": 50_000, "batch-size": 128, "repeats": 5, "matrix": 2048, "threads": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    labels = torch.arange(options.images) % 10
    split = Split(torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8), labels)

    auto = launch(options.device)[1]
    fabrics = {precision: launch(options.device, precision=precision)[0] for precision in dict.fromkeys((auto, "32"))}
    steps: dict[tuple[str, str], Callable[[], None]] = {}
    for precision, fabric in fabrics.items():
        steps["matmul", precision] = product(options.matrix, fabric, precision)
        for name in options.methods:
            steps[name, precision] = ours(method(name, options, labels), split, options.batch_size, fabric)
    if "ard" in options.methods:
        for name, how in PEERS.items():
            steps[name, "32"] = public_ard(options, split, fabrics["32"].device, *how)
    flops, seconds = interleave(steps, options.repeats, fabrics["32"].device)

    matmul = {p: 2 * options.matrix**3 / min(seconds["matmul", p]) / 1e9 for p in fabrics}
    rows = []
    for (name, precision), times in seconds.items():
        if name != "matmul":
            gflops = flops[name, precision] / median(times) / 1e9
            row = dict(method=name, precision=precision, images_per_s=options.batch_size / median(times))
            rows.append(row | dict(gflops=gflops, share_of_matmul=gflops / matmul[precision]))
    ard = {  # precision -> peer -> how many times as fast
        p: {peer: median(map(float.__truediv__, seconds[peer, "32"], seconds["ard", p])) for peer in PEERS}
        for p in (fabrics if "ard" in options.methods else ())
    }
    result = dict(
        rows=[row for row in rows if row["method"] not in PEERS],
        peers=[row for row in rows if row["method"] in PEERS],
        ard_speedup=ard.get(auto, {}).get("ard public loop"),
        ard_speedup_float32=ard.get("32", {}).get("ard public loop"),
        ard=ard,
        matmul_gflops=matmul,
        auto=auto,
        sizes={key: getattr(options, key) for key in ("student", "teacher", "images", "batch_size", "matrix")},
        threads=torch.get_num_threads(),
        repeats=options.repeats,
        command=shlex.join(["python", "benchmarks/training.py", *argv]),
        **provenance(fabrics["32"].device),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print("{method:36} {precision:5} {images_per_s:9.1f} images/s {share_of_matmul:7.1%} of matmul".format(**row))


def interleave(steps: dict, repeats: int, device: torch.device) -> tuple[dict, dict]:
    """Floating-point operations (a multiply-add is two) and the seconds of each repetition, by key."""
    flops, seconds = {}, {key: [] for key in steps}
    for key, step in steps.items():
        step()  # warms up, and estimates Z
        counter = FlopCounterMode(display=False)
        # Its hooks on modules fail under `autograd.grad` of a module's input; only the total is wanted here.
        counter.mod_tracker = SimpleNamespace(parents={"Global"}, __enter__=lambda: None, __exit__=lambda: None)
        with counter:
            step()
        flops[key] = counter.get_total_flops()
    for _, (key, step) in itertools.product(range(repeats), steps.items()):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[key].append(time.perf_counter() - start)
    return flops, seconds


def product(n: int, fabric: Fabric, precision: str) -> Callable[[], None]:
    a, b = (torch.randn(n, n, device=fabric.device, dtype=DTYPES[precision]) for _ in range(2))
    return lambda: torch.mm(a, b)


def network(name: str) -> Classifier:
    return build(name, 10, *PUBLISHED["cifar10"])


def method(name: str, options: argparse.Namespace, labels: Tensor) -> Method:
    """Any method, with its defaults; what else its signature asks for is not known here."""
    cls = methods.load(name)
    known = dict(student=network(options.student), teacher=network(options.teacher), labels=labels)
    asked = inspect.signature(cls).parameters
    return cls(**{key: value for key, value in known.items() if key in asked})


def ours(method: Method, split: Split, batch_size: int, fabric: Fabric) -> Callable[[], None]:
    """A step as `gacd.training.fit` does it, data included."""
    loader = Loader(split, batch_size=batch_size, augment="crop-flip", device=fabric.device)
    batches = ((epoch, *batch) for epoch in itertools.count() for batch in loader.epoch(epoch))
    method.student.head.requires_grad_(method.trains_head)
    method.to(memory_format=torch.channels_last)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, momentum=0.9, weight_decay=5e-4)
    wrapped, optimizer = fabric.setup(method, optimizer)
    count = itertools.count()

    def step() -> None:
        epoch, x, y, index = next(batches)
        method.clock = Clock(0, epoch, next(count))
        loss = wrapped(x, y, index)["loss"]
        fabric.backward(loss)
        norm = nn.utils.clip_grad_norm_(trained, math.inf)
        if not math.isfinite(float(loss.detach()) + float(norm)):
            raise FloatingPointError(f"{type(method).__name__}: loss or gradient not finite")
        optimizer.step()
        optimizer.zero_grad()

    return step


def public_ard(
    options: argparse.Namespace, split: Split, device: torch.device, loading: bool, parameter_gradients: bool
) -> Callable[[], None]:
    """A step of `peers.ard_loss`; images through a DataLoader without workers, or one batch again and again."""
    student, teacher = network(options.student).to(device), network(options.teacher).to(device).eval()
    teacher.requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), 0.01, momentum=0.9, weight_decay=2e-4)
    loader = DataLoader(PILImages(split.images, split.labels), options.batch_size, shuffle=True, drop_last=True)
    batches: Iterator = itertools.chain.from_iterable(itertools.repeat(loader))
    if not loading:
        batches = itertools.repeat([part.to(device) for part in next(batches)])

    def step() -> None:
        x, y = (part.to(device) for part in next(batches))
        optimizer.zero_grad()
        ard_loss(student, teacher, x, y, parameter_gradients=parameter_gradients).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
