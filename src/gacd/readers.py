"""Readers, from a folder to labelled images, and the download of the public sets.

A reader returns the parts it finds ("train", "val" and "test", where there are any; "aside": what of a folder's
training images is for tests) and the classes' names.
"""

import hashlib
import http.client
import io
import os
import pickle
import tarfile
import tempfile
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gacd.errors import InputError


@dataclass
class Split:
    """Labelled images: (N, C, H, W) uint8, contiguous, and their labels, (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        """The images at these positions, copied."""
        return Split(self.images[index], self.labels[index])


Parts = tuple[dict[str, Split], list[str]]


def cifar10(root: Path) -> Parts:
    """CIFAR-10: 50,000 and 10,000 images of 32 x 32."""
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    return _cifar(root, "cifar10", batches, "test_batch", "labels", "batches.meta", "label_names")


def cifar100(root: Path) -> Parts:
    """CIFAR-100 with its fine labels: 50,000 and 10,000 images of 32 x 32."""
    return _cifar(root, "cifar100", ["train"], "test", "fine_labels", "meta", "fine_label_names")


def stl10(root: Path) -> Parts:
    """STL-10's labelled images: 5,000 and 8,000 of 96 x 96."""

    def split(part: str) -> Split:
        # The file holds Matlab's order: column after column.
        images = np.frombuffer(_read(root, "stl10", f"{part}_X.bin"), np.uint8).reshape(-1, 3, 96, 96).swapaxes(2, 3)
        labels = np.frombuffer(_read(root, "stl10", f"{part}_y.bin"), np.uint8)
        return Split(torch.from_numpy(images.copy()), torch.from_numpy(labels - 1).long())

    classes = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    return {"train": split("train"), "test": split("test")}, classes


def digits(root: Path) -> Parts:
    """scikit-learn's digits: 1,797 grey images of 8 x 8, installed with it; `root` is not read."""
    from sklearn.datasets import load_digits  # a second of import that only this reader needs

    data = load_digits()
    images = torch.from_numpy(data.images * (255 / 16)).round().to(torch.uint8)
    return {"train": Split(images[:, None], torch.from_numpy(data.target).long())}, [str(c) for c in range(10)]


def folder(root: Path, size: int | None = None) -> Parts:
    """One's own images: ROOT/train/CLASS/* and, if there are any, val and test alike; test alone; or ROOT/CLASS/*.

    Args:
        root: the folder; hidden files in it are skipped.
        size: pixels; the middle square of each image is resized to it. None: as they are, all square and of one size.
    """
    if not root.is_dir():
        raise InputError("no such folder", root)
    roots = {part: root / part for part in ("train", "val", "test") if _class_names(root / part)} or {"train": root}
    first = next(part for part in ("train", "test", "val") if part in roots)
    if first == "val":
        raise InputError("no folders train/CLASS or test/CLASS", root)
    classes = _class_names(roots[first])
    if len(classes) < 2:
        raise InputError(f"{len(classes)} class folders, at least 2 are needed", roots[first], "train/CLASS/*.png")

    images: list[np.ndarray] = []
    train: list[list[Path]] = []  # its files, a class each
    labels: dict[str, list[int]] = {part: [] for part in roots}
    for part, place in roots.items():
        for name in _class_names(place):
            if name not in classes:
                raise InputError(f"class {name} is not among {first}'s", place / name)
            found = sorted((place / name).rglob("*"))
            files = [f for f in found if f.is_file() and "/." not in f.relative_to(place).as_posix()]
            if not files:
                raise InputError("no images", place / name)
            for file in files:
                images.append(_image(file, size))
                height, width, _ = images[-1].shape
                if not height == width == images[0].shape[0]:
                    raise InputError(f"not square or not of one size: {width} x {height}", file, "--size 32 resizes")
            labels[part] += [classes.index(name)] * len(files)
            train += [files] * (part == "train")

    # Grey images among coloured ones get three equal channels.
    shape = (*images[0].shape[:2], max(image.shape[2] for image in images))
    pixels = torch.from_numpy(np.stack([np.broadcast_to(image, shape) for image in images]))
    chunks = pixels.permute(0, 3, 1, 2).contiguous().split([len(y) for y in labels.values()])
    parts = {part: Split(x, torch.tensor(labels[part])) for part, x in zip(labels, chunks, strict=True)}
    if "test" not in roots:
        where, whole = _aside(train), parts["train"]
        parts |= dict(train=whole.take((~where).nonzero()[:, 0]), aside=whole.take(where.nonzero()[:, 0]))
    return parts, classes


def _aside(classes: list[list[Path]]) -> Tensor:
    """Which images (N,) of these files are for tests: those whose content's hash is in the lowest fifth of all hashes.

    So an image stays where it is whatever comes, goes or is renamed beside it, and nobody tests on what was trained on;
    but each class keeps one for training and, where that would leave none for tests, there is one.
    """
    hashes = [
        torch.tensor([int(hashlib.sha256(file.read_bytes()).hexdigest()[:12], 16) for file in files])
        for files in classes
    ]
    few = [min(int((h < 16**12 // 5).sum()), len(h) - 1) for h in hashes]
    if not any(few):
        lowest = min(range(len(hashes)), key=lambda i: (len(hashes[i]) == 1, int(hashes[i].min())))
        few[lowest] = min(1, len(hashes[lowest]) - 1)
    return torch.cat([h.argsort(stable=True).argsort() < n for h, n in zip(hashes, few, strict=True)])


# Name -> the folder in the archive, where it is published, the archive's md5 and those of the files read.
PUBLIC: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "cifar10": (
        "cifar-10-batches-py",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "cifar100": (
        "cifar-100-python",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "stl10": (
        "stl10_binary",
        "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        "91f7769df0f17e558f3565bffb0c7dfb",
        {
            "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
            "train_y.bin": "5a34089d4802c674881badbb80307741",
            "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
            "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
        },
    ),
}


def download(name: str, *, data_dir: str | None = None) -> Path:
    """Fetches and unpacks a data set; returns its folder. What is there and whole is kept.

    Args:
        name: cifar10, cifar100 or stl10.
        data_dir: where to; $GACD_DATA or ./data if absent.
    """
    if name not in PUBLIC:
        raise InputError("nothing to download", name, f"one of {', '.join(PUBLIC)}")
    place, url, md5, files = PUBLIC[name]
    root = place_of(data_dir)
    if (root / place).exists():
        for file in files:
            _read(root, name, file)
        return root / place
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Unpacked beside the target and renamed, so that a folder that is there is a whole one.
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as tmp:
            archive, digest = Path(tmp, "archive"), hashlib.md5(usedforsecurity=False)
            with urllib.request.urlopen(url, timeout=30) as response, archive.open("wb") as out:
                while block := response.read(1 << 20):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != md5:
                raise InputError("the download is damaged or was replaced", url, "try again")
            with tarfile.open(archive) as tar:
                wanted = [member for member in tar if Path(member.name).name in files]  # not STL's 2.6 GB unlabelled
                tar.extractall(tmp, wanted, filter="data")
            Path(tmp, place).rename(root / place)
    except (OSError, http.client.HTTPException, tarfile.TarError) as error:
        raise InputError(f"download failed: {error}", url, f"or unpack it yourself in {root}") from error
    return root / place


def place_of(data_dir: str | Path | None) -> Path:
    """Where the public sets lie."""
    return Path(data_dir or os.environ.get("GACD_DATA") or "data").expanduser()


def holds(root: Path, name: str) -> bool:
    """Whether a public set lies there."""
    place = PUBLIC[name][0] if name in PUBLIC else ""
    return bool(place) and (root.resolve().name == place or (root / place).is_dir())


def _cifar(root: Path, name: str, train: list[str], test: str, labels: str, meta: str, names: str) -> Parts:
    def split(files: list[str]) -> Split:
        batches = [_unpickle(root, name, file) for file in files]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        return Split(torch.from_numpy(images), torch.tensor([y for batch in batches for y in batch[labels]]))

    return {"train": split(train), "test": split([test])}, list(_unpickle(root, name, meta)[names])


class _NumpyUnpickler(pickle.Unpickler):
    """Builds arrays, lists, dictionaries and strings; imports nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.ndarray.__reduce__(np.empty(0))[0]  # the same function, wherever this numpy keeps it
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused to import {module}.{name}")


def _unpickle(root: Path, name: str, file: str) -> dict[str, Any]:
    data = io.BytesIO(_read(root, name, file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about the age of these pickles
        try:
            return _NumpyUnpickler(data, encoding="latin1").load()
        except Exception as error:  # a pickle fails in as many ways as there are bytes
            raise InputError(f"not a file of {name}: {error}", file) from error


def _read(root: Path, name: str, file: str) -> bytes:
    """A public set's file, once its md5 is right."""
    place, *_, files = PUBLIC[name]
    path = root / file if root.resolve().name == place else root / place / file
    try:
        data = path.read_bytes()
    except OSError as error:
        fix = f"gacd download {name} --data-dir {root}, or --data-dir or GACD_DATA for another place"
        raise InputError(f"{name} not found: {error.strerror}", path, fix) from error
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != files[file]:
        raise InputError("damaged file", path, f"delete {path.parent}, then gacd download {name}")
    return data


def _class_names(place: Path) -> list[str]:
    return sorted(p.name for p in place.glob("[!.]*") if p.is_dir())


def _image(file: Path, size: int | None) -> np.ndarray:
    """(H, W, 1) uint8 of a grey image, (H, W, 3) of any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":
                    raise ValueError("more than 8 bits a channel")
                upright = ImageOps.exif_transpose(image).convert("L" if image.mode == "L" else "RGB")
        except Exception as error:  # Pillow's decoders raise whatever they meet
            raise InputError(f"not a readable image: {error}", file) from error
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR) if size else upright
    return np.atleast_3d(np.asarray(square))
