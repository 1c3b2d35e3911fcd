"""Accuracy on natural images and under attack, per image: a number that does not depend on how it was computed.

Every forward runs on chunks of one fixed shape (the last one padded) and every random start is a function of
(seed, attack, image), so the verdict on an image does not depend on its neighbours.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gacd import data as datasets
from gacd.attacks import ATTACKS, check_threat
from gacd.errors import InputError
from gacd.models.folding import attackable

STANDARD = ("fgsm", "pgd20", "margin20")  # what `gacd evaluate` runs


def evaluate(
    model: nn.Module,
    data: Any,
    attacks: Sequence[str] = ("pgd20",),
    *,
    norm: str = "Linf",
    eps: float = 8 / 255,
    step_size: float | None = None,
    seed: int = 0,
    chunk: int = 250,
    search: Callable[[], AbstractContextManager] = nullcontext,
    done: Callable[[int], None] = lambda n: None,
) -> "Evaluation":
    """Natural and robust accuracy; images already misclassified are not attacked.

    Args:
        model: images in [0,1] -> logits; evaluated in eval mode, its mode left as it was.
        data: a data set's name (its test images), a `Dataset` or `Split`, (x, y) or a DataLoader of such pairs.
        attacks: names of ATTACKS, with the number of steps at the end: "pgd20", "margin20", "fgsm".
        norm: "Linf" or "L2".
        eps: radius, in pixel units.
        step_size: in pixel units; eps / 4 if absent, which is 2/255 at 8/255.
        seed: of the random starts.
        chunk: images per forward, at most all; verdicts may differ between chunk sizes by the last bit of a gradient.
        search: makes a context for the attacks' forwards, such as autocast; verdicts are taken outside it.
        done: called with a number of images after each chunk of each attack.

    Returns:
        An `Evaluation`.
    """
    step_size = eps / 4 if step_size is None else step_size
    check_threat(norm=norm, eps=eps, step_size=step_size)
    runs = [(name, *parse_attack(name)) for name in ([attacks] if isinstance(attacks, str) else attacks)]
    x, y = images_of(data)
    chunk = min(chunk, len(y))
    device = next((t.device for t in model.state_dict().values()), torch.device("cpu"))
    result, began = Evaluation(), time.perf_counter()
    _, first, _ = next(_chunks(x, y, torch.arange(1), 1, device))
    with attackable(model, first) as quick, torch.no_grad():
        correct = torch.empty(len(y), dtype=torch.bool)
        for where, z, labels in _chunks(x, y, torch.arange(len(y)), chunk, device):
            correct[where] = _right(model, z, labels)[: len(where)]
            done(len(where))
        result.record("natural", correct, began)
        for name, attack, options in runs:
            began = time.perf_counter()
            robust = torch.zeros_like(correct)
            threat = dict(norm=norm, eps=eps, step_size=eps if name == "fgsm" else step_size) | options
            for where, z, labels in _chunks(x, y, correct.nonzero()[:, 0], chunk, device):
                with search():
                    x_adv = attack(quick, z, labels, seed=seed, **threat)
                robust[where] = _right(model, x_adv, labels)[: len(where)]
                done(len(where))
            done(int((~correct).sum()))
            result.record(name, robust, began, threat)
    return result


@dataclass
class Evaluation:
    """Which images withstood what.

    Attributes:
        correct: "natural" and each attack -> (N,) bool, True where the image was still classified rightly.
        seconds: the same keys -> wall time.
        threats: each attack -> its norm, eps, step_size and steps.
    """

    correct: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    threats: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.correct["natural"])

    @property
    def natural(self) -> float:
        """Share of natural images classified rightly."""
        return self.accuracy("natural")

    @property
    def robust(self) -> dict[str, float]:
        """Each attack -> share of images that withstood it."""
        return {name: self.accuracy(name) for name in self.threats}

    @property
    def worst(self) -> float:
        """Share of images that withstood every attack, taken per image."""
        return float(self.survivors.double().mean())

    @property
    def survivors(self) -> Tensor:
        """(N,) bool: right on the natural image and after every attack."""
        return torch.stack(list(self.correct.values())).all(0)

    def accuracy(self, name: str) -> float:
        return float(self.correct[name].double().mean())

    def record(self, name: str, correct: Tensor, began: float, threat: dict[str, Any] | None = None) -> None:
        self.correct[name], self.seconds[name] = correct, time.perf_counter() - began
        if threat is not None:
            self.threats[name] = threat


def interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a share."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = betaincinv(correct, n - correct + 1, tail) if correct else 0.0
    high = betaincinv(correct + 1, n - correct, 1 - tail) if correct < n else 1.0
    return float(low), float(high)


def parse_attack(name: str) -> tuple[Callable[..., Tensor], dict[str, int]]:
    """ "pgd20" -> (pgd, {"steps": 20}); a name without a number keeps the attack's own."""
    match = re.fullmatch(r"([a-z_-]+?)(\d*)", name)
    if not match or match[1] not in ATTACKS or (match[1] == "fgsm" and match[2]) or (match[2] and not int(match[2])):
        known = ", ".join(a if a == "fgsm" else f"{a}20" for a in ATTACKS)
        raise InputError("unknown attack", name, f"such as {known}; the number is that of the steps")
    if match[1] == "fgsm":
        return ATTACKS["fgsm"], {"steps": 1}
    return ATTACKS[match[1]], {"steps": int(match[2] or 20)}


def images_of(data: Any) -> tuple[Tensor, Tensor]:
    """(x, y) on the CPU from whatever stands for test data; x as uint8, or as floats in [0,1]."""
    if isinstance(data, str):
        data = datasets.load(data)
    if isinstance(data, datasets.Dataset):
        data = data.test
    if isinstance(data, datasets.Split):
        x, y = data.images, data.labels
    elif isinstance(data, tuple):
        x, y = data
    else:
        batches = list(data)
        x, y = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    if x.ndim != 4 or y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        raise InputError("expected images (N,C,H,W) and labels (N,), N > 0", f"{tuple(x.shape)}, {tuple(y.shape)}")
    if int(y.min()) < 0 or not (x.is_floating_point() or x.dtype == torch.uint8):
        fix = "labels from 0 on; pixels as uint8 or as floats in [0,1]"
        raise InputError("unusable labels or pixels", f"smallest label {int(y.min())}, pixels {x.dtype}", fix)
    if x.is_floating_point() and not 0 <= float(x.min()) <= float(x.max()) <= 1:
        fix = "the model normalises: give pixels as they are, divided by 255"
        raise InputError("pixels must be in [0,1]", f"from {float(x.min()):g} to {float(x.max()):g}", fix)
    return x.cpu(), y.long().cpu()


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images are classified rightly, (B,) bool on the CPU."""
    logits = model(x)
    if int(y.max()) >= logits.shape[1]:
        raise InputError("the network knows fewer classes than the data", f"{logits.shape[1]} <= label {int(y.max())}")
    if not bool(logits.isfinite().all()):
        raise InputError("the network's logits or gradients are not finite", type(model).__name__)
    return (logits.argmax(1) == y).cpu()


def _chunks(
    x: Tensor, y: Tensor, which: Tensor, chunk: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images `which` in chunks of one shape: their positions, and x and y padded with the last image."""
    for where in which.split(chunk) if len(which) else ():
        rows = torch.cat([where, where[-1:].expand(chunk - len(where))])
        z = x[rows].to(device)
        z = datasets.pixels(z) if z.dtype == torch.uint8 else z.float()
        yield where, z.contiguous(memory_format=torch.channels_last), y[rows].to(device)
