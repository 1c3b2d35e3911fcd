"""Attacks for code of one's own: functions (model, x, y, *, norm, eps, step_size, steps, seed, index) -> x_adv."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gacd.attacks.loop import Objective, check_pixels, check_threat, evaluating, in_pixels, maximize
from gacd.attacks.search import FGSM, PGD, Search, run
from gacd.losses import cross_entropy, margin_loss

__all__ = [
    "ATTACKS",
    "Objective",
    "Search",
    "check_threat",
    "evaluating",
    "fgsm",
    "margin",
    "maximize",
    "pgd",
]


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | str = 8 / 255,
    step_size: float | str = 2 / 255,
    steps: int = 20,
    seed: int = 0,
    index: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """PGD (Madry et al., 2018): cross-entropy, one random start, the last iterate.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,K); its mode is left as it was, eval inside.
        x: (B,C,H,W) images.
        y: (B,) labels.
        norm, eps, step_size, steps: see `maximize`.
        seed: of the random start.
        index: (B,) the images' numbers, on which alone their starts depend; made from the pixels if absent.
        loss: (logits (B,K), y (B,)) -> (B,).

    Returns:
        (B,C,H,W) inside the ball and [0,1].

    Raises:
        InputError: pixels outside [0,1], or a radius, step or norm that makes no sense.
    """
    threat = dict[str, Any](norm=norm, eps=in_pixels(eps), step_size=in_pixels(step_size), steps=steps)
    search = PGD(**threat, seed=seed, loss=loss)
    return _attacked(search, model, x, y, index)


def margin(model: nn.Module, x: Tensor, y: Tensor, **options) -> Tensor:
    """PGD with the margin (Carlini-Wagner) loss, which no scale of the logits can saturate; options as for `pgd`."""
    return pgd(model, x, y, loss=margin_loss, **options)


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | str = 8 / 255,
    step_size: float | None = None,
    steps: int = 1,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """One step of eps from the image itself (Goodfellow et al., 2015); shapes as for `pgd`; nothing else counts."""
    return _attacked(FGSM(norm=norm, eps=in_pixels(eps)), model, x, y, index)


def _attacked(search: Search, model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None) -> Tensor:
    check_pixels(x)
    with evaluating(model):
        return run(search, model, x, y, index)


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd, "margin": margin}
