"""Figures of docs/trust.md that take minutes: verdicts over chunk shapes, planted regions, distillation, kills."""

import argparse
import contextlib
import io
import json
import shlex
import sys
import tempfile
from functools import partial
from itertools import combinations
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import planted
from defensive import distilled, evaluated
from evaluation import TEACHER, opened, precisions, searching
from kills import of_evaluations
from students import network, save

from gacd import data as datasets
from gacd.evaluation import STANDARD, evaluate


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--network", default=TEACHER, help="of the chunk shapes, a source")
    parser.add_argument("--n", type=int, default=1000, help="its test images")
    parser.add_argument("--regions", type=int, default=100, help="planted in each sound network, half in a masked one")
    parser.add_argument("--evaluations", type=int, default=40, help="that are killed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trust.json")
    options = parser.parse_args(argv)
    from gacd.results import provenance

    torch.set_num_threads(1)
    result = json.loads(options.out.read_text()) if options.out.exists() else {}  # a part may be run alone
    command = shlex.join(["python", "benchmarks/trust.py", *argv])
    for part in options.parts:
        result[part] = PARTS[part](options) | dict(command=command, **provenance())
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({part: result[part]}, indent=1), flush=True)


def chunks(options: argparse.Namespace) -> dict:
    """Verdicts of the default attacks in chunks of 16, 64 and 250: shares that are equal, and images that are not."""
    model, split = opened(options.network, options.n, "cpu")
    model, found = model.to(memory_format=torch.channels_last), {}  # type: ignore[call-overload]
    for name, (dtype, _) in precisions("cpu").items():
        run = partial(evaluate, model, split, STANDARD, search=partial(searching, "cpu", dtype))
        masks = {chunk: torch.stack(list(run(chunk=chunk).correct.values())) for chunk in (16, 64, 250)}
        differ = {f"{a} and {b}": masks[a] != masks[b] for a, b in combinations(masks, 2)}
        found[name] = {
            pair: dict(equal=1 - float(mask.double().mean()), images=mask.any(0).nonzero()[:, 0].tolist())
            for pair, mask in differ.items()
        }
    return dict(network=options.network, n=len(split), attacks=list(STANDARD), **found)


def regions(options: argparse.Namespace) -> dict:
    """Of planted regions, how many PGD finds within twenty starts, network by network."""
    return {
        name: dict(planted=len(found), found=sum(n > 0 for n in found), latest_start=max(found, default=0))
        for name, found in planted.measured(options.regions)
    }


def defensive(options: argparse.Namespace) -> dict:
    """Accuracies that the default command gives a network distilled at temperature 100."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(data="digits", n=100, eps="0.2", accuracy=evaluated(distilled(Path(folder) / "run")))


def killed(options: argparse.Namespace) -> dict:
    """Evaluations by the command, killed at random moments until they end: kills in all, and files that differ."""
    digits = datasets.load("digits")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        save(Path("t"), network("resnet8-x0.25", 0, digits), digits)
        with contextlib.redirect_stdout(io.StringIO()):
            kills, differ = of_evaluations(options.evaluations)
    return dict(evaluations=options.evaluations, kills=kills, differ=differ)


PARTS = {"chunks": chunks, "planted": regions, "defensive": defensive, "killed": killed}

if __name__ == "__main__":
    main()
