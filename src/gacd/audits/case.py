"""What is audited: a network, images, and what an evaluation said of them; what several audits need, computed once."""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gacd import noise
from gacd.attacks.loop import projection
from gacd.attacks.pool import sweep
from gacd.attacks.search import PGD, Search, uniform_in_ball
from gacd.audits.fresh import Fresh
from gacd.judge import chunks
from gacd.losses import cross_entropy, magnitude, margin_loss

CROSS_ENTROPY = re.compile(r"fgsm|pgd\d*(x\d+)?|apgd-ce\d*(x\d+)?")  # attacks that a scale of the logits can blind
NEEDED = ("logits", "cross-entropy's gradients", "the margin's gradients")  # by an attack
Result = tuple[bool | None, str, str]  # passed (None: skipped), one sentence, and what to do if it did not pass
Network = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> logits (B,K)


@dataclass
class Case:
    """A network, images, and what an evaluation said of them.

    Attributes:
        model: images in [0,1] -> logits.
        x: (n,C,H,W) float32, on the model's device.
        y: (n,).
        norm, eps, step_size, chunk, seed: of the evaluation; chunk <= n.
        given: "natural" and each attack -> (n,) bool; None: PGD-20 takes their place.
        given_x_adv: (n,C,H,W) found for them.
        fresh: a process that loads the network by itself.
        teacher: whose adversarial images are tried on the model.
        noises: random points an image.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: str
    eps: float
    step_size: float
    chunk: int
    seed: int
    given: dict[str, Tensor] | None
    given_x_adv: Tensor | None
    fresh: Fresh | None
    teacher: nn.Module | None
    noises: int

    @property
    def n(self) -> int:
        return len(self.y)

    @property
    def slack(self) -> int:
        """Images that another attack may break by luck."""
        return max(3, self.n // 200)

    @property
    def tolerance(self) -> float:
        """Rounding between batches, relative to the largest logit; CUDA has other algorithms for other shapes."""
        return 1e-3 if self.x.device.type == "cuda" else 1e-5

    @cached_property
    def natural(self) -> Tensor:
        """The images' logits, (n,K)."""
        return self.ask(self.x)

    @property
    def right(self) -> Tensor:
        """(n,) bool, on the CPU: the images' classes as the network gives them here."""
        return (self.natural.argmax(1) == self.y).cpu()

    @cached_property
    def headline(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """The verdicts under audit, (n,) each, and the images they rest on, (n,C,H,W)."""
        if self.given is not None:
            return self.given, self.given_x_adv
        broken, x_adv = self.attack(self.pgd(cross_entropy), self.right)
        return {"natural": self.right, "pgd20": self.right & ~broken}, x_adv

    @property
    def correct(self) -> dict[str, Tensor]:
        return self.headline[0]

    @property
    def x_adv(self) -> Tensor | None:
        return self.headline[1]

    @property
    def survivors(self) -> Tensor:
        """(n,) bool: what the headline calls robust."""
        return torch.stack(list(self.correct.values())).all(0)

    @property
    def cross_entropy_alone(self) -> bool:
        """Whether no attack of the headline has another loss."""
        return all(CROSS_ENTROPY.fullmatch(name) for name in self.correct if name != "natural")

    @cached_property
    def start(self) -> Tensor:
        """A random point of each image's ball and the box, (n,C,H,W), off the points where the data lie."""
        key = noise.key(self.seed, "audit")
        points = uniform_in_ball(self.x, self.norm, self.eps, key, torch.arange(self.n, device=self.x.device))
        return projection(self.x, self.eps, self.norm)(points)

    @cached_property
    def on_images(self) -> dict[str, Tensor]:
        return self.look(self.x)

    @cached_property
    def near_images(self) -> dict[str, Tensor]:
        return self.look(self.start)

    def look(self, z: Tensor) -> dict[str, Tensor]:
        """What an attack would meet at z (n,C,H,W), a point for each image.

        Returns:
            Each of NEEDED -> (n,), 1 where it is not finite; "felt" -> the share of pixels at which the margin's
            gradient is not zero.
        """
        rows = []
        for (part, kept), (labels, _) in zip(self.chunks(z), self.chunks(self.y), strict=True):
            part = part.detach().requires_grad_()
            asked = self.network(part)
            values = [asked]
            for loss in (cross_entropy, margin_loss):
                values += torch.autograd.grad(loss(asked, labels).sum(), part, retain_graph=loss is cross_entropy)
            seen = [(~value.isfinite()).flatten(1).any(1).double() for value in values]
            seen.append((values[-1] != 0).flatten(1).double().mean(1))
            rows.append(torch.stack(seen)[:, :kept])
        return dict(zip([*NEEDED, "felt"], torch.cat(rows, 1), strict=True))

    def network(self, z: Tensor) -> Tensor:
        """The model in float32; where no gradient reaches z, one that is zero everywhere."""
        logits = self.model(z).float()
        if torch.is_grad_enabled() and z.requires_grad:
            logits = logits + 0 * z.flatten(1).sum(1, keepdim=True)
        return logits

    @torch.no_grad()
    def ask(self, z: Tensor) -> Tensor:
        """Logits (N,K) by chunks of one shape, the last one padded."""
        return torch.cat([self.network(part)[:kept] for part, kept in self.chunks(z)])

    def chunks(self, z: Tensor) -> Iterator[tuple[Tensor, int]]:
        return chunks(z, self.chunk)

    def pgd(self, loss: Callable[[Tensor, Tensor], Tensor], kind: type[PGD] = PGD, **options: Any) -> PGD:
        """PGD-20 at the evaluation's threat, but for the options."""
        threat: dict[str, Any] = dict(norm=self.norm, eps=self.eps, seed=self.seed, step_size=self.step_size)
        return kind(**threat | dict(loss=loss) | options)

    def attack(self, search: Search, which: Tensor, network: Network | None = None) -> tuple[Tensor, Tensor]:
        """Attacks images `which` (n,) bool: the broken ones, (n,) bool, and what was found, (n,C,H,W), else x.

        The verdict is the model's own, also where another network is searched.
        """
        x_adv, broken = self.x.clone(), torch.zeros(self.n, dtype=torch.bool)

        def fetch(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rows = rows.to(self.x.device)
            return self.x[rows], self.y[rows], self.natural[rows]

        rows = which.nonzero()[:, 0]
        for where, found, _ in sweep(search, network or self.network, fetch, rows, self.chunk, nullcontext):
            x_adv[where.to(x_adv.device)] = found
        if len(rows):
            there = rows.to(x_adv.device)
            broken[rows] = (self.ask(x_adv[there]).argmax(1) != self.y[there]).cpu()
        return broken, x_adv

    def broken(self, which: Tensor, *searches: Search, network: Network | None = None) -> Tensor:
        """Which of images `which` (n,) bool the searches break, one after the other, (n,) bool."""
        left = which
        for search in searches:
            left = left & ~self.attack(search, left, network)[0]
        return which & ~left

    def differ(self, logits: Tensor, y: Tensor, right: Tensor) -> Tensor:
        """Where logits (m,K) contradict verdicts (m,) by more than rounding, or at more than a few: (m,) bool."""
        margin = margin_loss(logits, y)
        close = margin.abs() <= self.tolerance * magnitude(logits)
        differ = torch.where(close, logits.argmax(1) == y, margin < 0).cpu() != right.cpu()
        differ |= logits.isnan().any(1).cpu()  # which no verdict rests on
        excused = differ & close.cpu()
        return differ & ~excused if int(excused.sum()) <= max(3, len(right) // 100) else differ
