"""Witness packs: the images that beat a network beside the natural ones, in one file that anyone can re-score.

A pack is self-contained, one safetensors file beside results.json: for the first images of an evaluation the pixels,
labels and verdicts, for each beaten one the image that beat it and by which attack, and the SHA-256 of it all.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gacd import checkpoint
from gacd import data as datasets
from gacd.attacks.loop import check_threat, inside
from gacd.attacks.names import parse_attack, written
from gacd.errors import InputError, Invalid
from gacd.evaluation import Evaluation
from gacd.journal import Beaten
from gacd.parser import Ratio, exact
from gacd.readers import Split
from gacd.results import fingerprint, in_full
from gacd.tables import clean

FORMAT = 1
KEY = "gacd-witnesses"  # of the metadata in the file's header
TENSORS = {  # dtype and shape: n images, m of them beaten, a attacks
    "images": (torch.uint8, "nCHW"),
    "labels": (torch.int64, "n"),
    "positions": (torch.int64, "n"),  # in the data set's test images, ascending
    "right": (torch.uint8, "an"),  # 1 where the verdict is right: on the natural image, then after each attack
    "beaten": (torch.int64, "m"),  # rows of `images`, ascending
    "witnesses": (torch.float32, "mCHW"),
    "found_by": (torch.int64, "m"),  # rows of `right`
}
ABOUT = dict(norm=str, eps=str, attacks=list, threats=dict, data=str, data_sha256=str, evaluated=int, classes=int)
ABOUT |= dict(source=str, weights=str, weights_sha256=str, architecture=str, verdict=str, device=str, gacd=str)
ABOUT |= dict(n=int, correct=dict, accuracy=dict)
REACH = {"Linf": 0.9, "L2": 0.5}  # of what the ball and [0,1] leave: random starts alone come further


@dataclass
class Pack:
    """What a pack holds; see TENSORS and ABOUT."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def eps(self) -> float:
        return float(Ratio(self.about["eps"]))

    @property
    def x(self) -> Tensor:
        """(n,C,H,W) natural images in [0,1]."""
        return datasets.pixels(self.tensors["images"])

    @property
    def farthest(self) -> float:
        """The largest distance of a witness from its image, in the pack's norm."""
        return self._longest(self.tensors["witnesses"].double() - self.x[self.tensors["beaten"]].double())

    @property
    def reach(self) -> float:
        """The largest distance that the ball and [0,1] leave any of its beaten images."""
        x = self.x[self.tensors["beaten"]].double()
        return min(self.eps, self._longest(x.maximum(1 - x)))

    def _longest(self, delta: Tensor) -> float:
        length = delta.flatten(1).norm(dim=1, p=2 if self.about["norm"] == "L2" else torch.inf)
        return float(length.max()) if len(length) else 0.0

    def named(self, which: Tensor) -> str:
        """The first of some witnesses, (m,) bool."""
        row = int(which.nonzero()[0, 0])
        position = int(self.tensors["positions"][self.tensors["beaten"][row]])
        return f"of test image {position}, by {self.about['attacks'][int(self.tensors['found_by'][row]) - 1]}"

    @property
    def counts(self) -> dict[str, int]:
        """Images still right: natural, after each attack, and after all of them."""
        right = self.tensors["right"]
        numbers = dict(zip(["natural", *self.about["attacks"]], right.sum(1).tolist(), strict=True))
        return numbers | dict(worst=int(right.all(0).sum()))


def write(path: Path, split: Split, result: Evaluation, found: Beaten, **about: Any) -> None:
    """Packs the first images of an evaluation.

    Args:
        path: the file.
        split: those n images.
        result: of all the images, in the same order.
        found: positions (m,), images (m,C,H,W) and attacks, as `Journal.witnesses`.
        about: what ABOUT lists and neither the images nor the result say.
    """
    n, attacks = len(split), list(result.threats)
    near = found[0] < n
    names = [name for name, one in zip(found[2], near.tolist(), strict=True) if one]
    tensors = dict(
        images=split.images,
        labels=split.labels,
        positions=torch.arange(n),
        right=torch.stack([mask[:n] for mask in result.correct.values()]).to(torch.uint8),
        beaten=found[0][near],
        witnesses=found[1][near] if len(names) else torch.empty(0, *split.images.shape[1:]),
        found_by=torch.tensor([1 + attacks.index(name) for name in names], dtype=torch.int64),
    )
    threats = {name: in_full(threat) for name, threat in result.threats.items()}
    told = dict(format=FORMAT, gacd=version("gacd"), n=n, attacks=attacks, threats=threats, classes=result.classes)
    about = {name: clean(value)[:1000] if isinstance(value, str) else value for name, value in about.items()}  # paths
    pack = Pack(told | in_full(about), tensors)
    pack.about |= dict(correct=pack.counts, accuracy={name: count / n for name, count in pack.counts.items()})
    save(path, pack)


def save(path: Path, pack: Pack) -> None:
    """Writes a pack atomically, under the hash of its content."""
    tensors = {name: tensor.contiguous() for name, tensor in pack.tensors.items()}
    about = pack.about | dict(content_sha256=content(pack.about, tensors))
    checkpoint.replace(path, safetensors.torch.save(tensors, {KEY: json.dumps(about)}))


def read(path: Path) -> Pack:
    """A pack that is what it was written as.

    Raises:
        InputError: not there, not a pack, or cut short.
        Invalid: its content contradicts its hash, or itself.
    """
    if not path.exists():
        raise InputError("no such file", path)
    text, same, hashed, tensors, about = "", "", "", {}, None
    # Suppressed is whatever a hostile or broken file makes the safe reader raise.
    with contextlib.suppress(Exception), safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        text = file.metadata()[KEY]
        about = json.loads(text)
        same, hashed = json.dumps(about), content(about, tensors)
    if not isinstance(about, dict):
        fix = "gacd evaluate writes them; was it cut short?"
        fix = f"after the network come files, {path}/witnesses-*.safetensors" if path.is_dir() else fix
        raise InputError("cannot be read as a witness pack", path, fix)
    if about.get("format") != FORMAT:
        raise InputError("witness pack of another version of gacd", path, f"not format {FORMAT}")
    said = about.pop("content_sha256", None)
    if said != hashed or text != same:  # 1e-05 and 1E-05 are the same number, but not the same text
        raise invalid("its SHA-256 is not that of its content", path)
    pack = Pack(about, tensors)
    _sound(pack)
    return pack


def file_name(norm: str, eps: float, key: str) -> str:
    """Of a pack; key is a hash of whatever the verdicts depend on."""
    return f"witnesses-{norm}-{exact(eps).replace('/', '-')}-{key[:8]}.safetensors"


def content(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of metadata, but for itself, and tensors."""
    about = {name: value for name, value in about.items() if name != "content_sha256"}
    h = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in sorted(tensors.items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def invalid(what: str, where: object = "") -> Invalid:
    return Invalid(f"INVALID, the pack proves nothing: {what}", where)


def _sound(pack: Pack) -> None:
    """Refuses what no evaluation writes, with nothing but the pack at hand."""
    about, tensors = pack.about, pack.tensors
    for name, kind in ABOUT.items():
        if type(about.get(name)) is not kind:
            raise invalid(f"{name} is missing or no {kind.__name__}", "metadata")
    if any(not text.isprintable() or len(text) > 1000 for text in _texts(about)):
        raise invalid("a text that no evaluation writes", "metadata")
    if about["verdict"] not in ("TRUSTED", "SUSPECT") or about["device"] not in ("cpu", "cuda"):
        raise invalid("no such verdict or device", f"{about['verdict']}, {about['device']}")
    attacks, threats = about["attacks"], about["threats"]
    if not attacks or list(threats) != attacks or not all(isinstance(told, dict) for told in threats.values()):
        raise invalid("the attacks' threats are not the pack's", "metadata")
    try:
        for name, told in threats.items():
            step_size = float(Ratio(told.get("step_size", about["eps"])))
            check_threat(norm=about["norm"], eps=pack.eps, step_size=step_size)
            due = in_full(written(name, norm=about["norm"], eps=pack.eps, step_size=step_size))
            if told != due | dict(eps=about["eps"]):
                raise invalid("an attack's threat is not the pack's or not what its name stands for", name)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise invalid("no such threat", error) from None
    _shapes(pack)
    images, labels, positions = (tensors[name] for name in ("images", "labels", "positions"))
    right, beaten, found_by = (tensors[name] for name in ("right", "beaten", "found_by"))
    if about["n"] != len(labels) or not 0 < len(labels) <= about["evaluated"]:
        raise invalid("it does not hold as many images as it says", f"{len(labels)}, not {about['n']}")
    if int(labels.min()) < 0 or int(labels.max()) >= about["classes"]:
        raise invalid(f"labels outside 0 to {about['classes'] - 1}")
    if not torch.equal(positions, torch.arange(len(positions))):
        raise invalid("its images are not the first of those evaluated, in their order")
    if len(labels) == about["evaluated"] and fingerprint(Split(images, labels)) != about["data_sha256"]:
        raise invalid("images or labels are not those evaluated, by their SHA-256", about["data"])
    if int(right.max()) > 1 or bool((right > right[:1]).any()):
        raise invalid("verdicts of attacks on images that were wrong already")
    if not torch.equal(beaten, (right[0] > right.amin(0)).nonzero()[:, 0]):
        raise invalid("not one witness for each image that it calls beaten")
    if not bool(((found_by > 0) & (found_by < len(right))).all()) or bool(right[found_by, beaten].any()):
        raise invalid("a witness of an attack that left its image right")
    earlier = torch.arange(1, len(right))[:, None] < found_by
    if bool((earlier & (right[1:, beaten] == 0)).any()):
        raise invalid("a witness not of the first attack that beat its image")
    if about["correct"] != pack.counts:
        raise invalid("numbers are not those recounted", f"{about['correct']}, not {pack.counts}")
    if about["accuracy"] != {name: count / len(labels) for name, count in pack.counts.items()}:
        raise invalid("accuracies are not those recounted", about["accuracy"])
    _near(pack)


def _shapes(pack: Pack) -> None:
    tensors, sizes = pack.tensors, {"a": 1 + len(pack.about["attacks"])}
    if tensors.keys() != TENSORS.keys():
        raise invalid("tensors are missing or unknown", ", ".join(sorted(tensors.keys() ^ TENSORS.keys())))
    for name, (dtype, shape) in TENSORS.items():
        tensor = tensors[name]
        fits = tensor.dtype == dtype and tensor.ndim == len(shape)
        if not fits or any(sizes.setdefault(d, s) != s for d, s in zip(shape, tensor.shape, strict=True)):
            raise invalid(f"{name} has another type or shape", f"{tensor.dtype} {tuple(tensor.shape)}")
    if min(sizes[d] for d in "nCHW") < 1:
        raise invalid("there are no images in it")


def _near(pack: Pack) -> None:
    """Every witness lies in its ball and in [0,1]; together they reach about as far as the attacks were allowed."""
    about, x, x_adv = pack.about, pack.x[pack.tensors["beaten"]], pack.tensors["witnesses"]
    outside = ~inside(x, x_adv, pack.eps, about["norm"])
    if outside.any():
        raise invalid(f"a witness outside [0,1] or its ball, {about['norm']} {about['eps']}", pack.named(outside))
    nearest = torch.tensor([1 + i for i, name in enumerate(about["attacks"]) if parse_attack(name).family == "fab-t"])
    sent_far = int((~torch.isin(pack.tensors["found_by"], nearest)).sum())
    if sent_far >= 10 and pack.farthest < REACH[about["norm"]] * pack.reach:
        raise invalid(f"no witness comes near the radius {about['eps']}", f"the farthest is at {pack.farthest:.4g}")


def _texts(value: Any) -> list[str]:
    """All strings in a JSON value."""
    texts, ahead = [], [value]
    while ahead:  # a hostile one's depth may be above Python's
        item = ahead.pop()
        if isinstance(item, dict):
            ahead += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            ahead += item
        elif isinstance(item, str):
            texts.append(item)
    return texts
