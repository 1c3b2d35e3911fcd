"""What must hold before the first step: sensible numbers, a student, and the teacher that was meant."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gacd import models
from gacd.attacks import check_threat
from gacd.checkpoint import Opened, open_source
from gacd.classifier import check_features, check_network, device_of, lay_out
from gacd.data import Dataset, pixels, same
from gacd.errors import InputError, UsageError
from gacd.evaluation import evaluate

LIMITS = {
    **dict.fromkeys(("epochs", "val_every", "log_every", "batch_size", "devices", "nodes"), (1, 1e9)),
    **dict.fromkeys(("clip", "weight_decay", "save_every", "val_steps"), (0, 1e9)),
    **dict(lr=(1e-12, 1e9), ema=(0, 0.999999), seed=(-(2**63), 2**63 - 1)),
}


def check_ranges(options: dict[str, Any]) -> None:
    """Refuses numbers without a meaning before anything is read or written."""
    for name, (low, high) in LIMITS.items():
        if name in options and not low <= options[name] <= high:
            raise UsageError(f"{name} must be from {low:g} to {high:g}", options[name])
    threat = {n: options[n] for n in ("eps", "step_size", "steps") if options.get(n) is not None}
    if "eps" in threat:
        check_threat(**threat)


def open_among(source: str, mean: list[float] | None, std: list[float] | None) -> Opened:
    """`open_source` of one of several sources that share --mean and --std, which those of gacd's own do not take."""
    return open_source(source) if Path(source).exists() else open_source(source, mean=mean, std=std)


def schedule_notes(options: dict[str, Any]) -> list[str]:
    """What to say of a learning rate that stays as it is, as in a few epochs of a recipe of hundreds."""
    milestones = options["milestones"] or []
    if options["schedule"] != "multistep" or not milestones or min(milestones) < options["epochs"]:
        return []
    beyond = f"milestones {' '.join(map(str, milestones))} are not reached in {options['epochs']} epochs"
    return [f"{beyond}: the learning rate never falls (--milestones, or --schedule)"]


def check_train(images: Dataset) -> None:
    """Refuses data that nothing can be fitted on."""
    if not len(images.train):
        raise InputError("there are no images to train on", images.name, "a folder of them is ROOT/train/CLASS")


def student(model: str | None, started: Opened | None, images: Dataset) -> tuple[models.Classifier, list[str]]:
    """The network to train: a new one, or --init's, with a fresh head for other classes; and what to say about it."""
    if started is None:
        if model is None:
            raise UsageError("which network?", "--model", "such as resnet18, or --init")
        return models.build(model, images.num_classes, images.mean, images.std), []
    network = started.model
    if not models.rebuildable(network):
        raise InputError("--init needs a network of gacd's own grammar", type(network).__name__, "ARCH:FILE")
    if model is not None and models.parse(model) != network.name:
        raise UsageError(f"--model {model} is not what --init holds", network.name)
    if network.channels != images.channels:
        raise InputError(f"--init expects {network.channels} channels", f"{images.name} has {images.channels}")
    notes = [f"--init: {note}" for note in started.notes]
    if network.num_classes != images.num_classes:
        notes.append(f"--init: {network.num_classes} classes, data {images.num_classes}: trunk kept, head made afresh")
        network.fresh_head(images.num_classes)
    elif started.record.get("classes", images.classes) != images.classes:
        notes.append("--init: its classes are others, or in another order: trunk kept, head made afresh")
        network.fresh_head(images.num_classes)
    return network, notes


def check_classes(teacher: nn.Module, x: Tensor, source: str, images: Dataset, fix: str = "") -> None:
    """Refuses a teacher that is no classifier of images like x (B,C,H,W) and of as many classes as the data."""
    if (classes := check_network(teacher, x, f"the teacher {source}")) != images.num_classes:
        raise InputError(f"the teacher knows {classes} classes, {images.name} has {images.num_classes}", source, fix)


def check_teacher(opened: Opened, source: str, images: Dataset) -> str:
    """Measures the teacher on held-out images and refuses one that is not what it should be.

    Returns:
        What was measured, as a sentence.
    """
    teacher, own = opened.model, isinstance(opened.model, models.Classifier)
    split = images.val if len(images.val) else images.train
    split = split.take(torch.arange(min(1000, len(split))))
    x = pixels(split.images[:2]).to(device_of(teacher))
    lay_out(teacher, x)  # as the trainer's images are
    fix = f"gacd train pgdat --init {source} --data {images.name} --out ADAPTED makes it one" * own
    check_classes(teacher, x, source, images, fix)
    if hasattr(teacher, "feature_dim") and hasattr(teacher, "features"):  # else a part of it may have that name
        check_features(teacher, x, f"the teacher {source}")
    if opened.record.get("classes", images.classes) != images.classes:
        raise InputError("the teacher's classes are others than the data's, or in another order", source, fix)
    measured = evaluate(teacher, split, []).natural
    promised = opened.record.get("val_natural") if same(opened.record.get("data"), images.name) else None
    if promised is not None and measured < promised - 0.1:
        what = f"the teacher reaches {measured:.1%} here, its checkpoint says {promised:.1%}"
        raise InputError(what, source, "other --size or --data-dir than it was trained with?")
    chance = 1 / images.num_classes
    if promised is None and measured < chance + min(chance / 2, 0.05):
        fix = "another normalisation? " + "give --mean and --std; " * own + "other classes, or in another order?"
        raise InputError(f"the teacher is no better than chance, {measured:.1%}", source, fix)
    return f"{measured:.1%} natural on {len(split)} {'held-out' if len(images.val) else 'training'} images"
