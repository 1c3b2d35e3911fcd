"""Gathers the runs of src/gacd/recipes/cifar10.sh into benchmarks/results/cifar10.json.

OUT=runs/cifar10 bash src/gacd/recipes/cifar10.sh
python benchmarks/cifar10.py runs/cifar10
"""

import argparse
import json
from pathlib import Path

from gacd import results
from gacd.records import collect

RESULTS = Path(__file__).parent / "results" / "cifar10.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [row(run.path, run.command) for run in collect([str(options.runs)])]
    command = "OUT=runs/cifar10 bash src/gacd/recipes/cifar10.sh; python benchmarks/cifar10.py runs/cifar10"
    payload = dict(rows=rows, command=command, **results.provenance())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(payload, indent=1) + "\n")


def row(run: Path, command: str) -> dict:
    """A run's accuracies on all test images, its training time and what made it."""
    entries = {e["attack"]: e for e in results.read(run)["results"] if e.get("eps", "8/255") == "8/255"}
    shares = {
        name: entries[attack]["accuracy"]
        for name, attack in dict(
            natural="natural", fgsm="fgsm", pgd20="pgd20", margin="margin20", worst="worst"
        ).items()
    }
    first = entries["natural"]
    origin = {name: first[name] for name in ("n", "weights", "sha256", "commit", "device")}
    return dict(
        name=run.name,
        **shares,
        interval=entries["worst"]["interval"],
        **origin,
        seconds=round(seconds(run)),
        command=command,
    )


def seconds(run: Path) -> float:
    """Wall time of training, over all of its resumes: the clock of timing.jsonl restarts with each."""
    times = [json.loads(line)["seconds"] for line in (run / "timing.jsonl").read_text().splitlines()]
    return sum(max(0.0, b - a) if b >= a else b for a, b in zip([0.0, *times], times, strict=False))


if __name__ == "__main__":
    main()
