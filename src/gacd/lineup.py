"""Networks side by side: students, their teacher, the data they share, and what they make of the same images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gacd import checkpoint
from gacd import data as datasets
from gacd.attacks import evaluating, pgd
from gacd.classifier import check_features, known
from gacd.data import Dataset, on_device, pixels
from gacd.errors import InputError, UsageError
from gacd.losses import cross_entropy
from gacd.models.base import classify
from gacd.models.folding import attackable
from gacd.prepare import open_among
from gacd.runs import config, run_of


class Network(NamedTuple):
    """A network under a short name, and the source it came from."""

    name: str
    source: str
    opened: checkpoint.Opened


class Seen(NamedTuple):
    """What a network makes of N images: logits (N,K) and penultimate features (N,D), float32 on the CPU."""

    logits: Tensor
    features: Tensor

    @property
    def classes(self) -> Tensor:
        """(N,) predicted."""
        return self.logits.argmax(1)


def networks(
    runs: Sequence[str], teacher: str | None, crafted_on: str | None, mean: list[float] | None, std: list[float] | None
) -> tuple[list[Network], Network, Network]:
    """Opens the students, their teacher and the network that the fixed adversarial images are crafted on."""
    students = {run: open_among(run, mean, std) for run in runs}
    if teacher is None:
        named = {str(o["teacher"]): o for o in filter(None, (taught(student.run) for student in students.values()))}
        if len(named) != 1:
            what = "the runs name different teachers" if named else "which teacher? the runs name none"
            raise UsageError(what, ", ".join(named), "--teacher says which")
        ((teacher, options),) = named.items()
        if checkpoint.is_factory(teacher):
            raise UsageError("a factory must be typed on the command line", f"--teacher {teacher}", "not in a file")
        guide = open_among(teacher, mean or options.get("mean"), std or options.get("std"))
    else:
        guide = open_among(teacher, mean, std)
    host = crafted_on or runs[0]
    name = short_names([teacher, *runs, host])
    found = {run: Network(name[run], run, student) for run, student in students.items()}
    guided = found.get(teacher) or Network(name[teacher], teacher, guide)
    there = {teacher: guided} | found
    shown = there.get(host) or Network(name[host], host, open_among(host, mean, std))
    return list(found.values()), guided, shown


def taught(run: Path | None) -> dict[str, Any] | None:
    """The options of the run that a run's features come from, itself or down its --init's, that has a teacher."""
    passed = set()
    while run is not None and run not in passed and (run / "config.yaml").is_file():
        passed.add(run)
        options = config(run)
        if options.get("teacher"):
            return options
        run = run_of(str(options.get("init") or ""))
    return None


def short_names(sources: Sequence[str]) -> dict[str, str]:
    """Each source's last parts, as many as tell it from the others; of a file in checkpoints/, run and file."""
    parts = {source: _parts(Path(source)) for source in sources}
    names = {}
    for source, mine in parts.items():
        others = [other for s, other in parts.items() if s != source]
        d = next((d for d in range(1, len(mine)) if all(other[-d:] != mine[-d:] for other in others)), len(mine))
        names[source] = "/".join(mine[-d:])
    return names if len(set(names.values())) == len(names) else dict(zip(sources, sources, strict=True))


def _parts(path: Path) -> tuple[str, ...]:
    path = path.with_suffix("") if path.suffix in (".pt", ".pth", ".safetensors") else path
    if path.parent.name == "checkpoints":
        return (*path.parts[:-3], f"{path.parent.parent.name}/{path.name}")
    return path.parts


def load(
    data: str | None, students: Sequence[Network], guide: Network, data_dir: str | None, size: int | None
) -> Dataset:
    """The data set asked for, else the one that the students (or their teacher) were trained on, in its size there."""
    trained = [net.opened.record for net in students if net.opened.record.get("data")] or [guide.opened.record]
    told = dict.fromkeys(record["data"] for record in trained if record.get("data"))
    if data is None and len(told) != 1:
        what = "the runs were trained on different data" if told else "which images? the runs do not say"
        raise UsageError(what, ", ".join(told), "--data says which")
    data = datasets.spelled(data) if data else next(iter(told))
    sizes = dict.fromkeys(record.get("size") for record in trained if record.get("data") == data)
    if size is None and len(sizes) > 1:
        raise UsageError("the runs were trained on images of different sizes", ", ".join(map(str, sizes)), "--size")
    return datasets.load(data, data_dir=data_dir, size=size or next(iter(sizes), None))


def check(net: Network, guide: Network, images: Dataset) -> None:
    """Refuses a network without features, or with other classes or channels than the teacher's or the data's."""
    model = net.opened.model
    missing = [name for name in ("features", "head") if not hasattr(model, name)]
    if missing:
        what = f"the analysis needs head(features(x)): the network has no {', '.join(missing)}"
        raise InputError(what, net.source, "load it as ARCH:FILE")
    classes = [m.head.out_features for m in (model, guide.opened.model) if hasattr(m, "head")]
    if classes[0] != classes[-1]:
        raise InputError(f"{classes[0]} classes, but its teacher has {classes[-1]}", net.source)
    labels = [net.opened.record.get("classes"), guide.opened.record.get("classes")]
    if all(labels) and labels[0] != labels[1]:
        raise InputError("other classes than the teacher's, or in another order", net.source)
    if images.num_classes < 2:
        raise InputError("correlations need at least two classes", f"{images.name} has {images.num_classes}")
    if classes[0] != images.num_classes:
        raise InputError(f"{classes[0]} classes, but {images.name} has {images.num_classes}", net.source)
    if (channels := known(model, "channels")) not in (None, images.channels):
        raise InputError(f"the network takes {channels} channels, {images.name} has {images.channels}", net.source)
    check_features(model, pixels(images.test.images[:2]), f"the network {net.source}")


def crafted(
    net: Network,
    images: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    seed: int,
    chunk: int,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    done: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """PGD in Linf on all images, whether classified rightly or not.

    Args:
        net: the network attacked.
        images: (N,C,H,W) uint8.
        y: (N,) labels, which `loss` takes.
        eps, step_size, steps, seed, loss: see `attacks.pgd`.
        chunk: images per forward.
        done: called with a number of images after each chunk.

    Returns:
        (N,C,H,W) float32 on the CPU.
    """
    model, found = net.opened.model, []
    device = next(model.parameters()).device
    for z, labels in zip(images.split(chunk), y.split(chunk), strict=True):
        x = on_device(z, device)
        with attackable(model, x) as quick:
            x_adv = pgd(quick, x, labels.to(device), eps=eps, step_size=step_size, steps=steps, seed=seed, loss=loss)
        found.append(x_adv.cpu())
        done(len(z))
    return torch.cat(found)


def towards(logits: Tensor, y: Tensor) -> Tensor:
    """A loss for PGD, (B,): large where the class is y."""
    return -cross_entropy(logits, y)


@torch.no_grad()
def observe(net: Network, images: Tensor, chunk: int) -> Seen:
    """What a network, in eval mode, makes of (N,C,H,W) images, uint8 or floats in [0,1]."""
    model, logits, features = net.opened.model, [], []
    device = next(model.parameters()).device
    with evaluating(model):
        for z in images.split(chunk):
            f = model.features(on_device(z, device))
            features.append(f.float().cpu())
            logits.append(classify(model, f).float().cpu())
    seen = Seen(torch.cat(logits), torch.cat(features))
    if not all(bool(values.isfinite().all()) for values in seen):
        raise InputError("the network's features or logits are not finite", net.source)
    return seen
