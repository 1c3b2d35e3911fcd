"""Anyone's network, asked before it is measured: is it a classifier of such images, and how does it want them?"""

import copy
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from gacd.attacks.loop import evaluating
from gacd.errors import InputError
from gacd.models import Classifier


def check_network(model: nn.Module, x: Tensor, name: str = "the network") -> int:
    """How many classes a network tells apart; InputError if it is no classifier of images such as x (B,C,H,W)."""
    asked = _copy(model)
    logits = [_asked(asked, part, name) for part in (x[:2], x[:1])]  # of two or of one
    return logits[0].shape[1]


def check_features(model: Any, x: Tensor, name: str) -> None:
    """Raises InputError for a network whose `features` does not give (B, feature_dim) for images x (B,C,H,W).

    They come laid out as channels_last. Where the network has no `feature_dim`, any (B,D) will do.
    """
    try:
        with evaluating(model), torch.no_grad():
            shape = tuple(model.features(x.clone(memory_format=torch.channels_last)).shape)
    except Exception as error:  # of any type: the network may be anyone's
        fix = "they come laid out as channels_last: reshape takes them where view does not"
        raise InputError(f"{name}'s features(x) does not take these images", _said(error), fix) from None
    expected = len(x), getattr(model, "feature_dim", shape[-1])
    if shape != expected:
        raise InputError(f"{name}'s features(x) has the shape {shape}, not {expected}", "features", "pool and flatten")


def lay_out(model: nn.Module, x: Tensor) -> AbstractContextManager[Any]:
    """Lets a network take images such as x (B,C,H,W) laid out as channels_last, in which convolutions are fast.

    Most do as they are. One that reads memory in order, as `x.view(len(x), -1)` does, gets contiguous images from now
    on, or until the context that is returned ends.
    """
    asked, x = _copy(model), x[:2]
    # Clones, since grey images are contiguous either way, and convolutions follow their strides.
    fast, in_order = (x.clone(memory_format=layout) for layout in (torch.channels_last, torch.contiguous_format))
    if _takes(asked, fast) or not _takes(asked, in_order):
        return nullcontext()
    return model.register_forward_pre_hook(
        lambda module, args: (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
    )


def lay_out_weights(model: nn.Module | None) -> None:
    """Filters as channels_last, of gacd's own networks: others may read their weights' memory in order."""
    if isinstance(model, Classifier):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def known(model: nn.Module, what: str) -> int | None:
    """`num_classes` or `channels` of a network of gacd's grammar; others may mean anything by such a name."""
    return getattr(model, what) if isinstance(model, Classifier) else None


def device_of(model: nn.Module) -> torch.device:
    """Where its weights or, if it has none, its buffers are; the CPU, if it has neither."""
    return next((t.device for t in model.state_dict().values()), torch.device("cpu"))


def _copy(model: nn.Module) -> nn.Module:
    """One that may be asked: the network itself might keep what it was asked, or change."""
    with suppress(Exception):  # of any type: it may mind being copied
        return copy.deepcopy(model)
    return model


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _takes(model: nn.Module, x: Tensor) -> bool:
    with suppress(InputError):
        _asked(model, x, "")
        return True
    return False


def _asked(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """Logits (B,K), asked for as attacks do: with a gradient."""
    x = x.detach().clone().requires_grad_()
    if (channels := known(model, "channels")) not in (None, x.shape[1]):
        raise InputError(f"{name} takes {channels} channels", f"the images have {x.shape[1]}")
    try:
        with evaluating(model), torch.enable_grad():
            logits = model(x)
    except Exception as error:  # of any type: the network may be anyone's
        raise InputError(f"{name} does not take these images", f"{tuple(x.shape)}: {_said(error)}") from None
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or not logits.is_floating_point():
        given = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        fix = "one that returns more can be wrapped: return out[0], or out.logits"
        raise InputError(f"{name} must return logits (B,K), floats", given, fix)
    return logits
