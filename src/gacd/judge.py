"""What a search found, judged by the network itself in float32, in chunks of one shape."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn

from gacd.attacks.pool import Fetch, Found, sweep
from gacd.attacks.search import Search
from gacd.classifier import device_of
from gacd.errors import NotFinite


def attacked(
    model: nn.Module,
    quick: nn.Module,
    search: Search,
    *,
    fetch: Fetch,
    which: Tensor,
    chunk: int,
    again: int,
    context: Callable[[], AbstractContextManager],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Attacks images and judges in float32 what was found: positions (b,), whether still right (b,), images (b,C,H,W).

    Where only the quick network in the search's precision saw an image beaten, or could not tell, the runs in doubt are
    made once more, on the network itself in float32, in chunks of `again`; all runs where what was found by autocast is
    not finite, as a network may be in bfloat16 alone.
    """
    only: dict[int, set[int]] | None = None
    for network, precision, rows in ((quick, context, chunk), (model, nullcontext, again)):
        with precision():
            coarse = torch.is_autocast_enabled(device_of(model).type)
        unsure: dict[int, set[int]] = {}
        for where, x_adv, doubts in _blocks(sweep(search, network, fetch, which, rows, precision, only), rows):
            x, y, _ = fetch(where)
            lost = ~x_adv.flatten(1).isfinite().all(1) & coarse
            x_adv = torch.where(lost.view(-1, 1, 1, 1), x, x_adv).contiguous(memory_format=torch.channels_last)
            right = logits_of(model, x_adv.__getitem__, len(where), rows).argmax(1) == y.cpu()
            if only is None:
                for image, runs, gone, still in zip(where.tolist(), doubts, lost.tolist(), right.tolist(), strict=True):
                    if still and (gone or runs):
                        unsure[image] = set(range(search.runs)) if gone else runs
            sure = torch.tensor([image not in unsure for image in where.tolist()])
            yield where[sure], right[sure], x_adv[sure.to(x_adv.device)]
        which, only = which[torch.tensor([image in unsure for image in which.tolist()], dtype=torch.bool)], unsure
        if not len(which):
            return


def _blocks(parts: Iterator[Found], rows: int) -> Iterator[Found]:
    """The same images in blocks of `rows`, the last of fewer; a sweep may give more at once, or none."""
    held: list[Found] = []
    for part in chain(parts, [None]):
        held += [part] if part else []
        while sum(len(doubts) for *_, doubts in held) >= (rows if part else 1):
            wheres, images, several = zip(*held, strict=True)
            where, x_adv, doubts = torch.cat(wheres), torch.cat(images), list(chain(*several))
            held = [(where[rows:], x_adv[rows:], doubts[rows:])]
            yield where[:rows], x_adv[:rows], doubts[:rows]


def chunks(x: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
    """Parts of one shape, the last one padded with its last row, and how many of their rows count."""
    for part in x.split(rows):
        yield torch.cat([part, part[-1:].expand(rows - len(part), *part.shape[1:])]), len(part)


def logits_of(
    model: nn.Module,
    images: Callable[[Tensor], Tensor],
    n: int,
    chunk: int,
    done: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """Logits (n,K) on the CPU of images given by position, in chunks of one shape, padded with the last image."""
    found = torch.empty(0)  # made whole at once: small parts would keep the large blocks between them from being reused
    for where in torch.arange(n).split(chunk):
        rows = torch.cat([where, where[-1:].expand(chunk - len(where))])
        logits = model(images(rows))
        if not bool(logits.isfinite().all()):
            raise NotFinite("the network's logits or gradients are not finite", type(model).__name__)
        if not len(found):
            found = torch.empty(n, logits.shape[1], dtype=torch.float32)
        found[where] = logits[: len(where)].float().cpu()
        done(len(where))
    return found
