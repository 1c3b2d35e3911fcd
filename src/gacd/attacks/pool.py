"""A search over many images in chunks of one shape that run full: what is done makes room for what waits.

A row holds one run of one image, so an image that is attacked towards nine classes stands in up to nine rows. Rows
that nothing waits for hold guesses: later forwards of a run that is there, right unless one before changed something.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from gacd.attacks.graph import Turn, captured
from gacd.attacks.local import Local, localised
from gacd.attacks.official import Official
from gacd.attacks.search import Rows, Search, advance, ask, begin, strengths
from gacd.losses import magnitude, margin_loss

# (positions (B,)) -> images (B,C,H,W), labels (B,), natural logits (B,K), on the device
Fetch = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
Found = tuple[Tensor, Tensor, list[set[int]]]  # what `sweep` yields
BEATEN = 1e-4  # by more than rounding, relative to the largest logit
SPARE = {"cuda": 1 / 16}  # of the rows may be free before they are filled: for a few it is not worth the launching
SPARE_IF_LOCAL = 3 / 4  # guesses fill nearly as well as runs, which cost less while all are at the same forward


def sweep(
    search: Search,
    model: Any,
    fetch: Fetch,
    which: Tensor,
    chunk: int,
    context: Callable[[], AbstractContextManager],
    only: dict[int, set[int]] | None = None,
) -> Iterator[Found]:
    """Attacks images, each until it is beaten or its runs are over.

    Args:
        search: the attack.
        model: images -> logits, in eval mode.
        fetch: gives images by their positions.
        which: (M,) positions of the images to attack.
        chunk: rows of every forward.
        context: of the forwards, such as autocast.
        only: the images' runs to make; all if absent.

    Yields:
        Positions (b,), the images found for them (b,C,H,W), and of each the runs that could still beat it where the
        image found does not: those that saw it beaten, or so near to it that autocast's precision could not tell, and
        those that were given up.
    """
    if not len(which):
        return
    if isinstance(search, Official):
        model = getattr(model, "_orig_mod", model)  # not compiled: its batches are of any size
        for where in which.split(chunk):
            x, y, _ = fetch(where)
            yield where, search.attack(model, x, y), [set() for _ in where]
        return
    local = localised(model, fetch(which[:1])[0], chunk) if search.guesses else None
    layout = torch.contiguous_format if local else torch.channels_last  # windows are cut from them
    if local:
        model, chunk = local, local.slots
    pool: Rows = {}
    unit = torch.full((chunk,), -1)  # image * runs + run of each row; -1: free
    t = torch.zeros_like(unit)  # as in the pool
    results = Results(search.runs, only)
    # A block's first runs before its second ones, which an image that the first beats needs no more.
    waiting = (
        image * search.runs + run
        for block in which.split(chunk)
        for run in range(search.runs)
        for image in block.tolist()
    )
    turns: dict[tuple[str, bool], Turn] = {}
    for number, need in cycle(enumerate(search.needs)):
        if number == 0:
            free = (unit < 0).nonzero()[:, 0]
            device = pool["z"].device.type if pool else ""
            few = int((SPARE_IF_LOCAL if local else SPARE.get(device, 0)) * chunk)
            if len(free) > few or len(free) == chunk:
                new = torch.tensor(list(islice(filter(results.wants, waiting), len(free))), dtype=torch.int64)
                if len(new):
                    rows = _rows(search, fetch, new)
                    if search.guesses:
                        rows["slot"] = _vacant(pool, unit)[: len(new)].to(rows["z"].device)
                    unit[free[: len(new)]] = new
                    t[free[: len(new)]] = 0
                    _put(pool, free[: len(new)], rows, chunk, layout)
            if not bool((unit >= 0).any()):
                return
            guessing = search.guesses and _guess(pool, unit, t, search.steps)
        with context():
            if (need, guessing) not in turns:
                turns[need, guessing] = captured(partial(_turn, search, model, need, guessing), pool)
            z, said = turns[need, guessing](pool)
        t, moved, beaten, near = said.cpu()
        moved, beaten, near = moved.bool(), beaten.bool(), near.bool()
        right = last = unit >= 0
        if search.guesses:
            right, last = _rightly_guessed(unit, t, moved | beaten)
        if local:
            local.keep((moved & last).nonzero()[:, 0])
        results.doubt(unit[near & right])
        unit[~last] = -1
        beaten, over = beaten & last, (t >= search.steps) & last
        ended = results.enter(unit[beaten], z[beaten], None)
        if over.any():
            ended += results.enter(unit[over], search.found(pool)[over], strengths(search, pool)[over])
        if beaten.any() or over.any():
            unit[torch.tensor([number >= 0 and not results.wants(number) for number in unit.tolist()])] = -1
        if ended:
            where, images, doubts = zip(*ended, strict=True)
            yield torch.tensor(where), torch.stack(images), list(doubts)


def _turn(search: Search, model: Any, need: str, guessing: bool, rows: Rows) -> tuple[Tensor, Tensor]:
    """A forward and a step of all rows, some of which may begin with what others hold: see `_guess`.

    Returns:
        What was asked about, (B,C,H,W), and (4,B) int64: each row's "t" after it, whether its step says "moved",
        whether it was beaten, and whether it was or nearly was.
    """
    if guessing:
        source, ahead = rows["guess"]
        rows |= {key: _taken(value, source) for key, value in rows.items() if key not in ("guess", "z")}
        rows["t"] = rows["t"] + ahead
    asked = (lambda z: model(z, rows["slot"], rows["square"])) if isinstance(model, Local) else model
    logits, value, gradient = ask(search, asked, rows, need)
    z, counts = rows["z"], search.candidates(rows)
    margin, largest = margin_loss(logits, rows["y"]), magnitude(logits)
    beaten, near = margin > BEATEN * largest, margin > _near(logits.device.type) * largest
    advance(search, rows, logits, value, gradient)
    moved = rows["moved"] if search.guesses else torch.zeros_like(beaten)
    return z, torch.stack([rows["t"], *(said.long() for said in (moved, beaten & counts, near & counts))])


def _taken(value: Tensor, source: Tensor) -> Tensor:
    """value[source], for images that are channels_last several times as fast."""
    if value.ndim < 4 or value.is_contiguous():
        return value.index_select(0, source)
    return value.permute(0, 2, 3, 1).index_select(0, source).permute(0, 3, 1, 2)


class Results:
    """What the runs of images found: that of an image's first run to beat it, if any does, else of its strongest.

    An image is through once its runs before the first to beat it are over: which one ends first makes no difference.

    Args:
        runs: of every image.
        only: the images' runs that are made; all if absent.
    """

    def __init__(self, runs: int, only: dict[int, set[int]] | None = None):
        self.runs, self.only = runs, only
        self.left: dict[int, set[int]] = {}  # image that is not through -> runs that are not over and still matter
        self.through = bytearray()  # by image: 1 if it is through, which may be many
        self.best: dict[int, tuple[tuple[bool, float, int], Tensor]] = {}
        self.doubts: dict[int, set[int]] = {}  # image -> runs that may beat it, by all that is known

    def wants(self, unit: int) -> bool:
        """Whether the run is still to be made, or made further; an image is known from the first such question on."""
        image, run = divmod(unit, self.runs)
        if self.is_through(image):
            return False
        if image not in self.left:
            self.left[image] = self.made(image)
        return run in self.left[image]

    def is_through(self, image: int) -> bool:
        """Whether nothing that is still to come can change the image's result."""
        return image < len(self.through) and bool(self.through[image])

    def made(self, image: int) -> set[int]:
        """The runs that the image is to be attacked by."""
        return set(range(self.runs) if self.only is None else self.only[image])

    def doubt(self, units: Tensor) -> None:
        """Notes the runs (b,) that may have beaten their images."""
        for image, run in (divmod(unit, self.runs) for unit in units.tolist()):
            self.doubts.setdefault(image, set()).add(run)

    def enter(self, units: Tensor, found: Tensor, strength: Tensor | None) -> list[tuple[int, Tensor, set[int]]]:
        """Notes the images (b,C,H,W) that runs (b,) ended with, of some strength (b,) or, if None, beating theirs.

        Returns:
            Of each image that is now through: its position, what was found, and the runs that may beat it if this does
            not.
        """
        through, values = [], None if strength is None else strength.tolist()
        for i, (image, run) in enumerate(divmod(unit, self.runs) for unit in units.tolist()):
            if self.is_through(image):  # another run has just beaten it
                continue
            left = self.left[image]
            left.discard(run)
            if values is None:
                self.doubts[image] |= {later for later in self.made(image) if later > run}
                left &= set(range(run))
                rank = (True, 0.0, -run)
            else:
                rank = (False, values[i], -run)
                if values[i] == math.inf:  # NaN, which a run that seems to beat the image must not hide
                    self.doubts.setdefault(image, set()).add(run)
            if image not in self.best or rank > self.best[image][0]:
                self.best[image] = rank, found[i]
            if not left:
                del self.left[image]
                self.through.extend(bytes(max(image + 1 - len(self.through), 0)))
                self.through[image] = 1
                through.append((image, self.best.pop(image)[1], self.doubts.pop(image, set())))
        return through


def _near(device: str) -> float:
    """The margin that autocast's precision could not tell from beaten, relative to the largest logit."""
    return -torch.finfo(torch.get_autocast_dtype(device)).eps if torch.is_autocast_enabled(device) else BEATEN


def _rows(search: Search, fetch: Fetch, units: Tensor) -> Rows:
    x, y, logits = fetch(units // search.runs)
    return begin(search, x, y, None, logits, (units % search.runs).to(y.device))


def _put(pool: Rows, slots: Tensor, rows: Rows, chunk: int, layout: torch.memory_format) -> None:
    """Rows into these places of the pool; the first ones fill it, places to spare with copies that nobody reads."""
    if not pool:
        fill = torch.zeros(chunk, dtype=torch.int64)
        fill[slots] = torch.arange(len(slots))
        for key, value in rows.items():
            value = value[fill.to(value.device)]
            pool[key] = value.contiguous(memory_format=layout) if value.ndim == 4 else value
        pool["guess"] = torch.zeros(2, chunk, dtype=torch.int64, device=pool["z"].device)
        return
    slots = slots.to(pool["z"].device)
    for key, value in rows.items():
        pool[key][slots] = value


def _vacant(pool: Rows, unit: Tensor) -> Tensor:
    """Numbers of the images kept by `Local` that belong to no run in the pool, ascending."""
    vacant = torch.ones(len(unit), dtype=torch.bool)
    if pool:
        vacant[pool["slot"].cpu()[unit >= 0]] = False
    return vacant.nonzero()[:, 0]


def _guess(pool: Rows, unit: Tensor, t: Tensor, steps: int) -> bool:
    """Gives free rows the next forwards of the runs that are there, as if no answer before them changed anything.

    In the pool, "guess" (2,B) then says in whose place each row goes on, and how many forwards later.

    Returns:
        Whether there is one.
    """
    free, there = (unit < 0).nonzero()[:, 0], (unit >= 0).nonzero()[:, 0]
    there = there[t[there].argsort(stable=True)]  # those behind catch up: runs at the same forward ask alike
    number = torch.arange(len(free))
    source, ahead = there[number % len(there)], 1 + number // len(there)
    some = t[source] + ahead < steps
    free, source, ahead = free[some], source[some], ahead[some]
    if not len(free):
        return False
    unit[free], t[free] = unit[source], t[source] + ahead
    guess = torch.stack([torch.arange(len(unit)), torch.zeros_like(unit)])
    guess[:, free] = torch.stack([source, ahead])
    pool["guess"].copy_(guess)
    return True


def _rightly_guessed(unit: Tensor, t: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows at forwards t (B,): which no earlier one of their runs changed, and the last of these, both (B,) bool."""
    place = unit.unique(return_inverse=True)[1]  # of each row's run
    first = torch.full_like(t, torch.iinfo(t.dtype).max).scatter_reduce(0, place[moved], t[moved], "amin")
    right = (unit >= 0) & (t <= first[place])
    last = torch.full_like(t, -1).scatter_reduce(0, place[right], t[right], "amax")
    return right, right & (t == last[place])
