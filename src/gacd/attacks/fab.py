"""Fast Adaptive Boundary attack (Croce and Hein, ICML 2020), targeted as in AutoAttack: the nearest mistake."""

from itertools import count

import torch
from torch import Tensor

from gacd import noise
from gacd.attacks.apgd import count_targets, image_wise, runner_up
from gacd.attacks.search import Rows, Search
from gacd.errors import InputError
from gacd.losses import at_least_float32

ROUNDS = {"cuda": 16}  # three times what CIFAR's images were seen to take


class TargetedFAB(Search):
    """Steps onto the linearised boundary towards a class, a run each; of all mistakes the nearest, on the ball.

    One iteration moves by a gradient, looks whether the point fools the network, and if so goes back towards the image.
    "z" may leave the ball: see `candidates`.

    Args:
        norm: "Linf".
        eps: radius, in pixel units: the result is taken to it, and random starts lie within half of it.
        seed: of the random starts.
        steps: iterations of a run.
        targets: the classes with the largest natural logits but the true one's; at most classes - 1.
        classes: of the network.
        restart: its number; 0 starts at the image itself.
        alpha_max: at most this share of a move is aimed from the image instead of from the point; in [0, 1].
        eta: overshoot of a move, at least 1.
        beta: share of the way from the image that is left after going back, in (0, 1).
    """

    targeted = True
    needs = ("gradient", "logits")

    def __init__(
        self,
        *,
        norm: str = "Linf",
        eps: float = 8 / 255,
        seed: int = 0,
        steps: int = 100,
        targets: int = 9,
        classes: int = 10,
        restart: int = 0,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
    ):
        super().__init__(norm=norm, eps=eps, seed=seed, steps=steps)
        if norm != "Linf":
            raise InputError("FAB is there for Linf only", norm)
        self.classes, self.runs, self.restart = classes, count_targets(targets, classes), restart
        self.alpha_max, self.eta, self.beta = alpha_max, eta, beta
        self.steps = 2 * steps

    def begin(self, rows: Rows, logits: Tensor | None) -> None:
        x = rows["x"]
        rows["target"] = runner_up(logits, rows["y"], rows["run"], self.classes)
        rows["z"] = self.start(x, rows["index"], rows["run"])
        rows["best"], rows["distance"] = x.clone(), x.new_full((len(x),), torch.inf, dtype=torch.float64)

    def objective(self, logits: Tensor, rows: Rows) -> Tensor:
        """z_t - z_y, (B,): zero on the boundary between the target and the true class."""
        pair = torch.stack([rows["y"], rows["target"]], 1)
        true, aim = at_least_float32(logits).gather(1, pair).unbind(1)
        return aim - true

    def candidates(self, rows: Rows) -> Tensor:
        z = rows["z"]
        return ((z >= rows["low"]) & (z <= rows["high"])).flatten(1).all(1)

    def step(self, rows: Rows, logits: Tensor, value: Tensor, gradient: Tensor | None) -> None:
        x, z = rows["x"], rows["z"]
        # a broken network's NaN goes into the result, and stays
        broken = ~logits.isfinite().all(1)
        if gradient is not None:
            broken |= ~gradient.flatten(1).isfinite().all(1)
        fooled = logits.argmax(1) != rows["y"]
        distance = (z.double() - x.double()).abs().flatten(1).amax(1)
        closer = fooled & (distance < rows["distance"])
        best = torch.where(image_wise(closer), z, rows["best"])
        rows["best"] = torch.where(image_wise(broken), torch.nan, best)
        rows["distance"] = torch.where(closer, distance, rows["distance"]).masked_fill(broken, -torch.inf)

        if gradient is not None:
            rows["z"] = self._move(x, z, value, gradient)
            return
        rows["z"] = torch.where(image_wise(fooled), x + (z - x) * self.beta, z)

    def found(self, rows: Rows) -> Tensor:
        return self.project(rows, rows["best"])

    def strength(self, rows: Rows) -> Tensor:
        return -rows["distance"]

    def start(self, x: Tensor, index: Tensor, run: Tensor) -> Tensor:
        """First images (B,C,H,W) of the runs with these numbers (B,): x, or at random, half a radius from it."""
        if not self.restart:
            return x.clone()
        key = noise.key(self.seed, "fab", self.restart)
        index = noise.bits(key, index, self.runs).gather(1, run[:, None])[:, 0]
        way = 2 * noise.uniform(noise.key(key, "start"), index, tuple(x.shape[1:])).to(x.dtype) - 1
        return (x + self.eps / 2 * way / image_wise(way.abs().flatten(1).amax(1).clamp_min(1e-12))).clamp(0, 1)

    def _move(self, x: Tensor, z: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Past the hyperplane value + <gradient, . - z> = 0, from z and from x: (B,C,H,W) in [0,1]."""
        b = len(x)
        w, here, image = (v.permute(0, 2, 3, 1).flatten(1) for v in (gradient, z, x))  # a view if channels_last
        gap = torch.cat([-value, (w * (here - image)).sum(1) - value])
        move = to_hyperplane(torch.cat([here, image]), torch.cat([w, w]), gap)
        length = move.abs().amax(1, keepdim=True).clamp_min(1e-8)
        alpha = (length[:b] / (length[:b] + length[b:])).clamp_max(self.alpha_max)
        moved = (here + self.eta * move[:b]) * (1 - alpha) + (image + self.eta * move[b:]) * alpha
        moved = moved.unflatten(1, (*z.shape[2:], z.shape[1])).permute(0, 3, 1, 2)
        return torch.empty_like(z).copy_(moved).clamp_(0, 1)


def to_hyperplane(point: Tensor, w: Tensor, gap: Tensor) -> Tensor:
    """The shortest move in the Linf norm onto a hyperplane, within the box.

    Every coordinate goes min(length, room) in its own direction; the gap closed by that is concave and piecewise linear
    in `length`, so Newton's iteration from 0 ends after finitely many steps on the piece that holds the solution. A GPU
    takes `ROUNDS` of them, since to look whether all rows are through is to wait.

    Args:
        point: (B,D) in [0,1].
        w: (B,D) normals.
        gap: (B,) what <w, move> must be.

    Returns:
        (B,D) move, point + move in [0,1]; as far as the box goes where it holds no point of the hyperplane.
    """
    way = w.sign() * gap.sign()[:, None]
    room = way.clamp_min(0) - way * point  # up to 1, or down to 0
    weight, gap = w.abs(), gap.abs()
    closes = weight * room
    length, full = torch.zeros_like(gap), torch.full_like(gap, -1)
    rounds = ROUNDS.get(point.device.type)
    for _ in count() if rounds is None else range(rounds):
        free = (room - length[:, None]).sign_().clamp_min_(0)  # 1 or, where it is stopped by the box, 0
        full, before = free.sum(1), full
        if rounds is None and bool((full == before).all()):
            break
        # A row whose piece is settled repeats itself to the bit while the others go on.
        slope, rest = (weight * free).sum(1), gap - (closes * (1 - free)).sum(1)
        length = torch.maximum(length, torch.where(slope > 0, (rest / slope).clamp_min(0), torch.inf))
    return way * torch.minimum(length[:, None], room)
