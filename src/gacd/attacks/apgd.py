"""Auto-PGD (Croce and Hein, ICML 2020): no step size to choose; and the DLR losses, which no scale of logits saturates.

Where paper and authors' code differ, this follows the code, whose numbers papers report: a step is halved where the
loss rose in at most 75 % of the moves since the last checkpoint (paper: in fewer). One thing follows the paper: the
first checkpoint compares the first move with the start (code: with 0).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gacd import noise
from gacd.attacks.loop import steepest
from gacd.attacks.search import Rows, Search
from gacd.errors import InputError
from gacd.losses import at_least_float32, cross_entropy, margin_loss

MOMENTUM = 0.75  # the share of the gradient step; the rest repeats the move before
RHO = 0.75  # a window in which the loss rose in at most this share of the moves halves the step
FIRST, SHORTER, SHORTEST = 22, 3, 6  # moves between checkpoints, in percent of all: 22, 19, 16, ..., 7, 6, 6, ...


class APGD(Search):
    """Auto-PGD from a random start, its best point by loss.

    Args:
        norm: "Linf" or "L2".
        eps: radius, in pixel units.
        seed: of the random start.
        steps: moves; the start is asked about too, so an image takes a forward more.
        loss: "ce", or "dlr": see `dlr_loss`.
        classes: of the network; unused here, so that all attacks can be made alike.
        restart: its number, part of what the start is drawn from.
    """

    def __init__(
        self,
        *,
        norm: str = "Linf",
        eps: float = 8 / 255,
        seed: int = 0,
        steps: int = 100,
        loss: str = "ce",
        classes: int | None = None,
        restart: int = 0,
    ):
        super().__init__(norm=norm, eps=eps, seed=seed, steps=steps)
        if loss not in LOSSES:
            raise InputError("unknown loss", loss, f"one of {', '.join(LOSSES)}")
        self.loss, self.restart, self.moves = loss, restart, steps
        self.steps = steps + 1

    def begin(self, rows: Rows, logits: Tensor | None) -> None:
        x, none = rows["x"], torch.zeros_like(rows["t"])
        rows["z"] = self.start(rows)
        for key in ("previous", "best", "best_gradient"):  # images; the first `step` sets them all
            rows[key] = torch.zeros_like(x)
        for key in ("value", "best_value", "checked", "step"):
            rows[key] = x.new_zeros(len(x))
        rows |= dict(window=none.clone(), since=none.clone(), rises=none.clone(), halved=none.bool())

    def objective(self, logits: Tensor, rows: Rows) -> Tensor:
        return LOSSES[self.loss](logits, rows["y"])

    def step(self, rows: Rows, logits: Tensor, value: Tensor, gradient: Tensor | None) -> None:
        assert gradient is not None
        z, value, first = rows["z"], value.to(rows["x"].dtype), rows["t"] == 0
        better = first | (value > rows["best_value"]) | value.isnan()  # a broken network's NaN is kept, and found
        best = torch.where(image_wise(better), z, rows["best"])
        best_gradient = torch.where(image_wise(better), gradient, rows["best_gradient"])
        best_value = torch.where(better, value, rows["best_value"])

        rises = torch.where(first, 0, rows["rises"] + (value > rows["value"]))
        since = torch.where(first, 0, rows["since"] + 1)
        window = torch.where(first, self._percent(FIRST), rows["window"])
        checked = torch.where(first, value, rows["checked"])
        due = since == window
        stuck = ~(first | rows["halved"]) & (checked >= best_value)
        halve = due & ((rises <= RHO * window) | stuck)
        step = torch.where(first, 2 * self.eps, rows["step"])
        step = torch.where(halve, step / 2, step)

        here = torch.where(image_wise(halve), best, z)
        uphill = steepest(torch.where(image_wise(halve), best_gradient, gradient), self.norm)
        share = image_wise(torch.where(first, 1.0, MOMENTUM).to(z.dtype))
        ahead = self.project(rows, here + image_wise(step) * uphill)
        moved = here + share * (ahead - here) + (1 - share) * (here - rows["previous"])
        rows |= dict(z=self.project(rows, moved), previous=here, value=value, step=step, best=best)
        rows |= dict(best_gradient=best_gradient, best_value=best_value)
        rows["halved"] = torch.where(due, halve, first | rows["halved"])
        rows["checked"] = torch.where(due, best_value, checked)
        rows["rises"], rows["since"] = torch.where(due, 0, rises), torch.where(due, 0, since)
        shorter = (window - self._percent(SHORTER)).clamp_min(self._percent(SHORTEST))
        rows["window"] = torch.where(due, shorter, window)

    def found(self, rows: Rows) -> Tensor:
        return rows["best"]

    def start(self, rows: Rows) -> Tensor:
        """Random first images (B,C,H,W) of the runs: as far out as the ball goes."""
        key = noise.key(self.seed, "apgd", self.loss, self.restart)
        index = noise.bits(key, rows["index"], self.runs).gather(1, rows["run"][:, None])[:, 0]
        x = rows["x"]
        if self.norm == "Linf":
            way = 2 * noise.uniform(noise.key(key, "start"), index, tuple(x.shape[1:])).to(x.dtype) - 1
            length = way.abs().flatten(1).amax(1)
        else:
            way = noise.normal(noise.key(key, "start"), index, tuple(x.shape[1:])).to(x.dtype)
            length = way.flatten(1).norm(dim=1)
        return self.project(rows, x + self.eps * way / image_wise(length.clamp_min(1e-12)))

    def _percent(self, share: int) -> int:
        return max(share * self.moves // 100, 1)


class TargetedAPGD(APGD):
    """Auto-PGD on the targeted DLR loss, a run towards each of several classes; of all points that of largest margin.

    Args:
        norm, eps, seed, restart: see `APGD`.
        steps: moves of a run.
        targets: the classes with the largest natural logits but the true one's; at most classes - 1.
        classes: of the network.
    """

    targeted = True

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
    ):
        super().__init__(norm=norm, eps=eps, seed=seed, steps=steps, loss="dlr", restart=restart)
        self.loss, self.classes, self.runs = "targeted dlr", classes, count_targets(targets, classes)

    def begin(self, rows: Rows, logits: Tensor | None) -> None:
        rows["target"] = runner_up(logits, rows["y"], rows["run"], self.classes)
        super().begin(rows, logits)
        rows["strongest"], rows["margin"] = rows["x"].clone(), rows["x"].new_full(rows["y"].shape, -torch.inf)

    def objective(self, logits: Tensor, rows: Rows) -> Tensor:
        return targeted_dlr_loss(logits, rows["y"], rows["target"])

    def step(self, rows: Rows, logits: Tensor, value: Tensor, gradient: Tensor | None) -> None:
        margin = margin_loss(logits, rows["y"]).to(rows["x"].dtype)
        better = (margin > rows["margin"]) | margin.isnan()
        rows["strongest"] = torch.where(image_wise(better), rows["z"], rows["strongest"])
        rows["margin"] = torch.where(better, margin, rows["margin"])
        super().step(rows, logits, value, gradient)

    def found(self, rows: Rows) -> Tensor:
        return rows["strongest"]

    def strength(self, rows: Rows) -> Tensor:
        return rows["margin"]


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (B,), from logits (B,K) and labels (B,): -(z_y - max other) / (z_(1) - z_(3)).

    Positive where the prediction is wrong; with fewer than 3 classes, where it is undefined, the margin loss.
    """
    if logits.shape[1] < 3:
        return margin_loss(logits, y)
    first, _, third = at_least_float32(logits).topk(3, dim=1).values.unbind(1)
    return margin_loss(logits, y) / (first - third + 1e-12)


def targeted_dlr_loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), (B,), for targets (B,); z_t - z_y with fewer than 4 classes."""
    logits = at_least_float32(logits)
    true, aim = logits.gather(1, torch.stack([y, target], 1)).unbind(1)
    if logits.shape[1] < 4:
        return aim - true
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return (aim - true) / (first - (third + fourth) / 2 + 1e-12)


def count_targets(targets: int, classes: int) -> int:
    """How many classes there are to aim at."""
    if targets < 1 or classes < 2:
        raise InputError("a targeted attack needs a target and 2 classes", f"targets {targets}, classes {classes}")
    return min(targets, classes - 1)


def runner_up(logits: Tensor | None, y: Tensor, number: Tensor, classes: int) -> Tensor:
    """The class (B,) that comes so many places (B,) after the first by natural logits (B,K), leaving out y's (B,)."""
    if logits is None or logits.shape[1] != classes:
        raise InputError("the attack was made for another number of classes", classes, "classes=K")
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True).gather(1, number[:, None])[:, 0]


def image_wise(row: Tensor) -> Tensor:
    """A number a row (B,) as it goes with images, (B,1,1,1)."""
    return row.view(-1, 1, 1, 1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "dlr": dlr_loss}
