"""A run directory gets a classifier: the run's own, or one for other images in a directory apart."""

from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from gacd import checkpoint, locks, models
from gacd import data as datasets
from gacd.data import Dataset
from gacd.device import launch
from gacd.errors import InputError, UsageError
from gacd.evaluation import evaluate
from gacd.heads import prototypes
from gacd.parser import plain
from gacd.prepare import check_train
from gacd.probe import probe as best_head
from gacd.probe import resolve, with_head
from gacd.progress import Progress
from gacd.results import fingerprint
from gacd.runs import config, data_dir_of, held_out, remember


def probe(
    run: str,
    *,
    data: str | None = None,
    out: str | None = None,
    head: Literal["linear", "teacher", "student"] = "linear",
    solver: Literal["lbfgs", "sgd", "adversarial"] = "lbfgs",
    select: Literal["robust", "natural"] = "robust",
    weight_decays: list[float] | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    eps: float | None = None,
    step_size: float | None = None,
    steps: int = 10,
    seed: int = 0,
    data_dir: str | None = None,
    size: int | None = None,
    val_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Fits a classifier on frozen features, for the run's own images or others; evaluate and --init then use it.

    Args:
        run: a run directory; with --out also a file in its checkpoints/, ARCH:FILE, or ./FILE.py:FACTORY.
        data: cifar10, cifar100, stl10, digits, or a folder of images; the run's own if absent.
        out: run directory of a classifier apart from the run's own; RUN/probe-DATA for other images, if absent.
        head: "linear" is trained; "teacher" and "student" need no training: class means of that side's bank.
        solver: of the linear head: "lbfgs", "sgd", or "adversarial" (SGD on images attacked through the network).
        select: held-out accuracy that chooses the weight decay.
        weight_decays: of the linear head, tried each; from 1 to 0.001 if absent.
        epochs: of sgd (30 if absent) and adversarial (3), per weight decay.
        lr: of sgd and adversarial; 1 if absent, whatever the scale of the features.
        eps: radius of the PGD and the margin attack that measure heads, and of adversarial's; the run's if absent, or
            8/255.
        step_size: of these attacks, in pixel units; a quarter of eps if absent.
        steps: of these attacks.
        seed: of these attacks, of SGD, and of which other images are held out.
        data_dir: where the data sets lie; the run's, $GACD_DATA or ./data if absent.
        size: pixels a side of other images; if absent the run's, else the images' own, of stl10 32.
        val_size: other images held out of the training ones to choose, at most a tenth; 1000 if absent.
        mean: a foreign network's normalisation, a number per channel.
        std: likewise.
        device: cpu, cuda, or the best there is.
    """
    say, path = Console(stderr=True, highlight=False), Path(run)
    if head != "linear" and (solver, select, weight_decays, epochs, lr) != ("lbfgs", "robust", None, None, None):
        fix = "leave out --solver, --select, --weight-decays, --epochs and --lr"
        raise UsageError("class means are not trained", f"--head {head}", fix)
    opened = checkpoint.open_source(run, mean=mean, std=std)
    data, _ = datasets.resolve(data, None, opened.record)
    same = data == opened.record.get("data")
    apart = out is not None or not same
    if apart and head != "linear":
        raise UsageError("class means are of the run's own images", f"--head {head}", "leave out --data and --out")
    if apart and out is None and not path.is_dir():
        raise UsageError("a source that is no run directory needs --out", run)
    if size is not None and not apart:
        raise UsageError("the run's own images keep their size", "--size", "with --out for a probe apart")
    network = opened.model
    if not models.rebuildable(network):
        raise InputError("only networks of gacd's own grammar can be rebuilt", type(network).__name__, "ARCH:FILE")
    described = not apart or (opened.run and (opened.run / "config.yaml").exists())
    known = config(opened.run or path) if described else {}
    held = held_out(opened) if same else {}  # else images that the trunk was trained on would choose
    if val_size is None:
        val_size = held.get("val_size", 1000)
    elif val_size != held.get("val_size", val_size):
        raise UsageError("only what the run held out may choose", f"--val-size {val_size}", "leave it out")
    data_dir = data_dir or data_dir_of(opened, data)
    images = datasets.load(
        data,
        data_dir=data_dir,
        size=opened.record.get("size", 32 if data == "stl10" else None) if size is None else size,
        val_size=val_size,
        seed=held.get("seed", seed),
    )
    check_train(images)
    options: dict[str, Any] = dict(solver=solver, select=select, weight_decays=weight_decays, epochs=epochs, lr=lr)
    options |= dict(eps=known.get("eps") if eps is None else eps, step_size=step_size, steps=steps, seed=seed)
    options = resolve(network, images, **options)
    fabric, _ = launch(device, precision="32")
    place = Path(out) if out else path / f"probe-{Path(data).absolute().name}" if apart else path
    for note in [*(opened.notes if apart else ()), *images.notes]:
        say.print(note, markup=False)
    with locks.owned(place):
        if apart:
            about = dict(method="probe", init=run, model=network.name, data=data, size=images.size)
            about |= dict(val_size=val_size, mean=mean, std=std, device=device, data_dir=data_dir) | options
            remember(place, plain(about))
        fit_head(place, images, say, options, trunk=opened if apart else None, head=head, device=fabric.device)
    say.print(f"{place}: done. Next: gacd evaluate {place} --attacks pgd7", markup=False, soft_wrap=True)


def fit_head(
    run: Path,
    images: Dataset,
    say: Console,
    options: dict[str, Any],
    *,
    trunk: checkpoint.Opened | None = None,
    head: str = "linear",
    device: torch.device | str = "cpu",
) -> None:
    """Gives a run a classifier: prints the front of a linear one, or takes a bank's class means; writes probe.pt.

    Args:
        run: its directory.
        images: the data.
        say: where to print.
        options: of `probe.probe`, as `probe.resolve` gives them.
        trunk: the network to give a head; what the run itself trained, if absent.
        head: "linear", or the class means of the run's "teacher" or "student" bank.
        device: to compute on.
    """
    folder = run / "checkpoints"
    known = dict(data=images.name, size=images.size, classes=images.classes, method="probe")
    solver, select, steps = (options[name] for name in ("solver", "select", "steps"))
    if head == "linear":
        if trunk is None:
            trunk = checkpoint.open_source(str(_trained(run)))
            known = trunk.record
        model = trunk.model.to(device)
        attacked = len(images.train) * options["epochs"] if solver == "adversarial" else 0
        with Progress(len(options["weight_decays"]) * (attacked + 3 * len(images.val))) as progress:
            model, rows = best_head(model, images, **options, done=progress.advance)
        table = Table("weight decay", "natural", f"PGD-{steps}, worst of two losses", "", title="held-out images")
        for row in rows:
            kept = "kept" if row["kept"] else ""
            table.add_row(f"{row['weight_decay']:g}", f"{row['val_natural']:.1%}", f"{row['val_robust']:.1%}", kept)
        say.print(table)
        measured = next(row for row in rows if row["kept"]) | dict(solver=solver, select=select, front=rows)
    else:
        opened = checkpoint.open_source(str(folder / "last.pt"))
        known = opened.record
        newest = checkpoint.read(folder / "last.pt")
        state = newest["method"]
        own = {name.removeprefix("student."): t for name, t in state.items() if name.startswith("student.")}
        opened.model.load_state_dict(own)  # the bank is of these weights, not of their average
        if f"bank_{head[0]}.rows" not in state:
            raise InputError("the run has no bank of embeddings", run, "only a run of gacd distill gacd has one")
        if newest.get("data_sha256", mine := fingerprint(images.train)) != mine:
            raise InputError("the training images are not those of the run's bank", run, "--head linear takes any")
        projection = state["embed_s.weight"], state["embed_s.bias"]
        model = with_head(opened.model, prototypes(state[f"bank_{head[0]}.rows"], images.train.labels, *projection))
        threat = {name: options[name] for name in ("eps", "step_size", "seed")}
        result = evaluate(model.to(device), images.val, [f"pgd{steps}", f"margin{steps}"], **threat)
        measured = dict(val_natural=result.natural, val_robust=result.worst)
        say.print(f"held-out images: natural {result.natural:.1%}, PGD-{steps}, worst of two losses {result.worst:.1%}")
    record = known | dict(head=head) | measured
    checkpoint.write(folder / "probe.pt", dict(model=model.config(), weights=model.state_dict(), record=record))
    say.print(f"written to {folder / 'probe.pt'}", markup=False)


def _trained(run: Path) -> Path:
    """The weights that a run's training found best, else its last."""
    for name in ("best", "last", "previous"):
        if (path := run / "checkpoints" / f"{name}.pt").is_file():
            return path
    raise InputError(
        "nothing was trained in this run", run, "a probe is made afresh from its source, with another --out"
    )
