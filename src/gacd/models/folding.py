"""A network made ready to be attacked: eval mode, batch norms folded into the convolutions before them.

In eval mode a batch norm after a convolution is a scale and a shift of its filters. An attack runs the network many
times with the same weights, so folding them once saves two passes over every feature map in each step. Folded ones of
small maps take many images side by side where that is faster.
"""

import copy
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gacd.attacks.loop import evaluating
from gacd.device import exactly
from gacd.errors import GacdError, InputError
from gacd.losses import gap
from gacd.models.side_by_side import lay_side_by_side

PLAIN = int | float | str | tuple  # of attributes: a scale, a stride, a mode
_twins: "WeakKeyDictionary[nn.Module, Twin]" = WeakKeyDictionary()


@contextmanager
def attackable(model: nn.Module, x: Tensor, *, anew: bool = False, compile: bool = False) -> Iterator[Any]:
    """Eval mode inside; yields a network equal to the model up to rounding and faster to attack.

    Args:
        model: any network; one with nothing to fold is yielded itself.
        x: (B,C,H,W) images; the first shows how convolutions and batch norms are connected, all whether that is so.
        anew: looks at that again, since its code may have been changed; its weights, plain attributes and modules are
            the present ones always.
        compile: by torch.compile, which has a step for each new shape of images; no gradient reaches the parameters.
    """
    with evaluating(model):
        ready = None if anew else _twins.get(model)
        if ready is None or ready.structure != _structure(model):
            ready = _twins[model] = _twin(model, x)
        quick = ready.refreshed(model)
        try:
            yield _compiled(quick) if compile else quick
        except Exception as error:
            if not compile or not _of_compiled_code(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise InputError("torch.compile fails on this network or machine", reason, "leave out --compile") from None


class Twin:
    """A copy of a network's structure that shares its tensors, but for the folded ones.

    Args:
        model: in eval mode.
        pairs: names (conv, batch norm) of what is folded; none: it is the network itself.
    """

    def __init__(self, model: nn.Module, pairs: list[tuple[str, str]]):
        self.pairs, self.structure = pairs, _structure(model)
        self.module = _copy(model) if pairs else nn.Identity()
        for _, norm in self.pairs:
            parent, _, name = norm.rpartition(".")
            setattr(self.module.get_submodule(parent), name, nn.Identity())

    def faithful(self, model: nn.Module, x: Tensor) -> bool:
        """Whether it computes what the model does: not where an activation before a batch norm is used elsewhere.

        Asked of a copy with other statistics: those of a new network make its batch norms identities, and every twin
        faithful. And of the model: a copy's hooks may still reach into the model, and what is left there stay the same.
        """
        if not self.pairs:
            return False
        other = _copy(model)
        with torch.no_grad(), exactly():
            for _, name in self.pairs:
                norm: Any = other.get_submodule(name)
                spread = torch.linspace(0.5, 1.5, len(norm.running_var), device=norm.running_var.device)
                side = 1 - 2 * (torch.arange(len(spread), device=spread.device) % 2)  # else ReLUs may leave only zeros
                norm.running_mean = norm.running_mean + side * spread * norm.running_var.sqrt()
                norm.running_var = norm.running_var * 2 * spread
            asked = ((other, x), (model, x[:2]), (model, 1 - x[:2]))
            return all(bool((gap(self.refreshed(network)(z), network(z)) <= 1e-3).all()) for network, z in asked)

    def refreshed(self, model: nn.Module) -> nn.Module:
        """The twin with the model's present weights and numbers; new tensors, lest a cast kept by autocast is stale."""
        if not self.pairs:
            return model
        folded = {conv for conv, _ in self.pairs}
        originals: dict[str, Any] = dict(model.named_modules())
        for name, module in self.module.named_modules():
            original = originals[name]
            vars(module).update({key: value for key, value in vars(original).items() if isinstance(value, PLAIN)})
            if name not in folded and not isinstance(module, nn.Identity):
                module._parameters = original._parameters
                module._buffers = original._buffers
        for conv, norm in self.pairs:
            weight, bias = _fold(originals[conv], originals[norm])
            self.module.get_submodule(conv)._parameters = dict(weight=weight, bias=bias)
            lay_side_by_side(self.module.get_submodule(conv))
        return self.module


def _structure(model: nn.Module) -> list[Any]:
    """What a twin was made for: modules, and which tensors they have."""
    return [(name, weakref.ref(m), *_tensors(m)) for name, m in model.named_modules()]


def _tensors(module: nn.Module) -> list[str]:
    """Names of its own parameters and buffers; a TorchScript module's dictionaries of them cannot be walked through."""
    found = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [name for name, _ in found]


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; TypeError for a network that shares modules with its copies, as frozen parts may be made to."""
    copied = copy.deepcopy(model)
    if not {*map(id, copied.modules())}.isdisjoint(map(id, model.modules())):
        raise TypeError("a part of the network does not let itself be copied")
    return copied


def _compiled(model: nn.Module) -> Any:
    """By torch.compile; where the network can be copied without its parameters' gradients, which it would compute."""
    with suppress(Exception):  # of any type: someone else's network may mind being copied
        model = _copy(model).requires_grad_(False)
    return torch.compile(model, dynamic=False)


def _of_compiled_code(error: Exception) -> bool:
    """Whether torch.compile raised it, or what that has made."""
    if isinstance(error, GacdError | torch.OutOfMemoryError):
        return False
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return any({"_dynamo", "_inductor", "_functorch"} & set(file.parts) for file in files)


def _twin(model: nn.Module, x: Tensor) -> Twin:
    """A faithful one with as much folded as can be, for images x (B,C,H,W)."""
    pairs = _convolutions_before_batch_norms(model, x[:1])
    if not _faithful(model, pairs, x):
        pairs = [pair for pair in pairs if _faithful(model, [pair], x)]
        if not _faithful(model, pairs, x):
            pairs = []
    return Twin(model, pairs)


def _faithful(model: nn.Module, pairs: list[tuple[str, str]], x: Tensor) -> bool:
    try:
        return Twin(model, pairs).faithful(model, x)
    except Exception:  # of any type: someone else's network may mind being copied, or look at its own weights
        return False


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    assert norm.running_mean is not None and norm.running_var is not None  # as the pairs were chosen
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    return nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)


def _convolutions_before_batch_norms(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Names (conv, batch norm) where the second takes just what the first gives, each used once."""
    made: list[tuple[Tensor, str]] = []
    taken: list[tuple[Tensor, str]] = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda m, args, out, name=name: made.append((out, name))))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: taken.append((args[0], name))))
    try:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    convs, norms = [name for _, name in made], [name for _, name in taken]
    return [
        (conv, norm)
        for out, conv in made
        for used, norm in taken
        if used is out and convs.count(conv) == norms.count(norm) == 1
    ]
