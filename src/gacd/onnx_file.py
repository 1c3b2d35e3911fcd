"""A network as an ONNX file: pixels in, logits out; compared with the network by onnxruntime before it is written."""

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gacd import checkpoint, noise, witness
from gacd import data as datasets
from gacd.checkpoint import Opened
from gacd.classifier import check_network, known
from gacd.errors import GacdError, InputError, UsageError
from gacd.losses import gap
from gacd.results import named
from gacd.runs import data_dir_of
from gacd.tables import clean

OPSET = 17
TOLERANCE = 1e-4  # of logits, relative to the image's largest
WRITTEN, BATCHES = 2, (1, 7)  # images that a file is written from, and that it is tried on
OTHER = "onnxruntime computes other logits than torch, nothing was written"
FIXED = "len(x) and int(...) in the network fix the batch that it is written with; x.shape[0] and x.flatten(1) do not"
MOST = 100  # natural images and witnesses that the two are compared on, each


def ship(
    opened: Opened, path: Path, *, data: str | None = None, data_dir: str | None = None, size: int | None = None
) -> str:
    """Writes a network as ONNX, once onnxruntime agrees with it.

    Args:
        opened: any network.
        path: the file.
        data: a data set: its images to compare on, its classes' names for the file; the run's if None and at hand.
        data_dir: where the data sets lie.
        size: pixels a side; the run's or the data's if None.

    Returns:
        What the two were compared on, in one line.

    Raises:
        GacdError: onnxruntime's logits are others than torch's; no file is written.
    """
    model = opened.model
    size = size or opened.record.get("size")
    images = _images(opened, data, data_dir, size)
    if images is not None:
        x = datasets.pixels(images.test.images[:MOST])
    elif size is not None:
        x = noise.uniform(0, torch.arange(MOST), (known(model, "channels") or 3, size, size))
    else:
        raise UsageError("how large are the images?", "--size", "the source does not say, and its data is not at hand")
    x_adv = _witnesses(opened, tuple(x.shape[1:]))
    classes = check_network(model, x)
    about = dict(architecture=named(model), weights_sha256=checkpoint.digest(model), num_classes=classes)
    about |= dict(channels=x.shape[1], input_size=x.shape[-1], pixel_range="[0, 1]", gacd_version=version("gacd"))
    names = opened.record.get("classes") or (images.classes if images else [])
    if images and images.classes != names:
        raise InputError(f"the network was made for other classes than {images.name}, or another order", opened.weights)
    if len(names) == classes:
        about |= dict(class_names=names)
    raw = graph(model, x, about)
    largest = compare(model, Session(raw), torch.cat([x, x_adv]))
    checkpoint.replace(path, raw)
    natural = f"{len(x)} {'made' if images is None else images.name} images and {len(x_adv)} witnesses"
    return f"onnxruntime agrees on {natural}, logits to {largest:.0e} of the largest"


def graph(model: nn.Module, x: Tensor, about: dict[str, Any]) -> bytes:
    """The file's bytes.

    Args:
        model: in eval mode, on the CPU.
        x: (B,C,H,W) images in [0,1], whose size the file will ask for, at any B.
        about: JSON values for its metadata.
    """
    onnx, _ = need()
    buffer: Any = io.BytesIO()
    with warnings.catch_warnings(), _silent():
        # torch's older exporter: the newer one needs onnxscript, takes 30 times as long and writes down local paths.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (x[:WRITTEN],),
                buffer,
                dynamo=False,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=OPSET,
            )
        except Exception as error:  # of any type: the network may be anyone's
            reason = f"{type(error).__name__}: {clean(str(error)):.150}"
            raise InputError("torch cannot write this network as ONNX", reason) from None
    proto = onnx.load_from_string(buffer.getvalue())
    for name, value in about.items():
        proto.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return proto.SerializeToString()


class Session:
    """An ONNX file in onnxruntime, on the CPU: images (B,C,H,W) in [0,1] -> logits (B,K).

    Args:
        file: its path, or its bytes.

    Attributes:
        about: its metadata, strings by name.
    """

    def __init__(self, file: Path | bytes):
        _, runtime = need()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
        if isinstance(file, Path) and not file.is_file():
            raise InputError("no such file", file)
        given, place = (file, "as exported") if isinstance(file, bytes) else (str(file), str(file))
        try:
            self.session = runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
            (pixels,), (logits,) = self.session.get_inputs(), self.session.get_outputs()
            self.about: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # whatever a hostile or broken file makes onnxruntime raise
            reason = f"{place}: {clean(str(error)):.150}"
            raise InputError("cannot be read as an ONNX file of one input and one output", reason) from None
        self.pixels, self.logits = pixels.name, logits.name

    def __call__(self, x: Tensor) -> Tensor:
        try:
            (logits,) = self.session.run([self.logits], {self.pixels: x.contiguous().numpy()})
            return torch.from_numpy(logits)
        except Exception as error:  # onnxruntime's own types, and what is no array of numbers
            reason = f"{tuple(x.shape)}: {clean(str(error)):.150}"
            raise InputError("the ONNX file does not take these images", reason) from None


def compare(model: nn.Module, session: Session, x: Tensor) -> float:
    """The largest difference of logits on images (n,C,H,W), relative to each image's largest, at two batch sizes.

    Raises:
        GacdError: it is above TOLERANCE, or a class differs.
    """
    with torch.no_grad():
        expected = torch.cat([model(part) for part in x.split(50)])
    worst = 0.0
    for batch in BATCHES:
        try:
            actual = torch.cat([session(part) for part in x.split(batch)])
        except InputError as error:
            raise GacdError(str(error), fix=_fixed(session, x, expected)) from None
        if actual.shape != expected.shape:
            shapes = f"batches of {batch}: {tuple(actual.shape)}, not {tuple(expected.shape)}"
            raise GacdError(OTHER, shapes, _fixed(session, x, expected))
        differ = int((actual.argmax(1) != expected.argmax(1)).sum())
        largest = float(gap(actual, expected).max())
        if differ or not largest <= TOLERANCE:  # NaN is a difference
            where = f"batches of {batch}: {differ} of {len(x)} classes differ, logits by {largest:.1e} of the largest"
            raise GacdError(OTHER, where)
        worst = max(worst, largest)
    return worst


def _fixed(session: Session, x: Tensor, expected: Tensor) -> str:
    """What to mend if the batch that the file was written with is the only one that it takes."""
    with suppress(InputError):
        return FIXED if session(x[:WRITTEN]).shape == expected[:WRITTEN].shape else ""
    return ""


def need() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX is not installed", error.name or "onnx", "pip install 'gacd[onnx]'") from None
    return onnx, onnxruntime


@contextmanager
def _silent() -> Iterator[None]:
    """No output: torch's own code prints the whole graph that it cannot write."""
    if sys.stdout is None:  # closed
        yield
        return
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _images(opened: Opened, data: str | None, data_dir: str | None, size: int | None) -> datasets.Dataset | None:
    """The data set asked for; else the run's, if it is at hand."""
    name = data or opened.record.get("data")
    if name is None:
        return None
    try:
        images = datasets.load(name, data_dir=data_dir or data_dir_of(opened, name), size=size)
    except InputError:
        if data:
            raise
        return None
    return images


def _witnesses(opened: Opened, shape: tuple[int, ...]) -> Tensor:
    """The first images (m,C,H,W) of the run's witness packs; those that cannot be read are none."""
    found = [torch.empty(0, *shape)]
    for path in sorted(opened.run.glob("witnesses-*.safetensors")) if opened.run else ():
        try:
            x_adv = witness.read(path).tensors["witnesses"]
        except GacdError:
            continue
        found += [x_adv] if x_adv.shape[1:] == shape else []
    return torch.cat(found)[:MOST]
