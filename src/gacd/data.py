"""Data sets as tensors, and their batches: a function of (seed, epoch, image), so that resuming is exact."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gacd import noise
from gacd.errors import InputError, UsageError
from gacd.readers import Parts, Split, cifar10, cifar100, digits, folder, place_of, stl10

DATASETS: dict[str, Callable[[Path], Parts]] = {f.__name__: f for f in (cifar10, cifar100, stl10, digits)}
AUGMENTATIONS = ("none", "crop", "flip", "crop-flip")
PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass
class Dataset:
    """Images for training, validation and test.

    Attributes:
        name: as it was asked for.
        train, val, test: uint8 images (N,C,H,W) and labels (N,) each.
        classes: the classes' names, by label.
        mean: per channel, of pixels in [0,1].
        std: per channel, likewise.
        augment: what suits its training, one of AUGMENTATIONS.
        notes: one line on each part that was split off.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "crop"
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[2]


def load(
    name: str, *, data_dir: str | Path | None = None, size: int | None = None, val_size: int = 1000, seed: int = 0
) -> Dataset:
    """Reads a data set into memory.

    Args:
        name: one of DATASETS, or a path to a folder of images (`readers.folder`).
        data_dir: where the public sets lie; None: $GACD_DATA, else ./data.
        size: resize the images to so many pixels; None: as they are.
        val_size: images held out from training where the set has no validation part, at most a tenth of them.
        seed: draws the images held out for validation. A missing test part does not depend on it: what one run
            trains on, no other may test on.
    """
    if val_size < 0 or (size is not None and size < 1):
        raise InputError("size must be positive and val_size not negative", f"size={size}, val_size={val_size}")
    if name in DATASETS:
        parts, classes = DATASETS[name](place_of(data_dir))
    elif os.sep in name or "/" in name or Path(name).is_dir():
        parts, classes = folder(Path(name).expanduser(), size)
    else:
        raise InputError("unknown data set", name, f"one of {', '.join(DATASETS)} or a path to a folder of images")
    if size:
        parts = {part: Split(resize(split.images, size), split.labels) for part, split in parts.items()}

    notes = []
    if "train" not in parts:
        parts["train"] = parts["test"].take(torch.arange(0))
        notes.append("test: there is no train part, so these images can only be evaluated on")
    total = len(parts["train"])
    if "test" not in parts:
        if "aside" in parts:
            total += len(parts["aside"])
            parts["test"] = parts.pop("aside")
        else:
            parts["train"], parts["test"] = hold_out(parts["train"], total // 5, noise.key("test"))
        notes.append(f"test: {len(parts['test'])} of {total} images split off, the same for every seed")
    if name not in DATASETS:  # which come class by class: the first ones shall stand for all
        test = parts["test"]
        parts["test"] = test.take(noise.permutation(noise.key("order"), len(test)))
    mean, std = PUBLISHED.get(name) or statistics(parts["train" if total else "test"].images)
    if "val" not in parts:
        total = len(parts["train"])
        n = min(val_size, total // 10)
        parts["train"], parts["val"] = hold_out(parts["train"], n, noise.key(seed, "validation"))
        notes.append(f"validation: {n} of {total} training images held out (seed {seed})")
    augment = "crop-flip" if name in ("cifar10", "cifar100", "stl10") else "crop"
    return Dataset(name, parts["train"], parts["val"], parts["test"], classes, mean, std, augment, notes)


def spelled(name: str) -> str:
    """One name for a folder, however it was typed: "photos" for "photos/"."""
    return os.path.normpath(name) if name not in DATASETS and Path(name).is_dir() else name


def same(name: str | None, other: str | None) -> bool:
    """Whether two names are of one data set: a folder is the same by whatever path."""
    if not isinstance(name, str) or not isinstance(other, str) or not DATASETS.keys().isdisjoint((name, other)):
        return name == other
    return os.path.realpath(name) == os.path.realpath(other)


def resolve(name: str | None, size: int | None, record: dict[str, Any]) -> tuple[str, int | None]:
    """Name and size of a data set: as asked for, else as `record` has them.

    The record's size counts for the record's data set, and for any folder if that is one: it may lie elsewhere now.

    Raises:
        UsageError: nobody names one.
    """
    own = record.get("data")
    name = spelled(name) if name else own
    if name is None:
        raise UsageError("which images?", "no weights here say so", f"--data {', '.join(DATASETS)} or a folder")
    name = own if own and same(name, own) else name
    alike = name == own or DATASETS.keys().isdisjoint((name, own))
    return name, record.get("size") if size is None and alike else size


class Loader:
    """Batches of a split that lives on the device as uint8.

    Args:
        split: the images.
        batch_size: of all ranks together; a smaller split is one batch, else the last, partial batch is dropped.
        seed: of the order and the augmentation.
        augment: one of AUGMENTATIONS.
        device: where the images live.
        rank: this process.
        world_size: number of processes; each takes its own slice of every batch.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int = 0,
        augment: str = "none",
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        self.batch_size = min(batch_size, len(split))
        if self.batch_size < 1 or self.batch_size % world_size:
            raise InputError(
                f"batches of {self.batch_size} for {world_size} processes",
                f"batch_size={batch_size}, {len(split)} images",
                "a positive multiple of the number of processes",
            )
        if augment not in AUGMENTATIONS:
            raise InputError("unknown augmentation", augment, f"one of {', '.join(AUGMENTATIONS)}")
        self.seed, self.augment, self.rank, self.world_size = seed, augment, rank, world_size
        self.images = split.images.to(device).permute(0, 2, 3, 1).contiguous()  # channels last, as batches are
        self.labels = split.labels.to(device)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of an epoch from number `start` on.

        Yields:
            x: (B, C, H, W) float32 in [0,1], channels_last; y: (B,) int64; index: (B,) int64, positions in the split.
        """
        order = noise.permutation(noise.key(self.seed, "order", epoch), len(self.labels), self.labels.device)
        share = self.batch_size // self.world_size
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size + self.rank * share :][:share]
            u = noise.uniform(noise.key(self.seed, "augment", epoch), index, (3,))
            images = self.images[index]
            if "crop" in self.augment:
                images = crop(images, u[:, :2])
            if "flip" in self.augment:
                images = torch.where(u[:, 2, None, None, None] < 0.5, images.flip(2), images)
            yield pixels(images.permute(0, 3, 1, 2)), self.labels[index], index


def pixels(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0,1], correctly rounded: CUDA would multiply by a plain number's rounded inverse."""
    return images.float().div_(torch.tensor(255.0, device=images.device))


def on_device(images: Tensor, device: torch.device | str) -> Tensor:
    """(B,C,H,W), uint8 or floats in [0,1], as networks on the device take them: float32 in [0,1], channels_last."""
    images = images.to(device)
    x = pixels(images) if images.dtype == torch.uint8 else images.float()
    return x.contiguous(memory_format=torch.channels_last)


def crop(images: Tensor, u: Tensor) -> Tensor:
    """Moves each image by up to an eighth of its size, zeros coming in.

    Args:
        images: (B, H, W, C).
        u: (B, 2) in [0, 1), down and right.

    Returns:
        (B, H, W, C).
    """
    batch, height, width, _ = images.shape
    p = height // 8
    corner = (u * (2 * p + 1)).long()
    # All the windows of the padded images are one strided view; indexing copies only the chosen.
    windows = F.pad(images, (0, 0, p, p, p, p)).unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[torch.arange(batch, device=images.device), corner[:, 0], corner[:, 1]]


def hold_out(split: Split, n: int, key: int) -> tuple[Split, Split]:
    """Splits off n random images, as many of each class as its share: (the rest, the n), both in their old order."""
    order = noise.permutation(key, len(split))
    labels = split.labels[order]
    count = labels.bincount()
    by_class = labels.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(order)) - (count.cumsum(0) - count)[labels[by_class]]
    # Each class spread evenly over (0, 1): the n lowest places hold every class's share to within one image.
    order = order[((rank + 0.5).double() / count[labels]).argsort(stable=True)]
    return split.take(order[n:].sort().values), split.take(order[:n].sort().values)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (N, C, H, W) uint8, on the scale [0,1].

    A flat channel's deviation counts as one grey level: models divide by it.
    """
    level = torch.arange(256, dtype=torch.float64) / 255
    share = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    share /= share.sum(1, keepdim=True)
    mean = share @ level
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def resize(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) uint8 to (N, C, size, size), antialiased bilinear."""
    if images.shape[2:] == (size, size):
        return images
    return torch.cat(  # in chunks: as floats the whole set takes four times the room
        [
            F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True).round().to(torch.uint8)
            for chunk in images.split(1000)
        ]
    )
