"""Commands: their arguments are options, their docstrings help. `cli.HOMES` says where the other commands are."""

from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from gacd import checkpoint, cost, locks, methods, models, onnx_file, prepare, ranks
from gacd import data as datasets
from gacd.device import launch
from gacd.errors import InputError, UsageError
from gacd.parser import plain
from gacd.probe import resolve
from gacd.runs import began, ended, held_out, remember, unfinished
from gacd.transfer import fit_head


def train(
    method: str,
    *,
    method_options: dict[str, Any],
    fit_options: dict[str, Any],
    out: str,
    teacher: str | None = None,
    model: str | None = None,
    data: str | None = None,
    init: str | None = None,
    cost_of: str | None = None,
    data_dir: str | None = None,
    size: int | None = None,
    val_size: int = 1000,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: Literal["auto", "32", "bf16", "64"] = "auto",
) -> None:
    """Trains a network by a method and leaves a run directory; the same command resumes it.

    Args:
        out: run directory.
        teacher: weights to learn from: a run directory, ARCH:FILE, or ./FILE.py:FACTORY.
        model: the network, such as resnet18, resnet8-x2, wrn-34-10, mobilenetv2-x0.5; --init's if absent.
        data: cifar10, cifar100, stl10, digits, or a folder of images; the teacher's or --init's if absent.
        init: weights to start from, a source as for the teacher; with other classes its head is made afresh.
        cost_of: a run whose total cost, counted in operations, sets --epochs and scales --milestones with them; the
            cost of --init is part of the total.
        data_dir: where the data sets lie; $GACD_DATA or ./data if absent.
        size: pixels a side; images are resized to it.
        val_size: training images held out to choose the best weights, at most a tenth.
        mean: a foreign teacher's or --init's normalisation, a number per channel.
        std: likewise.
        device: cpu, cuda, or the best there is.
        devices: processes on this machine; torchrun sets it by itself.
        nodes: machines; torchrun sets it by itself.
        precision: "auto" is bf16 autocast where the device is fast at it, else 32.
    """
    prepare.check_ranges(method_options | fit_options | dict(devices=devices, nodes=nodes))
    run = Path(out)
    if (mean or std) and all(Path(source).exists() for source in (init, teacher) if source):
        raise UsageError("--mean and --std are for a foreign --teacher or --init", "ARCH:FILE")
    started = prepare.open_among(init, mean, std) if init else None
    guide = prepare.open_among(teacher, mean, std) if teacher else None
    cls = methods.load(method)
    if guide is None and methods.taught(cls):
        raise UsageError("a distillation needs --teacher", method, "such as --teacher runs/teacher")
    known = (guide.record if guide else {}) or (started.record if started else {})
    settled_as, side = datasets.resolve(data, size, known)
    data = datasets.spelled(data) if data else settled_as
    images = datasets.load(data, data_dir=data_dir, size=side, val_size=val_size, seed=fit_options["seed"])
    prepare.check_train(images)
    fabric, chosen = launch(device, devices, nodes, precision)
    say = Console(stderr=True, highlight=False, quiet=fabric.global_rank > 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit_options["seed"])
        student, notes = prepare.student(model, started, images)
        if started and datasets.same(started.record.get("data"), data):
            held = held_out(started)
            if held != {name: value for name, value in dict(fit_options, val_size=val_size).items() if name in held}:
                notes.append("--init held out other images: what it was trained on helps to choose the best weights")
        arguments: dict[str, Any] = dict(student=student, labels=images.train.labels)
        arguments |= dict(teacher=guide.model) if guide else {}
        built = cls(**arguments, **method_options).to(fabric.device)
    stopped = [note for source in (guide, started) if source for note in unfinished(source.run)]
    for note in [*images.notes, *(guide.notes if guide else []), *notes, *stopped]:
        say.print(note, markup=False)
    if guide and teacher:
        note = prepare.check_teacher(guide, teacher, images)
        say.print(f"teacher {teacher}: {note}", markup=False)
    radius = getattr(built, "eps", None)
    heads = None if built.trains_head else resolve(student, images, eps=radius, seed=fit_options["seed"])
    price, fit_options = cost.plan(built, images, run, fit_options, init=init, aim=cost_of)
    for note in prepare.schedule_notes(fit_options):
        say.print(note, markup=False)
    options: dict[str, Any] = dict(method=method, model=student.name, data=data, teacher=teacher, init=init)
    options |= dict(cost_of=cost_of, size=size, val_size=val_size, mean=mean, std=std, precision=chosen)
    options |= dict(device=device, devices=devices, nodes=nodes, data_dir=data_dir) | method_options | fit_options
    from gacd.training import fit

    with locks.owned_by_all(run):
        remember(run, plain(options))
        say.print("  ".join(f"{k} {v}" for k, v in plain(options).items() if v is not None), markup=False, style="dim")
        say.print(f"a step costs {price['forwards']:.1f} forwards of the student an image", style="dim")
        teaches = guide.model.name if guide and isinstance(guide.model, models.Classifier) else teacher
        stage = dict(method=method, model=student.name, teacher=teaches, data=data)
        began(run, price, chosen, fabric.device, stage | dict(weights=method_options.get("weights")), init)
        summary = fit(built, images, run, fabric, **fit_options)
        if ranks.rank() == 0:
            if heads and not (run / "checkpoints/probe.pt").exists():  # or one was chosen since
                fit_head(run, images, say, heads, device=fabric.device)
            best = summary["best"]
            if "val_robust" in best:
                figures = f"natural {best['val_natural']:.1%}, PGD {best['val_robust']:.1%}"
                say.print(f"best on held-out images: epoch {best['epoch'] + 1}, {figures}")
            ended(run)
            say.print(f"{run}: done. Next: gacd evaluate {run}", markup=False)


def export(
    source: str,
    *,
    out: str | None = None,
    onnx: str | None = None,
    half: bool = False,
    data: str | None = None,
    data_dir: str | None = None,
    size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> None:
    """Writes a network as one file: safetensors, itself a source of weights, or ONNX for other runtimes, or both.

    Args:
        source: a run directory, a file in its checkpoints/, ARCH:FILE, or ./FILE.py:FACTORY.
        out: NAME.safetensors, the weights with all that rebuilds the network.
        onnx: NAME.onnx, pixels in [0,1] -> logits; written once onnxruntime agrees with torch on natural images and on
            the run's witnesses.
        half: store in float16 what float16 can hold: half the size of --out; evaluate the file, not the run.
        data: of --onnx: images to compare on, and the classes' names; the run's if absent and at hand.
        data_dir: where the data sets lie; the run's, $GACD_DATA or ./data if absent.
        size: of --onnx: pixels a side; the run's if absent.
        mean: a foreign network's normalisation, a number per channel.
        std: likewise.
    """
    if not out and not onnx:
        raise UsageError("what shall be written?", "--out NAME.safetensors or --onnx NAME.onnx")
    for name, suffix in ((out, ".safetensors"), (onnx, ".onnx")):
        if name and Path(name).suffix != suffix:
            raise UsageError(f"the file's name must end in {suffix}", name)
    if half and not out:
        raise UsageError("--half is of --out", "an ONNX file has float32 weights")
    if onnx:
        onnx_file.need()
    opened = checkpoint.open_source(source, mean=mean, std=std)
    own = models.rebuildable(opened.model)
    if out and not own:
        fix = "--onnx takes any network"
        raise InputError("only networks of gacd's own grammar can be rebuilt", type(opened.model).__name__, fix)
    what = f"{opened.model.name}, {opened.weights} weights" if own else opened.weights
    for note in unfinished(opened.run):
        print(note)
    if onnx:
        agreed = onnx_file.ship(opened, Path(onnx), data=data, data_dir=data_dir, size=size)
        print(f"{what}: {Path(onnx).stat().st_size / 1000:.0f} kB in {onnx}; {agreed}")
    if out:  # last, for --half rounds the weights
        opened.record |= held_out(opened)
        checkpoint.ship(opened, Path(out), half=half)
        print(f"{what}: {Path(out).stat().st_size / 1000:.0f} kB in {out}")


def check(method: str) -> None:
    """Tries a method on small inputs; stops at the first part of the contract that it breaks.

    Args:
        method: a method's name, ./mine.py, or package.module:Class.
    """
    from gacd.check import check as contract

    for line in contract(method):
        print(line)
