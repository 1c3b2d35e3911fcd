"""Attacks on rows of images, each row at its own step: so that chunks of one shape can be refilled as images drop out.

An attack is a `Search`: how a row begins, what it ascends, how it moves after each forward. Whatever a row does depends
on that row alone; a network in eval mode then gives the same bits whichever rows stand beside it.
"""

from collections.abc import Callable
from itertools import cycle, islice
from typing import ClassVar

import torch
from torch import Tensor

from gacd import noise
from gacd.attacks.loop import box, check_threat, projection, steepest
from gacd.losses import cross_entropy

# (B, ...) each: "x" images, "low" and "high" the Linf ball's ends, "y" labels, "index" (B,) what randomness is drawn
# from, "run" (B,) which of the search's runs, "t" (B,) forwards done, "z" what the network is asked about, and the
# attack's own; the pool adds "guess" (see `pool._guess`) and, for `Local`, "slot" (B,): which kept image a row is like
Rows = dict[str, Tensor]


class Search:
    """One attack at one threat; a kind of it gives `begin`, `objective` and `step`, or like `Official` its own loop.

    Args:
        norm: "Linf" or "L2".
        eps: radius, in pixel units.
        seed: of whatever is random.
        step_size, steps: checked alone; an attack keeps its own.

    Attributes:
        runs: that an image takes, such as one towards each class; none depends on another.
        steps: forwards of a run.
        needs: of a run's forwards, in turn: "gradient" of the objective, or "logits" alone.
        targeted: whether `begin` is given the natural images' logits.
        guesses: whether later forwards' "z" can be made before earlier ones are answered. Then `propose` makes "z" of
            "t" and the run's other entries alone, and sets "square" (B,3) int64: first row, first column and side of
            where "z" differs from the last "z" that was kept; `step` sets "moved" (B,) bool: whether it kept this "z",
            which makes guesses beyond it wrong, True at the first forward; `needs` has one entry.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    targeted: ClassVar[bool] = False
    guesses: ClassVar[bool] = False
    runs: int = 1
    steps: int

    def __init__(
        self, *, norm: str = "Linf", eps: float = 8 / 255, seed: int = 0, step_size: float = 0.0, steps: int = 0
    ):
        check_threat(norm=norm, eps=eps, step_size=step_size, steps=steps)
        self.norm, self.eps, self.seed = norm, eps, seed

    def begin(self, rows: Rows, logits: Tensor | None) -> None:
        """Sets "z" (B,C,H,W), the runs' first images, and the attack's own entries; logits (B,K) if targeted."""
        raise NotImplementedError

    def objective(self, logits: Tensor, rows: Rows) -> Tensor:
        """What is ascended, (B,)."""
        raise NotImplementedError

    def step(self, rows: Rows, logits: Tensor, value: Tensor, gradient: Tensor | None) -> None:
        """Moves "z" after the network was asked about it: value (B,) and gradient (B,C,H,W) of the objective there."""
        raise NotImplementedError

    def propose(self, rows: Rows) -> None:
        """Sets "z" for the forward with the number "t" (B,), where `begin` or `step` has not."""

    def candidates(self, rows: Rows) -> Tensor:
        """Whether "z" may be taken for a result where it fools the network, (B,) bool: not where outside the ball."""
        return torch.ones_like(rows["t"], dtype=torch.bool)

    def found(self, rows: Rows) -> Tensor:
        """A run's result after its last step, (B,C,H,W)."""
        return rows["z"]

    def strength(self, rows: Rows) -> Tensor:
        """Of an image's runs the strongest gives the result, (B,); see `strengths`."""
        return torch.zeros_like(rows["y"], dtype=torch.float64)

    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """z on each row's ball and [0,1], exactly."""
        if self.norm == "Linf":
            return torch.clamp(z, rows["low"], rows["high"])
        return projection(rows["x"], self.eps, self.norm)(z)


class PGD(Search):
    """Projected gradient ascent (Madry et al., 2018): one random start, the last iterate.

    Args:
        step_size: in pixel units.
        steps: gradient steps.
        loss: (logits (B,K), y (B,)) -> (B,).
        restart: its number, part of what the start is drawn from.
    """

    def __init__(
        self,
        *,
        norm: str = "Linf",
        eps: float = 8 / 255,
        seed: int = 0,
        step_size: float = 2 / 255,
        steps: int = 20,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        restart: int = 0,
    ):
        super().__init__(norm=norm, eps=eps, seed=seed, step_size=step_size, steps=steps)
        self.step_size, self.steps, self.loss, self.restart = step_size, steps, loss, restart

    def begin(self, rows: Rows, logits: Tensor | None) -> None:
        purpose = (self.seed, "start", self.loss.__name__) + ((self.restart,) if self.restart else ())
        start = uniform_in_ball(rows["x"], self.norm, self.eps, noise.key(*purpose), rows["index"])
        rows["z"] = self.project(rows, start)

    def objective(self, logits: Tensor, rows: Rows) -> Tensor:
        return self.loss(logits, rows["y"])

    def step(self, rows: Rows, logits: Tensor, value: Tensor, gradient: Tensor | None) -> None:
        assert gradient is not None
        rows["z"] = self.project(rows, rows["z"] + self.step_size * steepest(gradient, self.norm))


class FGSM(PGD):
    """One step of eps from the image itself (Goodfellow et al., 2015)."""

    def __init__(self, *, norm: str = "Linf", eps: float = 8 / 255, seed: int = 0):
        super().__init__(norm=norm, eps=eps, seed=seed, step_size=eps, steps=1)

    def begin(self, rows: Rows, logits: Tensor | None) -> None:
        rows["z"] = rows["x"]


def run(search: Search, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
    """A whole attack on one batch.

    Args:
        search: the attack.
        model: images (B,C,H,W) in [0,1] -> logits (B,K), in eval mode.
        x: (B,C,H,W).
        y: (B,).
        index: (B,) the images' numbers, on which alone their randomness depends; made from the pixels if absent.

    Returns:
        (B,C,H,W), what the attack found, inside the ball and [0,1].
    """
    result, strongest = x.detach(), torch.full_like(y, -torch.inf, dtype=torch.float64)
    with torch.no_grad():
        natural = model(x) if search.targeted else None
    for number in range(search.runs):
        rows = begin(search, x.detach(), y, index, natural, torch.full_like(y, number))
        for need in islice(cycle(search.needs), search.steps):
            advance(search, rows, *ask(search, model, rows, need))
        strength = strengths(search, rows)
        stronger = strength > strongest
        result = torch.where(stronger.view(-1, 1, 1, 1), search.found(rows), result)
        strongest = torch.where(stronger, strength, strongest)
    return result


@torch.no_grad()
def begin(
    search: Search,
    x: Tensor,
    y: Tensor,
    index: Tensor | None,
    natural: Tensor | None,
    run: Tensor | None = None,
) -> Rows:
    """Rows at the start of runs (B,), the first if absent; natural: logits (B,K), for targeted ones."""
    index, none = noise.fingerprint(x) if index is None else index, torch.zeros_like(y)
    rows = dict(x=x, y=y, index=index, t=none, run=none.clone() if run is None else run)
    if search.norm == "Linf":
        rows["low"], rows["high"] = box(x, search.eps)
    search.begin(rows, natural if search.targeted else None)
    return rows


def strengths(search: Search, rows: Rows) -> Tensor:
    """Of an image's runs the strongest gives the result, (B,) float64; the first of equals, and NaN before all."""
    return search.strength(rows).double().nan_to_num(torch.inf, torch.inf, -torch.inf)


@torch.no_grad()
def advance(search: Search, rows: Rows, logits: Tensor, value: Tensor, gradient: Tensor | None) -> None:
    """A step with what `ask` gave."""
    search.step(rows, logits, value, gradient)
    rows["t"] = rows["t"] + 1


def ask(
    search: Search, model: Callable[[Tensor], Tensor], rows: Rows, need: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One forward: logits (B,K) at "z", the objective (B,) and its gradient (B,C,H,W), if needed; detached."""
    with torch.no_grad():
        search.propose(rows)
        if need == "logits":
            logits = model(rows["z"])
            return logits, search.objective(logits, rows), None
    z = rows["z"].detach().requires_grad_()
    with torch.enable_grad():
        logits = model(z)
        value = search.objective(logits, rows)
        # None for parameters; none at all where the network cuts it off, which the audits tell.
        gradient = torch.autograd.grad(value.sum(), z, allow_unused=True)[0] if value.requires_grad else None
    return logits.detach(), value.detach(), torch.zeros_like(z) if gradient is None else gradient


def uniform_in_ball(x: Tensor, norm: str, eps: float, key: int, index: Tensor) -> Tensor:
    """Uniform on the ball of each image (B,C,H,W), not yet in the box, by a key of `noise.key` and numbers (B,)."""
    shape = tuple(x.shape[1:])
    if norm == "Linf":
        return x + eps * (2 * noise.uniform(key, index, shape).to(x.dtype) - 1)
    direction = noise.normal(key, index, shape).to(x.dtype)
    radius = eps * noise.uniform(noise.key(key, "radius"), index).to(x.dtype) ** (1 / x[0].numel())
    return x + direction * (radius / direction.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
