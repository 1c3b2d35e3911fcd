"""Weights that others trained: a foreign state_dict, fitted to one of our networks or refused in one line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gacd.errors import InputError
from gacd.models import build
from gacd.models.base import Classifier

State = dict[str, Tensor]

_NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
# 0 and 1: the two parts of Sequential(normalisation, network)
_PREFIX = re.compile(r"((?:module|model|net|network|backbone|_orig_mod|0|1)\.)+")
_MOMENT = re.compile(r"(?:norm\w*\.)?(?:(mu|mean)|(sigma|std))")


def from_state(
    name: str, state: Mapping[str, Any], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[Classifier, list[str]]:
    """Builds a network around foreign weights.

    Nothing is allocated before every key and shape has been found to fit; the tensors given are copied.

    Args:
        name: of the architecture.
        state: from a safe loader: tensors by key, possibly nested under a key such as `state_dict`.
        mean: per channel, of pixels in [0,1]; goes before the file's own.
        std: likewise.

    Returns:
        The network, in eval mode, float32 and on the CPU, and short sentences that say what was done.
    """
    notes: list[str] = []
    tensors = _strip(_tensors(_unwrap(state, notes), notes), notes)
    moments: State = {key: tensors.pop(key) for key in ("mean", "std") if key in tensors}
    with torch.device("meta"):
        plan = build(name)
    first = next(key for key, value in plan.state_dict().items() if value.ndim == 4)
    num_classes = _length(tensors, f"{plan.head_name}.weight", 2, 0, plan.name)
    channels = _length(tensors, first, 4, 1, plan.name)
    if channels > 64:
        raise InputError(f"these are not the weights of {plan.name}", f"{first} has {channels} inputs", _ANOTHER)
    mean, std = _normalisation(moments, mean, std, channels, notes)
    with torch.device("meta"):
        model = build(name, num_classes, [0] * channels, [1] * channels)
    tensors |= {"mean": torch.tensor(mean).view(-1, 1, 1), "std": torch.tensor(std).view(-1, 1, 1)}
    model.load_state_dict(_fit(tensors, model, notes), assign=True)
    notes.append(f"{model.name}: {num_classes} classes, {channels} channel{'s' * (channels > 1)}")
    return model.eval(), notes


def _unwrap(state: Mapping[str, Any], notes: list[str]) -> Mapping[str, Any]:
    """The innermost mapping under the usual names of the weights."""
    if not isinstance(state, Mapping):
        raise InputError("not a state_dict", type(state).__name__, "save `model.state_dict()`")
    for _ in range(4):  # a pickle may contain itself
        nest = next((key for key in _NESTS if isinstance(state.get(key), Mapping)), None)
        if nest is None:
            break
        state = state[nest]
        notes.append(f"weights read from '{nest}'")
    return state


def _tensors(state: Mapping[str, Any], notes: list[str]) -> State:
    """The entries, all of them dense floating-point tensors; batch norm's counters may be integers."""
    if not state:
        raise InputError("the file holds no weights", fix="expected a state_dict")
    strange = [
        key
        for key, value in state.items()
        if not isinstance(key, str)
        or not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.is_meta
        or not (value.is_floating_point() or key.endswith("num_batches_tracked"))
    ]
    if strange:
        raise InputError("not dense floating-point tensors", _some(strange), "give the file of a plain state_dict")
    kinds = sorted({str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()} - {"float32"})
    if kinds:
        notes.append(f"{' and '.join(kinds)} converted to float32")
    return dict(state)


def _strip(state: State, notes: list[str]) -> State:
    """Our names for the entries: no prefixes, `mean` and `std`, no `sub_block1` (never used in a forward pass)."""
    out: State = {}
    prefixes, unused = set(), 0
    for key, value in state.items():
        match = _PREFIX.match(key)
        short = key[match.end() :] if match else key
        if match:
            prefixes.add(match[0])
        if short.startswith("sub_block1."):
            unused += 1
            continue
        if moment := _MOMENT.fullmatch(short):
            short = "mean" if moment[1] else "std"
        if short in out:
            raise InputError("two entries have the same name without their prefixes", key[:80], "keep one network")
        out[short] = value
    if prefixes:
        notes.append(f"prefix {', '.join(map(repr, sorted(prefixes)))} removed from the names")
    if unused:
        notes.append(f"{unused} unused entries of sub_block1 dropped")
    return out


def _length(state: State, key: str, ndim: int, axis: int, name: str) -> int:
    if key not in state:
        raise InputError(f"these are not the weights of {name}: {key} is missing", _found(state), _ANOTHER)
    if state[key].ndim != ndim:
        raise InputError(f"these are not the weights of {name}", f"{key} is {_shape(state[key])}", _ANOTHER)
    return state[key].shape[axis]


def _normalisation(
    moments: State, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int, notes: list[str]
) -> tuple[list[float], list[float]]:
    """mean and std as given, else the file's, else identity."""
    given = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    if len(known := {*moments, *given}) == 1:
        raise InputError("only one of mean and std is known", fix="give both")
    result = {}
    for key, identity in (("mean", 0.0), ("std", 1.0)):
        values = [identity] * channels
        if key in given:
            values = [float(v) for v in given[key]]
            notes.append(f"{key} as given, {_numbers(values)}{', overrides the file' * (key in moments)}")
        elif key in moments:
            values = _per_channel(moments[key], channels, key)
            notes.append(f"{key} from the file, {_numbers(values)}")
        if len(values) != channels:
            raise InputError(f"{key} needs one number per channel", f"{len(values)} for {channels} channels")
        if not all(abs(v) <= 4 for v in values) or (key == "std" and min(values) <= 0):
            raise InputError(f"{key} is not that of pixels in [0,1]", _numbers(values), "give mean and std")
        result[key] = values
    if not known:
        notes.append(f"no mean and std in the file: pixels go in as they are; {UNSAID}")
    return result["mean"], result["std"]


def _per_channel(value: Tensor, channels: int, key: str) -> list[float]:
    """Any shape that broadcasts over (B, C, H, W) along the channels only, or (C,)."""
    along = value.ndim <= 1 or (value.ndim <= 4 and value.shape[-2:] == (1, 1))
    if not along or value.numel() not in (1, channels):
        raise InputError(f"{key} does not fit {channels} channels", _shape(value), "give mean and std")
    return value.detach().reshape(-1).expand(channels).tolist()


def _fit(state: State, model: Classifier, notes: list[str]) -> State:
    """Float32 copies in the model's order, after all names, shapes and values have been checked."""
    wanted = model.state_dict()
    counters = {key for key in {*state, *wanted} if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state and key not in counters]
    extra = [key for key in state if key not in wanted and key not in counters]
    shapes = [
        f"{key} is {_shape(state[key])}, not {_shape(value)}"
        for key, value in wanted.items()
        if key in state and key not in counters and state[key].shape != value.shape
    ]
    problems = (("missing", missing), ("unexpected", extra), ("other shapes", shapes))
    if wrong := "; ".join(f"{what} {_some(keys)}" for what, keys in problems if keys):
        raise InputError(f"these are not the weights of {model.name}", wrong, _ANOTHER)
    # The counters matter to nobody: batch norm uses them only without a momentum.
    out = {key: torch.zeros((), dtype=torch.int64) for key in counters & set(wanted)}
    out |= {
        key: state[key].detach().to("cpu", torch.float32, copy=True).contiguous()
        for key in wanted
        if key not in counters
    }
    if bad := [key for key, value in out.items() if not value.isfinite().all()]:
        raise InputError("the weights are not finite", _some(bad), "the file is damaged or its training diverged")
    return out


UNSAID = "if a data loader or the forward normalised, as RobustBench's dm-wrn do, give --mean and --std"
_ANOTHER = "name the architecture that the file was saved from"


def _some(keys: Iterable[Any]) -> str:
    """Up to three of them, and how many more."""
    names = [str(key)[:80] for key in keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _found(state: State) -> str:
    return f"found {_some(state)}" if state else "nothing found"


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{v:.4g}" for v in values)
