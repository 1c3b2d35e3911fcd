"""A search over many images in chunks of one shape that run full: a row that is done makes room for the next image."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from gacd.attacks.official import Official
from gacd.attacks.search import Rows, Search, ask, begin
from gacd.losses import margin_loss

# (positions (B,)) -> images (B,C,H,W), labels (B,), natural logits (B,K), on the device
Fetch = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
BEATEN = 1e-4  # by more than rounding, relative to the largest logit


def sweep(
    search: Search,
    model: Any,
    fetch: Fetch,
    which: Tensor,
    chunk: int,
    context: Callable[[], AbstractContextManager],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Attacks images, each until it is beaten or its steps are over.

    Args:
        search: the attack.
        model: images -> logits, in eval mode.
        fetch: gives images by their positions.
        which: (M,) positions of the images to attack.
        chunk: rows of every forward.
        context: of the forwards, such as autocast.

    Yields:
        Positions (b,), the images found for them (b,C,H,W), and whether the search saw them beaten, or so near to it
        that autocast's precision could not tell, (b,) bool.
    """
    if isinstance(search, Official):
        for where in which.split(chunk):
            x, y, _ = fetch(where)
            yield where, search.attack(model, x, y), torch.zeros(len(where), dtype=torch.bool)
        return
    pool: Rows = {}
    where, unsure = torch.full((chunk,), -1), torch.zeros(chunk, dtype=torch.bool)
    ahead = 0
    for turn in cycle(range(len(search.needs))):
        free = (where < 0).nonzero()[:, 0]
        if turn == 0 and len(free) and ahead < len(which):
            new = which[ahead : ahead + len(free)]
            ahead += len(new)
            slots = free[: len(new)]
            where[slots], unsure[slots] = new, False
            _put(pool, slots, _rows(search, fetch, new), chunk)
        active = where >= 0
        if not active.any() and ahead >= len(which):
            return
        with context():
            logits, value, gradient = ask(search, model, pool)
            near = _near(logits.device.type)
        largest = logits.float().abs().amax(1)
        margin, counts = margin_loss(logits, pool["y"]), search.candidates(pool)
        beaten = ((margin > BEATEN * largest) & counts).cpu() & active
        unsure |= ((margin > near * largest) & counts).cpu()
        if beaten.any():  # before the step moves them
            yield where[beaten], pool["z"][beaten].clone(), torch.ones(int(beaten.sum()), dtype=torch.bool)
            where[beaten] = -1
        with torch.no_grad():
            search.step(pool, logits, value, gradient)
            pool["t"] = pool["t"] + 1
        over = (pool["t"] >= search.steps).cpu() & (where >= 0)
        if over.any():
            yield where[over], search.found(pool)[over], unsure[over]
            where[over] = -1


def _near(device: str) -> float:
    """The margin that autocast's precision could not tell from beaten, relative to the largest logit."""
    return -torch.finfo(torch.get_autocast_dtype(device)).eps if torch.is_autocast_enabled(device) else BEATEN


def _rows(search: Search, fetch: Fetch, which: Tensor) -> Rows:
    x, y, logits = fetch(which)
    return begin(search, x, y, None, lambda: logits)


def _put(pool: Rows, slots: Tensor, rows: Rows, chunk: int) -> None:
    """Rows into the pool's slots; the first ones fill it, slots to spare with copies that nobody reads."""
    if not pool:
        fill = torch.zeros(chunk, dtype=torch.int64)
        fill[slots] = torch.arange(len(slots))
        for key, value in rows.items():
            value = value[fill.to(value.device)]
            pool[key] = value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        return
    for key, value in rows.items():
        pool[key][slots.to(value.device)] = value
