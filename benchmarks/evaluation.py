"""Evaluation beside what people use: torchattacks' PGD-20 and the official AutoAttack; rate and memory.

Sides take turns in one process, on the same network and images; natural errors count as beaten for all. Peers are used
as their READMEs show: batches of images as they come, float32. torchattacks is installed without the old versions that
it asks for: pip install --no-deps torchattacks tqdm. With --processes our side shares the images out over so many,
as `gacd evaluate --devices` does, started before; peers have --threads in their one process.
"""

import argparse
import gc
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from gacd import checkpoint, noise
from gacd import data as datasets
from gacd.attacks.graph import captured
from gacd.attacks.official import Official
from gacd.attacks.search import PGD, ask, begin
from gacd.cost import Operations
from gacd.device import exactly, fast_bfloat16, keep_freed_memory
from gacd.evaluation import evaluate
from gacd.models import build
from gacd.models.folding import attackable
from gacd.readers import Split

TEACHER = "results/small/cifar10/resnet20/teacher.safetensors"
EPS = 8 / 255


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="+", default=[TEACHER], help="sources, as for gacd evaluate")
    sizes = dict(n=1000, n_cascade=100, batch=250, rounds=3, matrix=2048, threads=torch.get_num_threads(), processes=1)
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precisions", nargs="+", choices=("32", "bf16", "bf16 compiled"), help="all that are fast")
    parser.add_argument("--exact-peers", action="store_true", help="on a GPU: without TF32, PyTorch's default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluation.json")
    options = parser.parse_args(argv)
    from gacd.results import provenance

    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 &= not options.exact_peers
    result = json.loads(options.out.read_text()) if options.out.exists() else {}  # a part may be run alone
    for part in options.parts:
        for found in PARTS[part](options):  # network by network
            command = shlex.join(["python", "benchmarks/evaluation.py", *argv])
            result[part] = found | dict(threads=options.threads, processes=options.processes, command=command)
            result[part] |= provenance(options.device)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({part: found}, indent=1), flush=True)


def pgd(options: argparse.Namespace) -> Iterator[dict]:
    """PGD-20: seconds of whole evaluations, natural pass and verdicts included."""
    import torchattacks

    def theirs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torchattacks.PGD(model, eps=EPS, alpha=2 / 255, steps=20)(x, y)

    rows = []
    for source in options.networks:
        model, split = opened(source, options.n, options.device)
        sides = {"torchattacks": lambda m=model, s=split: batches(m, s, theirs, options)}
        sides |= ours(source, len(split), "pgd20", options)
        rows.append(dict(network=source, n=len(split)) | race(sides, "torchattacks", options.rounds))
        yield dict(networks=rows)


def cascade(options: argparse.Namespace) -> Iterator[dict]:
    """Our cascade beside the official AutoAttack, and the images that they judge differently."""
    rows = []
    for source in options.networks:
        model, split = opened(source, options.n_cascade, options.device)
        classes = int(split.labels.max()) + 1
        official = Official(norm="Linf", eps=EPS, seed=0, classes=classes)
        sides = {"autoattack": lambda m=model, s=split, o=official: batches(m, s, o.attack, options)}
        sides |= ours(source, len(split), "cascade", options)
        rows.append(dict(network=source, n=len(split)) | race(sides, "autoattack", 1))
        yield dict(networks=rows)


def rate(options: argparse.Namespace) -> Iterator[dict]:
    """A ResNet-18's attack steps, as a share of the rate of matrix products in the same precision."""
    device, n = options.device, options.matrix
    model = build("resnet18").eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    where = torch.arange(options.batch // 2, device=device)
    x = noise.uniform(1, where, (3, 32, 32)).contiguous(memory_format=torch.channels_last)
    y, search, found = where % 10, PGD(), {}
    rows = begin(search, x, y, None, x)
    with Operations() as counter:  # of the network itself: what `attackable` makes of it may compute more, faster
        ask(search, model, rows, "gradient")
    for name, (dtype, compile) in precisions(device).items():
        a = torch.randn(n, n, device=device).to(dtype)
        with attackable(model, x, compile=compile) as quick, exactly(), searching(device, dtype):
            step = captured(lambda given, quick=quick: ask(search, quick, given, "gradient")[2:], rows)
            pairs = [(timed(lambda a=a: a @ a), timed(partial(step, rows))) for _ in range(options.rounds)]
        product, seconds = (min(column) for column in zip(*pairs, strict=True))
        matrix, attack = 2 * n**3 / product, counter.total / seconds
        found[name] = dict(matrix_gflops=matrix / 1e9, attack_gflops=attack / 1e9, share=attack / matrix)
    yield dict(network="resnet18", batch=len(x), **found)


def memory(options: argparse.Namespace) -> Iterator[dict]:
    """Peak memory of an evaluation beside its images, all attacked, each size in a process of its own. Linux."""
    code = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from evaluation import resident, keep_freed_memory, Split, build, evaluate, Path
keep_freed_memory()  # as the command does
torch.manual_seed(0)
images, model = torch.randint(256, (int(sys.argv[2]), 3, 16, 16), dtype=torch.uint8), build("resnet8-x0.25", 4).eval()
with torch.no_grad():
    labels = torch.cat([model(x / 255).argmax(1) for x in images.split(64)])
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
result = evaluate(model, Split(images, labels), ["pgd1"])
assert result.natural > 0.99
print(resident("VmHWM") - before)
"""
    here, found = str(Path(__file__).parent), {}
    for n in (1_000, 10_000, 100_000):
        done = subprocess.run([sys.executable, "-c", code, here, str(n)], check=True, stdout=subprocess.PIPE, text=True)
        found[str(n)] = float(done.stdout.split()[-1])
    yield dict(network="resnet8-x0.25", attack="pgd1", peak_mb=found)


PARTS = {"pgd": pgd, "cascade": cascade, "rate": rate, "memory": memory}


def ours(source: str, n: int, attack: str, options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Each of `precisions` -> who withstood, (N,) bool. Peers on a GPU have TF32, PyTorch's default, ours have not."""
    k, network = options.processes, (source, n, options.device)
    workers = [worker(number, max(options.threads // k, 1)) for number in range(k)] if k > 1 else []
    for each in workers:
        each.submit(our_network, *network).result()

    def run(dtype: torch.dtype, compile: bool) -> Tensor:
        if not workers:
            return withstood(*network, attack, dtype, compile)
        shares = [each.submit(withstood, *network, attack, dtype, compile, (i, k)) for i, each in enumerate(workers)]
        return torch.stack([share.result() for share in shares]).any(0)

    sides = precisions(options.device)
    asked = options.precisions or sides
    return {f"gacd {name}": partial(run, *how) for name, how in sides.items() if name in asked}


@cache
def worker(number: int, threads: int) -> ProcessPoolExecutor:
    """A process of its own."""
    made = ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,))
    made.submit(keep_freed_memory).result()
    return made


@cache
def our_network(source: str, n: int, device: str) -> tuple[nn.Module, Split]:
    model, split = opened(source, n, device)
    return model.to(memory_format=torch.channels_last), split  # type: ignore[call-overload]


def withstood(
    source: str, n: int, device: str, attack: str, dtype: torch.dtype, compile: bool, shard: tuple[int, int] = (0, 1)
) -> Tensor:
    """(N,) bool, of the shard's images."""
    (model, split), context = our_network(source, n, device), partial(searching, device, dtype)
    with exactly():
        return evaluate(model, split, [attack], search=context, compile=compile, shard=shard).survivors


def precisions(device: str) -> dict[str, tuple[torch.dtype, bool]]:
    """Those that the device is fast at, compiled too on a GPU: name -> type, and whether compiled."""
    found = {"32": (torch.float32, False)}
    if fast_bfloat16(device):
        found["bf16"] = (torch.bfloat16, False)
        if device == "cuda":
            found["bf16 compiled"] = (torch.bfloat16, True)
    return found


def searching(device: str, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


def batches(model: nn.Module, split: Split, attack: Callable[..., Tensor], options: argparse.Namespace) -> Tensor:
    """What the peers' users write: attack each batch, look at the predictions."""
    robust = []
    for where in torch.arange(len(split)).split(options.batch):
        x, y = datasets.pixels(split.images[where]).to(options.device), split.labels[where].to(options.device)
        with torch.no_grad():
            natural = model(x).argmax(1) == y
        x_adv = attack(model, x, y)
        with torch.no_grad():
            robust.append(natural & (model(x_adv).argmax(1) == y))
    return torch.cat(robust).cpu()


def race(sides: dict[str, Callable[[], Tensor]], peer: str, rounds: int) -> dict:
    """Sides in turn: images per second at the median, ratios to the peer, verdicts that differ from the peer's.

    Ratios are of wall time, and of CPU time, which other work on the machine changes less.
    """
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    verdicts = {}
    for _ in range(rounds):
        for name, side in sides.items():
            gc.collect()
            start, before = time.perf_counter(), spent()
            verdicts[name] = side()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(spent() - before)
    found = {}
    for name, robust in verdicts.items():
        found[name] = dict(images_per_second=len(robust) / median(wall[name]), robust=float(robust.double().mean()))
        found[name] |= dict(seconds=wall[name], cpu_seconds=cpu[name])
        if name != peer:
            found[name] |= dict(
                speedup=median(wall[peer]) / median(wall[name]),
                cpu_speedup=median(cpu[peer]) / median(cpu[name]),
                only_peer_beats=(robust & ~verdicts[peer]).nonzero()[:, 0].tolist(),
                only_gacd_beats=(~robust & verdicts[peer]).nonzero()[:, 0].tolist(),
            )
    return dict(sides=found)


def opened(source: str, n: int, device: str) -> tuple[nn.Module, Split]:
    """A network and the first test images of the data that it was trained on."""
    found = checkpoint.open_source(source)
    return found.model.to(device), datasets.load(found.record["data"]).test.take(torch.arange(n))


def spent() -> float:
    """CPU seconds of this process and of its workers. Linux, if there are any."""
    stats = [Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split() for child in active_children()]
    return time.process_time() + sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident(field: str) -> float:
    """MB resident now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


if __name__ == "__main__":
    main()
