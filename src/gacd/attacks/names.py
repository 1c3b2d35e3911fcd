"""Attacks by name: "pgd20", "margin20x5" (five restarts), "apgd-t", "cascade"."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from gacd.attacks.apgd import APGD, TargetedAPGD
from gacd.attacks.fab import TargetedFAB
from gacd.attacks.official import Official
from gacd.attacks.search import FGSM, PGD, Search
from gacd.attacks.square import Square
from gacd.errors import InputError
from gacd.losses import cross_entropy, margin_loss

LOSSES = {"pgd": cross_entropy, "margin": margin_loss}
# Of norm, eps, seed, classes, restart and, if `STEPS` has the family, steps.
MAKERS: dict[str, Callable[..., Search]] = {
    "apgd-ce": APGD,
    "apgd-dlr": partial(APGD, loss="dlr"),
    "apgd-t": TargetedAPGD,
    "fab-t": TargetedFAB,
    "square": Square,
    "autoattack": Official,
}
# AutoAttack's four and their settings, by our own code.
CASCADE: dict[str, Callable[..., Search]] = {
    "apgd-ce": APGD,
    "apgd-t": TargetedAPGD,
    "fab-t": TargetedFAB,
    "square": partial(Square, rescale=False),
}
# Gradient steps or, of Square, queries, unless the name says how many.
STEPS = {"fgsm": 1, "pgd": 20, "margin": 20, "square": 5000}
STEPS |= dict.fromkeys(("apgd-ce", "apgd-dlr", "apgd-t", "fab-t"), 100)


class Named(NamedTuple):
    """An attack's name taken apart; steps is None where it is made of several attacks."""

    family: str
    steps: int | None
    restarts: int


def parse_attack(name: str) -> Named:
    """ "margin20x5" -> ("margin", 20, 5); a name without numbers stands for `STEPS` and one restart."""
    match = re.fullmatch(r"([a-z-]+?)(\d*)(?:x(\d+))?", name)
    family = match[1] if match else ""
    known = family in ("fgsm", "cascade", *LOSSES, *MAKERS)
    if not match or not known or any(part and not int(part) for part in match.groups()[1:]):
        raise InputError("unknown attack", name, f"such as {examples()}; the number is that of the steps")
    if family in ("fgsm", "cascade", "autoattack") and match[2]:
        raise InputError("the number of its steps is fixed", name, family)
    if family in ("fgsm", "cascade") and match[3]:
        raise InputError("it has no restarts", name, family)
    return Named(family, int(match[2]) if match[2] else STEPS.get(family), int(match[3] or 1))


def examples() -> str:
    """Names that an error can offer."""
    return ", ".join([*(f"{family}20" for family in LOSSES), "margin20x5", "fgsm", *MAKERS, "cascade"])


def written(name: str, *, norm: str, eps: float, step_size: float) -> dict[str, Any]:
    """An attack's threat as it is written down; only pgd and margin take the step."""
    family, steps, restarts = parse_attack(name)
    own: dict[str, Any] = dict(norm=norm, eps=eps)
    if family == "cascade":
        return own | dict(of=list(CASCADE))
    if family == "fgsm" or family in LOSSES:
        own |= dict(step_size=eps if family == "fgsm" else step_size)
    return own | (dict(steps=steps) if steps else {}) | (dict(restarts=restarts) if restarts > 1 else {})


def searches(name: str, *, norm: str, eps: float, step_size: float, seed: int, classes: int) -> list[Search]:
    """What a name stands for.

    Args:
        name: see `parse_attack`.
        norm, eps, step_size: of the threat; only pgd and margin take the step.
        seed: of whatever is random.
        classes: of the network.

    Returns:
        The searches, each for the images that the ones before left.
    """
    family, steps, restarts = parse_attack(name)
    if family == "fgsm":
        return [FGSM(norm=norm, eps=eps)]
    common = dict[str, Any](norm=norm, eps=eps, seed=seed)
    if family == "cascade":
        return [make(**common, classes=classes) for make in CASCADE.values()]
    if family in LOSSES:
        common |= dict(step_size=step_size, steps=steps, loss=LOSSES[family])
        return [PGD(**common, restart=restart) for restart in range(restarts)]
    common |= dict(steps=steps) if steps else {}
    return [MAKERS[family](**common, classes=classes, restart=restart) for restart in range(restarts)]
