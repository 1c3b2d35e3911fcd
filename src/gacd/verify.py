"""The command `verify`: re-scores an evaluation's witness pack by the network itself, or by its ONNX file."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gacd import checkpoint, onnx_file
from gacd import data as datasets
from gacd.device import launch
from gacd.errors import InputError, UsageError
from gacd.judge import chunks
from gacd.losses import magnitude, margin_loss
from gacd.results import fingerprint
from gacd.tables import clean
from gacd.witness import Pack, invalid, read

# Of logits between runtimes, relative to the largest; CUDA has other algorithms for other shapes.
ROUNDING = {"cpu": 1e-4, "cuda": 1e-3}


def verify(
    source: str,
    packs: list[str],
    *,
    data: str | None = None,
    data_dir: str | None = None,
    other_weights: bool = False,
    chunk: int = 1,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Checks witness packs of gacd evaluate and has a network judge their images again; exits with 4 if one is INVALID.

    Args:
        source: the network: a run directory, a file in its checkpoints/, ARCH:FILE, ./FILE.py:FACTORY, FILE.onnx.
        packs: files witnesses-*.safetensors beside a results.json.
        data: a data set to compare the images with; a pack's if absent and at hand.
        data_dir: where the data sets lie; $GACD_DATA or ./data if absent.
        other_weights: the images alone count, whatever weights they were found for: a float16 copy, another network.
        chunk: images per forward.
        mean: a foreign network's normalisation, a number per channel.
        std: likewise.
        device: cpu, cuda, or the best there is; an ONNX file runs on the CPU.
    """
    if not 1 <= chunk <= 10_000:
        raise UsageError("chunk must be from 1 to 10000", chunk)
    held = {path: read(path) for path in map(Path, packs)}
    network, digest, place = _network(source, mean, std, device)
    for path, found in held.items():
        table = Table("looked at", "found", title=Text(clean(path.name)), title_justify="left")
        worst, n = found.counts["worst"], found.about["n"]

        def say(*words: str, table: Table = table) -> None:
            table.add_row(*map(Text, words))  # no markup

        try:
            say("content", f"{n} images, {len(found.tensors['beaten'])} witnesses, SHA-256 matches")
            say("ball and box", f"{_threat(found)}; the farthest witness is at {found.farthest:.4g}")
            say("data", _compare(found, data, data_dir))
            say("weights", _same(found, digest, other_weights, by_itself=source.endswith(".onnx")))
            say("audits", f"{found.about['verdict']}, by the pack's own word")
            rounding = max(ROUNDING[place], ROUNDING[found.about["device"]])
            rows, unproven = score(found, network, chunk=chunk, rounding=rounding)
            for row in rows:
                say(*row)
        finally:
            Console().print(table)
        worst += unproven
        print(f"VERIFIED: at most {worst} of {n} images ({worst / n:.2%}) withstand {_threat(found)}")


def score(
    pack: Pack, network: Callable[[Tensor], Tensor], *, chunk: int = 1, rounding: float = 1e-4
) -> tuple[list[tuple[str, str]], int]:
    """Judges a pack's images again.

    Args:
        pack: of `read`.
        network: images (b,C,H,W) in [0,1] -> logits (b,K), both on the CPU.
        chunk: images per forward, the last one padded.
        rounding: relative to the largest logit, a margin that another runtime may turn round.

    Returns:
        What was found, line by line, and how many images called wrong or beaten are right here, by rounding.

    Raises:
        Invalid: a verdict that is not the pack's by more than rounding, or more than a few by it.
    """
    right, labels, beaten = pack.tensors["right"].bool(), pack.tensors["labels"], pack.tensors["beaten"]
    n, m = len(labels), len(beaten)
    x, y = torch.cat([pack.x, pack.tensors["witnesses"]]), torch.cat([labels, labels[beaten]])
    said = torch.cat([right[0], torch.zeros(m, dtype=torch.bool)])
    parts = []
    for part, kept in chunks(x, min(chunk, n + m)):
        given = network(part)
        if not isinstance(given, Tensor):
            raise InputError("the network must return logits", type(given).__name__, "a tensor (B,K)")
        if given.shape != (len(part), pack.about["classes"]):
            raise invalid(f"the network does not know {pack.about['classes']} classes", f"logits {tuple(given.shape)}")
        parts.append(given[:kept].float())
    logits = torch.cat(parts)
    if not bool(logits.isfinite().all()):
        raise invalid("the network's logits are not finite")
    close = margin_loss(logits, y).abs() <= rounding * magnitude(logits)
    differ = (logits.argmax(1) == y) != said
    wrong = differ & ~close
    if wrong[:n].any():
        first = int(pack.tensors["positions"][wrong.nonzero()[0, 0]])
        raise invalid(
            f"{int(wrong[:n].sum())} of {n} natural images are judged otherwise", f"such as test image {first}"
        )
    if wrong.any():
        name = pack.named(wrong[n:])
        raise invalid(f"{int(wrong.sum())} of {m} witnesses do not fool the network", f"such as that {name}")
    if int(differ.sum()) > max(3, n // 100):  # as for a network that gives all classes one logit
        raise invalid("the network is undecided", f"{int(differ.sum())} of {n + m} verdicts differ by rounding")
    rows = [("natural", f"{int(right[0].sum())} of {n} right ({right[0].double().mean():.2%})")]
    for row, name in enumerate(pack.about["attacks"], 1):
        count, own = int(right[row].sum()), int((pack.tensors["found_by"] == row).sum())
        rows.append((name, f"{count} of {n} right ({count / n:.2%}), by its own word; {own} of the witnesses"))
    rows.append(("witnesses", f"{m - int(differ[n:].sum())} of {m} fool the network"))
    near = f"{int(close.sum())} of {n + m} verdicts rest on less than {rounding:g} of the largest logit"
    rows.append(("within rounding", f"{near}, {int(differ.sum())} differ"))
    return rows, int((differ & ~said).sum())


def _network(
    source: str, mean: list[float] | None, std: list[float] | None, device: str
) -> tuple[Callable[[Tensor], Tensor], str | None, str]:
    """A function on the CPU's images, the SHA-256 of its weights if known, and the kind of device it runs on."""
    if source.endswith(".onnx"):
        if mean or std:
            raise UsageError("an ONNX file normalises itself", source, "leave out --mean and --std")
        session = onnx_file.Session(Path(source))
        digest = session.about.get("weights_sha256")
        return session, digest and clean(digest), "cpu"
    opened = checkpoint.open_source(source, mean=mean, std=std)
    fabric, _ = launch(device, precision="32")
    model = opened.model.eval().to(fabric.device)
    return lambda x: _asked(model, x.to(fabric.device)), checkpoint.digest(model), fabric.device.type


def _asked(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            given = model(x)
            return given.cpu() if isinstance(given, Tensor) else given
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any type: the network may be anyone's
        raise InputError("the network does not take the pack's images", f"{tuple(x.shape)}: {error!s:.150}") from None


def _threat(pack: Pack) -> str:
    return f"{pack.about['norm']} {pack.about['eps']}"


def _same(pack: Pack, digest: str | None, other: bool, by_itself: bool) -> str:
    said = pack.about["weights_sha256"]
    if digest == said:
        return f"{pack.about['architecture']}, the SHA-256 is the pack's" + ", by the file's own word" * by_itself
    if digest is None:
        return "the file does not say whose they are: the images alone count"
    if not other:
        raise invalid(
            "these are not the weights it was made with; --other-weights true lets the images alone count",
            f"SHA-256 {digest[:12]}, not {said[:12]}",
        )
    return f"others than the pack's (SHA-256 {digest[:12]}, not {said[:12]}): the images alone count"


def _compare(pack: Pack, data: str | None, data_dir: str | None) -> str:
    """Looks whether the images are those of the data set, where it is at hand; a path in the pack is not opened."""
    name = data or pack.about["data"]
    if not data and name not in datasets.DATASETS:
        return f"{clean(name)[:60]} was not looked for: --data compares the images with it"
    images, positions = pack.tensors["images"], pack.tensors["positions"]
    try:
        test = datasets.load(name, data_dir=data_dir, size=images.shape[-1]).test
    except InputError:
        if data:
            raise
        return f"{name} is not at hand: the images are not compared"
    evaluated = test.take(torch.arange(min(pack.about["evaluated"], len(test))))
    if len(evaluated) < pack.about["evaluated"] or fingerprint(evaluated) != pack.about["data_sha256"]:
        raise invalid("the images evaluated are not those of the data set, by their SHA-256", name)
    there = evaluated.take(positions)
    if not torch.equal(there.images, images) or not torch.equal(there.labels, pack.tensors["labels"]):
        raise invalid("images or labels are not those of the data set", name)
    return f"images, labels and the SHA-256 of all {len(evaluated)} that were evaluated are those of {name}"
