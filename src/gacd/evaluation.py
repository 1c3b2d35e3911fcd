"""Accuracy on natural images and under attack, per image: a number that does not depend on how it was computed.

Every forward of a pass runs on chunks of one fixed shape (the last one padded) and whatever is random is a function of
(seed, attack, image), so the verdict on an image does not depend on its neighbours.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gacd import data as datasets
from gacd import ranks
from gacd.attacks.loop import RADII, check_pixels, check_threat, in_pixels
from gacd.attacks.names import parse_attack, searches, written
from gacd.attacks.official import Official
from gacd.classifier import check_network, device_of, lay_out
from gacd.device import exactly
from gacd.errors import InputError
from gacd.journal import Journal
from gacd.judge import attacked, logits_of
from gacd.losses import margin_loss
from gacd.models.folding import attackable

STANDARD = ("fgsm", "pgd20", "margin20")  # what `gacd evaluate` runs by default
DOUBTFUL = {"cpu": 8, "cuda": 64}  # rows at most for images attacked once more in float32: one or two of a hundred


def evaluate(
    model: nn.Module,
    data: Any,
    attacks: Sequence[str] = ("pgd20",),
    *,
    norm: str = "Linf",
    eps: float | str | None = None,
    step_size: float | str | None = None,
    seed: int = 0,
    chunk: int | None = None,
    compile: bool = False,
    search: Callable[[], AbstractContextManager] = nullcontext,
    done: Callable[[int], None] = lambda n: None,
    running: Callable[[str, int, int], None] = lambda name, robust, judged: None,
    journal: Journal | None = None,
    shard: tuple[int, int] = (0, 1),
) -> "Evaluation":
    """Natural and robust accuracy; images already misclassified are not attacked, beaten ones not attacked further.

    Args:
        model: images in [0,1] -> logits; evaluated in eval mode, its mode left as it was.
        data: a data set's name (its test images), a `Dataset` or `Split`, (x, y) or a DataLoader of such pairs.
        attacks: such as "pgd20", "margin20x5" (five restarts), "fgsm": see `gacd.attacks.names`.
        norm: "Linf" or "L2".
        eps: radius, in pixel units, such as 0.1 or "8/255"; 8/255 if absent, in L2 0.5.
        step_size: in pixel units; eps / 4 if absent, which is 2/255 at 8/255.
        seed: of the random starts.
        chunk: images per forward, at most all; 64 on a CPU and 500 on a GPU if absent. Verdicts may differ between
            chunk sizes by the last bit of a gradient.
        compile: fuses the kernels of the network that is searched by torch.compile; for CUDA.
        search: makes a context for the attacks' forwards, such as autocast; verdicts are taken outside it.
        done: called with a number of images as each attack is through with them.
        running: called, as an attack of several stages goes through the images, with its name and stage, how many it
            left right so far, and out of how many.
        journal: keeps the verdicts, and knows those of an evaluation that was stopped.
        shard: (i, k) attacks every k-th image from i on; the others count as wrong.

    Returns:
        An `Evaluation`.

    Raises:
        NotFinite: logits or gradients that are NaN or infinite.
        InputError: a wrong value, a network that is no classifier of such images, or too few classes.
    """
    eps = in_pixels(RADII.get(norm, 0.0) if eps is None else eps)
    step_size = eps / 4 if step_size is None else in_pixels(step_size)
    check_threat(norm=norm, eps=eps, step_size=step_size)
    names = [attacks] if isinstance(attacks, str) else attacks
    for name in names:
        parse_attack(name)
    x, y = images_of(data)
    device = device_of(model)
    chunk = min(chunk or rows_on(device), len(y))
    again = min(chunk, DOUBTFUL.get(device.type, chunk))
    result, began, journal = Evaluation(), time.perf_counter(), journal or Journal()

    def fetch(where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return datasets.on_device(x[where], device), y[where].to(device), natural[where].to(device)

    first = datasets.on_device(x[:chunk], device)
    with ExitStack() as inside:
        inside.enter_context(exactly())
        inside.enter_context(lay_out(model, first))
        check_network(model, first)
        quick = inside.enter_context(attackable(model, first, anew=True, compile=compile))
        inside.enter_context(torch.no_grad())
        mine = torch.arange(len(y))[shard[0] :: shard[1]]
        logits = logits_of(model, lambda rows: datasets.on_device(x[mine[rows]], device), len(mine), chunk, done)
        if int(y.max()) >= logits.shape[1]:
            raise InputError(
                "the network knows fewer classes than the data", f"{logits.shape[1]} <= label {int(y.max())}"
            )
        result.classes = logits.shape[1]
        whole = len(mine) == len(y)
        natural = logits if whole else logits.new_zeros(len(y), logits.shape[1]).index_copy_(0, mine, logits)
        correct = torch.zeros(len(y), dtype=torch.bool).index_copy_(0, mine, logits.argmax(1) == y[mine])
        result.record("natural", correct, began)
        margin = margin_loss(natural, y)
        attack = partial(attacked, model, quick, fetch=fetch)
        threat: dict[str, Any] = dict(norm=norm, eps=eps, step_size=step_size)
        drawn = dict[str, Any](seed=seed, classes=logits.shape[1])
        for name, stages in {name: searches(name, **threat, **drawn) for name in names}.items():
            began = time.perf_counter()
            robust, judged, recalled = correct.clone(), 0, False
            for block in mine.split(len(mine) if len(stages) == 1 else 8 * chunk):
                judged, rest = judged + len(block), len(block)
                for number, stage in enumerate(stages):
                    known, right = journal.recall(name, number)
                    robust[known] &= right
                    recalled |= bool(len(known))
                    ahead = robust.index_fill(0, known, False)
                    which = block[ahead[block]]
                    if not isinstance(stage, Official):
                        # Those that last longest come first: little refills the chunk as its last images drop out.
                        which = which[margin[which].argsort(stable=True)]
                    for where, right, x_adv in attack(stage, which=which, chunk=chunk, again=again, context=search):
                        robust[where] = right
                        journal.note(name, number, where, right, x_adv)
                        if len(stages) == 1:
                            done(len(where))
                            rest -= len(where)
                    if len(stages) > 1:
                        so_far = int(robust[mine[:judged]].sum())
                        running(f"{name}, {number + 1} of {len(stages)}", so_far, judged)
                done(rest)
            result.record(name, robust, began, written(name, **threat))
            if recalled:
                result.seconds.pop(name)
    return result


@dataclass
class Evaluation:
    """Which images withstood what.

    Attributes:
        correct: "natural" and each attack -> (N,) bool, True where the image was still classified rightly.
        seconds: the same keys -> wall time; none for an attack that was stopped and goes on.
        threats: each attack -> norm, eps and, where it has them, step_size, steps (of Square: queries) and more.
        classes: that the network knows.
    """

    correct: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    threats: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: int = 0

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
        """The share of all images, in [0,1], that are right under "natural" or an attack alone."""
        return float(self.correct[name].double().mean())

    def union(self) -> "Evaluation":
        """All processes' shards, together."""
        self.correct = {name: ranks.either(mask) for name, mask in self.correct.items()}
        return self

    def record(self, name: str, correct: Tensor, began: float, threat: dict[str, Any] | None = None) -> None:
        self.correct[name], self.seconds[name] = correct, time.perf_counter() - began
        if threat is not None:
            self.threats[name] = threat


def interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a share, `correct` of n: (low, high) in [0,1]."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = betaincinv(correct, n - correct + 1, tail) if correct else 0.0
    high = betaincinv(correct + 1, n - correct, 1 - tail) if correct < n else 1.0
    return float(low), float(high)


def rows_on(device: torch.device | str) -> int:
    """How many images an evaluation gives the network at once, unless told.

    On a CPU few rows keep feature maps in its caches, and lose least as the last images of an attack drop out.
    """
    return 64 if torch.device(device).type == "cpu" else 500


def images_of(data: Any) -> tuple[Tensor, Tensor]:
    """(x, y) on the CPU from whatever stands for test data; x as uint8, or as floats in [0,1]."""
    if isinstance(data, str):
        data = datasets.load(data)
    if isinstance(data, datasets.Dataset):
        data = data.test
    if isinstance(data, datasets.Split):
        x, y = data.images, data.labels
    elif isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple | list):
        x, y = map(torch.as_tensor, data)
    elif batches := list(data):
        x, y = (torch.cat([torch.as_tensor(batch[i]) for batch in batches]) for i in (0, 1))
    else:
        x = y = torch.empty(0)
    if x.ndim != 4 or y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        raise InputError("expected images (N,C,H,W) and labels (N,), N > 0", f"{tuple(x.shape)}, {tuple(y.shape)}")
    if int(y.min()) < 0 or not (x.is_floating_point() or x.dtype == torch.uint8):
        fix = "labels from 0 on; pixels as uint8 or as floats in [0,1]"
        raise InputError("unusable labels or pixels", f"smallest label {int(y.min())}, pixels {x.dtype}", fix)
    if x.is_floating_point():
        check_pixels(x)
    return x.cpu(), y.long().cpu()
