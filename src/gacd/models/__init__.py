"""Networks: one string of a closed grammar names each of them."""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeGuard

import torch

from gacd.errors import InputError
from gacd.models.base import Classifier
from gacd.models.mobilenetv2 import mobilenetv2
from gacd.models.resnet import ResNet
from gacd.models.wideresnet import DMWideResNet, WideResNet

__all__ = ["MODELS", "Classifier", "Family", "build", "parse", "rebuildable"]


def build(
    name: str, num_classes: int = 10, mean: Sequence[float] = (0, 0, 0), std: Sequence[float] = (1, 1, 1)
) -> Classifier:
    """A freshly initialised network.

    Args:
        name: such as `wrn-34-10`, see `MODELS`.
        num_classes: from 1 to 100,000.
        mean: per channel, of pixels in [0,1]; its length is the number of channels.
        std: likewise.

    Raises:
        InputError: no such network, or numbers out of range.
    """
    if not 1 <= num_classes <= 100_000:
        raise InputError("the number of classes must be from 1 to 100000", num_classes)
    name = parse(name)
    family, match = _find(name)
    numbers = {k: int(v) if v.isdigit() else float(v) for k, v in match.groupdict().items() if v}
    return family.builder(name, num_classes, mean, std, **numbers)


def rebuildable(model: object) -> TypeGuard[Classifier]:
    """Whether `build(**model.config())` makes its like: not of a subclass, nor of one whose parts were changed."""
    try:
        with torch.device("meta"):
            other = build(**model.config())  # type: ignore[attr-defined]  # a Classifier's
    except (AttributeError, TypeError, ValueError):
        return False
    same = [(name, value.shape) for name, value in other.state_dict().items()]
    return type(other) is type(model) and same == [(name, value.shape) for name, value in model.state_dict().items()]


def parse(name: str) -> str:
    """The canonical form of a name (`ResNet8_x2.0` is `resnet8-x2`); a `ValueError` if the grammar has no such name."""
    text = _find(name)[1][0]
    return re.sub(r"(?<=-x)[0-9.]+$", lambda width: f"{float(width[0]):g}", text).removesuffix("-x1")


class Family(NamedTuple):
    """Networks that share a builder.

    Args:
        builder: called with (name, num_classes, mean, std) and the pattern's named numbers.
        pattern: a regular expression. It bounds every number, so that no name can ask for terabytes.
        grammar: the pattern, as a reader would write it.
    """

    builder: Callable[..., Classifier]
    pattern: str
    grammar: str


_FACTOR = r"(?:-x(?P<width>0\.[1-9][0-9]{0,2}|[1-7](?:\.[0-9]{1,3})?|8))?"
_DEPTH_WIDTH = rf"(?P<depth>{'|'.join(map(str, range(10, 125, 6)))})-(?P<width>[1-9]|1[0-9]|20)"

MODELS = {
    "resnet": Family(ResNet, r"resnet(?P<depth>8|18|20|32|56)" + _FACTOR, "resnet8|18|20|32|56[-xW]"),
    "wrn": Family(WideResNet, "wrn-" + _DEPTH_WIDTH, "wrn-DEPTH-WIDTH"),
    "dm-wrn": Family(DMWideResNet, "dm-wrn-" + _DEPTH_WIDTH, "dm-wrn-DEPTH-WIDTH"),
    "mobilenetv2": Family(mobilenetv2, "mobilenetv2" + _FACTOR, "mobilenetv2[-xW]"),
}

_KNOWN = (
    *("resnet8", "resnet8-x2", "resnet18", "resnet20", "resnet32", "resnet56", "wrn-16-2", "wrn-28-10", "wrn-34-10"),
    *("wrn-34-20", "wrn-40-2", "wrn-70-16", "dm-wrn-28-10", "dm-wrn-70-16", "mobilenetv2", "mobilenetv2-x0.5"),
)


def _find(name: str) -> tuple[Family, re.Match[str]]:
    text = name.strip().lower().replace("_", "-")
    for family in MODELS.values():
        if match := re.fullmatch(family.pattern, text):
            return family, match
    close = difflib.get_close_matches(text[:40], _KNOWN, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    grammar = ", ".join(family.grammar for family in MODELS.values())
    fix = f"{hint}Models: {grammar}; W 0.1 to 8, DEPTH 6n+4 from 10 to 124, WIDTH 1 to 20"
    raise InputError("unknown model", repr(name[:40]), fix)
