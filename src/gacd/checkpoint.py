"""Weights from anywhere, by one string; files that survive a kill, a full disk and a flipped bit."""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gacd import models, ranks
from gacd.errors import GacdError, InputError, UsageError
from gacd.models.foreign import from_state
from gacd.typed import imported

SAVED = "torch.save(model.state_dict(), FILE) writes weights"
MARK = b"gacd-sha256:"  # and 64 hex digits, after the zip that torch.load reads
FORMAT = 1
FOREIGN = "was it cut short? a foreign file is read as ARCH:FILE, such as resnet18:{}"
OTHERS = {".py": "FILE:FACTORY is a network that a function in it makes", ".onnx": "gacd verify FILE PACK scores it"}


def load(source: str, *, mean: list[float] | None = None, std: list[float] | None = None) -> nn.Module:
    """A network in eval mode from one string.

    Args:
        source: a run directory ("runs/a": its probe, else best, else last weights), a file in its `checkpoints/`,
            a file of `gacd export`, "ARCH:FILE" for someone else's state_dict (.pt, .pth, .safetensors), or
            "./mine.py:factory" or "package.module:factory", which is imported and called.
        mean, std: override a foreign file's normalisation, one number a channel.

    Returns:
        A `Classifier` (whatever the factory returned, in the last case).

    Raises:
        InputError: nothing there, damaged, of another architecture, or not finite.
    """
    return open_source(source, mean=mean, std=std).model


@dataclass
class Opened:
    """A network and where it came from."""

    model: Any  # a Classifier, but for a factory's
    weights: str  # which of the run's weights, or the file, or the factory
    notes: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)  # what its run said of it: data, method, validation
    run: Path | None = None

    def __post_init__(self) -> None:
        if not self.has_classifier:
            self.notes.append("its features are trained, its classifier is not: gacd probe fits one")

    @property
    def has_classifier(self) -> bool:
        """Whether its head was trained, as far as is known: not yet in a run that trains features alone."""
        return self.record.get("head") != "untrained"


def open_source(source: str, *, mean: list[float] | None = None, std: list[float] | None = None) -> Opened:
    """As `load`, with the notes of how it was read."""
    path = Path(source)
    if (mean or std) and path.exists():
        raise UsageError(
            "a checkpoint of gacd knows its normalisation", f"--mean or --std with {source}", "leave it out"
        )
    architecture, colon, place = source.partition(":")
    if path.is_dir():
        return _open_run(path)
    if path.is_file():
        if fix := OTHERS.get(path.suffix):
            raise InputError("no source of weights", source, fix.replace("FILE", source))
        return _open_shipped(path) if path.suffix == ".safetensors" else _open_own(path)
    if is_factory(source):
        if mean or std:
            raise UsageError("a factory's network normalises itself", source, "leave out --mean and --std")
        return _open_factory(*source.rsplit(":", 1))
    if colon and (architecture.endswith(".py") or Path(f"{architecture}.py").is_file()):
        fix = f"a factory in a file is ./{architecture.removesuffix('.py')}.py:FACTORY"
        raise UsageError("no such architecture, nor a factory's name", source, fix)
    if colon:
        return _open_foreign(models.parse(architecture), Path(place).expanduser(), mean, std)
    raise InputError("no such run or file", source, "a run directory, ARCH:FILE or ./FILE.py:FACTORY")


def is_factory(source: str) -> bool:
    """Whether a source names code to import: for a person to type, never for a file to say."""
    return bool(re.fullmatch(r"(.*\.py|[A-Za-z_]\w*(\.\w+)+):[A-Za-z_]\w*", source)) and not Path(source).exists()


def weights_of(run: Path) -> Path:
    """The file a reader takes: the probe's, else the best on validation, the last, the one before; or InputError."""
    for name in ("probe", "best", "last", "previous"):
        if (run / "checkpoints" / f"{name}.pt").is_file():
            return run / "checkpoints" / f"{name}.pt"
    raise InputError("no checkpoint in run", run, "has it been trained?")


def write(path: Path, payload: dict[str, Any], *, previous: Path | None = None) -> None:
    """Saves atomically, with its SHA-256; `previous` keeps the file that stood there."""
    buffer = io.BytesIO()
    torch.save(payload | {"format": FORMAT}, buffer)
    data = buffer.getvalue()
    replace(path, data + MARK + hashlib.sha256(data).hexdigest().encode(), previous=previous)


def read(path: Path) -> dict[str, Any]:
    """A file of `write`, checked against its hash and read without running code."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError("cannot read checkpoint", f"{path}: {error.strerror}") from None
    data, mark, digest = raw[: -len(MARK) - 64], raw[-len(MARK) - 64 : -64], raw[-64:]
    if mark != MARK:
        raise InputError("not a gacd checkpoint", path, FOREIGN.format(path))
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise InputError("damaged checkpoint, its SHA-256 does not match", path)
    try:
        payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file makes the safe reader raise
        raise InputError("cannot be read safely as a checkpoint", f"{path}: {type(error).__name__}") from None
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise InputError("checkpoint of another version of gacd", path, f"not format {FORMAT}")
    return payload


def read_newest(*paths: Path) -> dict[str, Any] | None:
    """The first readable of several files; None where none exists. Damaged ones are named, and set aside for it."""
    damaged = []
    for path in (path for path in paths if path.exists()):
        try:
            payload = read(path)
        except InputError as error:
            print(f"gacd: warning: {error}", file=sys.stderr)
            damaged.append(path)
            continue
        if ranks.rank() == 0:
            for bad in damaged:  # or the next save would move it over the good one
                bad.replace(bad.with_suffix(".damaged"))
        return payload
    if damaged:
        raise InputError("no readable checkpoint", damaged[0].parent, "move the directory away to start afresh")
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write into one line."""
    try:
        yield
    except OSError as error:
        raise GacdError("cannot write", f"{path}: {error.strerror}", "what was saved before is still there") from None


def replace(path: Path, data: bytes, *, previous: Path | None = None) -> None:
    """Writes beside the target, syncs, renames: a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")  # one owner a run: a killed one's is written over
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except GacdError:
        temporary.unlink(missing_ok=True)
        raise


def ship(opened: Opened, path: Path, *, half: bool = False) -> None:
    """Writes a network as one safetensors file, which `load` rebuilds it from.

    Args:
        opened: of one of gacd's own architectures.
        path: the file.
        half: matrices and filters as float16, where they fit; the rest stays float32.
    """
    state = {name: tensor.contiguous() for name, tensor in opened.model.state_dict().items()}
    if half:
        halves = {name: t.half() for name, t in state.items() if t.is_floating_point() and t.ndim in (2, 4)}
        state |= {name: t for name, t in halves.items() if bool(t.isfinite().all())}
        opened.model.load_state_dict(state)  # what the digest is of
    about = dict(model=opened.model.config(), record=opened.record, sha256=digest(opened.model))
    replace(path, safetensors.torch.save(state, {"gacd": json.dumps(about)}))


def digest(model: nn.Module) -> str:
    """SHA-256 of a network's weights and buffers, by name: the same for equal weights whatever file held them."""
    h = hashlib.sha256()
    for name, tensor in sorted((dict(model.named_buffers()) | model.state_dict()).items()):  # buffers not saved, too
        if not isinstance(tensor, Tensor):  # some module's get_extra_state
            h.update(f"{name} {tensor!r}".encode())
            continue
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _open_run(run: Path) -> Opened:
    opened = _open_own(weights_of(run))
    opened.notes.append(f"{run}: {opened.weights} weights")
    return opened


def _open_own(path: Path) -> Opened:
    payload = read(path)
    model = _rebuilt(path, payload.get("model"), payload.get("weights"))
    run = path.parent.parent if path.parent.name == "checkpoints" else None
    record = payload.get("record")
    return Opened(model.eval(), path.stem, record=record if isinstance(record, dict) else {}, run=run)


def _rebuilt(path: Path, config: Any, weights: Any) -> models.Classifier:
    try:
        model = models.build(**config)
        model.load_state_dict(weights)
    except (AttributeError, TypeError, RuntimeError) as error:
        raise InputError("the checkpoint's weights do not fit its network", f"{path}: {str(error)[:200]}") from None
    for name, tensor in model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise InputError("weights are not finite", f"{path}: {name}")
    return model


def _open_shipped(path: Path) -> Opened:
    about = None
    # Suppressed is whatever a hostile or broken file makes the safe reader raise.
    with contextlib.suppress(Exception), safetensors.safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        about = json.loads(file.metadata()["gacd"])
    if not isinstance(about, dict):
        raise InputError("not a gacd checkpoint", path, FOREIGN.format(path))
    model = _rebuilt(path, about.get("model"), state)
    if digest(model) != about.get("sha256"):
        raise InputError("damaged file, its SHA-256 does not match", path)
    record = about.get("record")
    return Opened(model.eval(), path.name, record=record if isinstance(record, dict) else {})


def _open_foreign(architecture: str, path: Path, mean: list[float] | None, std: list[float] | None) -> Opened:
    if not path.is_file():
        raise InputError("no such file", path)
    with path.open("rb") as file:
        head = file.read(200)
    if not head:
        raise InputError("empty file", path)
    if head.startswith(b"version https://git-lfs"):
        raise InputError("a Git LFS pointer, not the weights", path, "git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise InputError("a web page, not weights", path, "download the file itself")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile or broken file makes the safe readers raise
        if "Weights only load failed" in str(error):
            raise InputError("cannot be read safely as weights", f"{path} holds more than tensors", SAVED) from None
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise InputError("cannot be read safely as weights", f"{path}: {reason}", SAVED) from None
    model, notes = from_state(architecture, state, mean=mean, std=std)
    return Opened(model.eval(), path.name, notes=notes)


def _open_factory(module: str, name: str) -> Opened:
    made = getattr(imported(module, "factory"), name, None)
    if not callable(made):
        raise InputError("no such factory", f"{module}:{name}")
    try:
        model = made()
    except Exception as error:  # whatever someone else's code raises
        reason = f"{type(error).__name__}: {error}"[:300]
        raise InputError("cannot call factory", f"{module}:{name}: {reason}") from None
    if not isinstance(model, nn.Module):
        raise InputError("the factory must return an nn.Module", f"{module}:{name}")
    if not all(isinstance(t, Tensor) and not (is_lazy(t) or t.is_meta) for t in model.state_dict().values()):
        raise InputError("the network's state must be tensors", f"{module}:{name}", "no quantized, lazy or meta ones")
    return Opened(model.eval(), f"{module}:{name}")
