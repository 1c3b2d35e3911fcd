"""Square Attack (Andriushchenko et al., ECCV 2020): random search that asks a network for logits alone."""

from functools import cache

import torch
from torch import Tensor

from gacd import noise
from gacd.attacks.search import Rows, Search
from gacd.errors import InputError
from gacd.losses import margin_loss

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10000 queries: after each the squares' area is halved


class Square(Search):
    """Square Attack in the Linf ball, its best point by margin.

    It starts at vertical stripes on the ball's faces, a sign for each colour and column; every query then proposes a
    square of one sign a colour, anywhere in the image (as in the paper; the authors' code leaves out the last row and
    column), and keeps it where the margin grew. Each image has its own squares.

    Args:
        norm: "Linf".
        eps: radius, in pixel units.
        seed: of the stripes and squares.
        steps: queries, the stripes' included.
        p_init: share of the image that the first squares cover, in (0, 1].
        rescale: whether the schedule of 10000 queries is shrunk to `steps`; AutoAttack runs half of it instead.
        classes: of the network; unused, so that all attacks can be made alike.
        restart: its number, part of what everything is drawn from.
    """

    needs = ("logits",)
    guesses = True  # a square is drawn by its number, and few of them stay

    def __init__(
        self,
        *,
        norm: str = "Linf",
        eps: float = 8 / 255,
        seed: int = 0,
        steps: int = 5000,
        p_init: float = 0.8,
        rescale: bool = True,
        classes: int | None = None,
        restart: int = 0,
    ):
        super().__init__(norm=norm, eps=eps, seed=seed, steps=steps)
        if norm != "Linf":
            raise InputError("the Square Attack is there for Linf only", norm)
        if not 0 < p_init <= 1:
            raise InputError("p_init must be in (0, 1]", p_init)
        self.steps, self.p_init, self.rescale, self.restart = steps, p_init, rescale, restart
        self.key = noise.key(seed, "square", restart)

    def begin(self, rows: Rows, logits: Tensor | None) -> None:
        x = rows["x"]
        _, c, _, w = x.shape
        up = noise.uniform(noise.key(self.key, "stripes"), rows["index"], (c, 1, w)) < 0.5
        stripes = torch.where(up, rows["high"], rows["low"])
        rows["z"] = rows["best"] = torch.empty_like(x).copy_(stripes)  # in the images' memory format
        rows["best_value"] = x.new_full((len(x),), -torch.inf)
        rows["square"] = torch.zeros(len(x), 3, dtype=torch.int64, device=x.device)
        rows["moved"] = torch.zeros_like(rows["y"], dtype=torch.bool)
        rows["stream"] = noise.bits(noise.key(self.key, "stream"), rows["index"], 1)[:, 0]

    def objective(self, logits: Tensor, rows: Rows) -> Tensor:
        return margin_loss(logits, rows["y"])

    def step(self, rows: Rows, logits: Tensor, value: Tensor, gradient: Tensor | None) -> None:
        broken = value.isnan()
        better = (value > rows["best_value"]) | broken | (rows["t"] == 0)
        shown = torch.where(broken, torch.nan, 1.0).to(rows["z"].dtype)  # a broken network, in the result
        z = rows["z"] * shown.view(-1, 1, 1, 1)
        rows["best"] = _either(better.view(-1, 1, 1, 1), z, rows["best"])
        rows["best_value"] = torch.where(better, value.to(rows["best_value"].dtype), rows["best_value"])
        rows["moved"] = better

    def propose(self, rows: Rows) -> None:
        where, up = self.square(rows)
        where = where & (rows["t"] > 0).view(-1, 1, 1, 1)  # the stripes come first
        rows["z"] = _either(where, _either(up, rows["high"], rows["low"]), rows["best"])
        rows["square"] = torch.where(rows["t"][:, None] > 0, rows["square"], max(where.shape[2:]))

    def found(self, rows: Rows) -> Tensor:
        return rows["best"]

    def square(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Where the square of forward "t" > 0 lies, (B,1,H,W) bool, and whether it goes up, (B,C,1,1) bool.

        "square" (B,3) is then its first row, its first column and its side.
        """
        _, c, h, w = rows["x"].shape
        number = rows["t"] - 1
        size = self.sizes(h, w, number.device)[self._halvings(number)]
        stream = rows["stream"] + number.to(torch.int32)
        draw = noise.uniform(noise.key(self.key, "square"), stream, (2 + c,))
        inside, corner = [], []
        for side, u in ((h, draw[:, 0]), (w, draw[:, 1])):
            first = (u * (side - size + 1)).long()[:, None]
            place = torch.arange(side, device=size.device)
            inside.append((place >= first) & (place < first + size[:, None]))
            corner.append(first)
        rows["square"] = torch.cat([*corner, size[:, None]], 1)
        return (inside[0][:, :, None] & inside[1][:, None, :])[:, None], (draw[:, 2:] < 0.5)[:, :, None, None]

    def sizes(self, h: int, w: int, device: torch.device | str | None = None) -> Tensor:
        """Pixels a side of a square after so many halvings of its area, (10,) int64."""
        sides = [round((self.p_init / 2**halved * h * w) ** 0.5) for halved in range(len(HALVINGS) + 1)]
        return _numbers(tuple(min(max(side, 1), h, w) for side in sides), torch.device(device or "cpu"))

    def _halvings(self, t: Tensor) -> Tensor:
        """How often the area was halved before square t, t = 0, 1, ...: (B,) int64."""
        query = t * 10000 // max(self.steps, 1) if self.rescale else t
        return torch.bucketize(query, _numbers(HALVINGS, t.device))


def _either(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """torch.where, of finite images, several times as fast on processors."""
    return torch.lerp(no, yes, condition.to(no.dtype))


@cache
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Made once: a copy from the processor is nothing that a CUDA graph can hold."""
    return torch.tensor(values, device=device)
