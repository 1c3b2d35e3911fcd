"""The command `evaluate`: accuracy on test images and under attack, and whether the number can be believed."""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from gacd import checkpoint, outcome, ranks, results, witness
from gacd import data as datasets
from gacd.attacks.loop import RADII, check_threat
from gacd.attacks.names import parse_attack
from gacd.audit import MOST, Audit, Finding, audit
from gacd.audits.fresh import Fresh
from gacd.classifier import lay_out, lay_out_weights
from gacd.data import Dataset, Split
from gacd.device import launch
from gacd.errors import InputError, NotFinite, Stopped, UsageError
from gacd.evaluation import STANDARD, Evaluation, interval, rows_on
from gacd.evaluation import evaluate as measure
from gacd.journal import KEPT, Beaten, Journal, code_of_all
from gacd.prepare import check_classes, check_ranges
from gacd.progress import Progress
from gacd.runs import data_dir_of, unfinished

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NOT_FINITE = Finding("finite", "invalid", "NaN or infinity, where no audit looked", "an attack cannot use them")


def evaluate(
    source: str,
    *,
    attacks: list[str] = list(STANDARD),  # noqa: B006  read by the command line, never changed
    data: str | None = None,
    eps: list[float] | None = None,
    step_size: float | None = None,
    norm: Literal["Linf", "L2"] = "Linf",
    n: int | None = None,
    chunk: int | None = None,
    seed: int = 0,
    audits: Literal["quick", "full"] = "quick",
    witnesses: int = 1000,
    teacher: str | None = None,
    data_dir: str | None = None,
    size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    out: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: int = 1,
    precision: Literal["auto", "32", "bf16"] = "auto",
    compile: bool = False,
) -> None:
    """Natural and robust accuracy on test images, audited; exits with 3 if SUSPECT and 4 if INVALID.

    Numbers are added to results.json. An evaluation that was stopped goes on where it was.

    Args:
        source: a run directory, a file in its checkpoints/, ARCH:FILE, or ./FILE.py:FACTORY.
        attacks: such as pgd20, margin20x5 (five restarts), fgsm, cascade, autoattack.
        data: the run's if absent.
        eps: radii in pixel units; several give a curve. 8/255 if absent, in L2 0.5.
        step_size: of pgd and margin, in pixel units; a quarter of eps if absent.
        norm: of the ball.
        n: only the first n test images.
        chunk: images per forward; 64 on a CPU and 500 on a GPU if absent.
        seed: of whatever is random.
        audits: quick, or full: several times the cost of the attacks.
        witnesses: images, from the first on, of which what beat them is kept for gacd verify; 0 for none.
        teacher: a network from which the full audits transfer attacks, a source.
        data_dir: where the data sets lie; the run's, $GACD_DATA or ./data if absent.
        size: pixels a side.
        mean: a foreign network's normalisation, a number per channel.
        std: likewise.
        out: directory for results.json; the run's own if absent.
        device: cpu, cuda, or the best there is.
        devices: processes on this machine, each with a part of the images; torchrun sets it by itself.
        precision: of the search for adversarial images; verdicts are float32. "auto" is bf16 where the device is fast
            at it, else 32.
        compile: fuse the searched network's kernels (torch.compile): CUDA only, for attacks that take minutes.
    """
    if (chunk is not None and chunk < 1) or (n is not None and n < 1):
        raise UsageError("n and chunk must be at least 1", f"n = {n}, chunk = {chunk}")
    check_ranges(dict(devices=devices, seed=seed))
    for radius in (eps := list(dict.fromkeys(eps or [RADII[norm]]))):
        check_threat(norm=norm, eps=radius, step_size=step_size or 0.0)
    attacks = list(dict.fromkeys(attacks))
    for name in attacks:
        parse_attack(name)
    if not 0 <= witnesses <= KEPT:
        raise UsageError(f"witnesses must be from 0 to {KEPT}", witnesses)
    if out and Path(out).exists() and not Path(out).is_dir():
        raise UsageError("--out is no directory", out)
    if teacher and audits != "full":
        raise UsageError("only full audits transfer attacks", f"--teacher {teacher}", "--audits full")
    another = Fresh(source, mean, std)
    opened = checkpoint.open_source(source, mean=mean, std=std)
    if not opened.has_classifier:
        raise InputError("there is no trained classifier to evaluate", source, f"gacd probe {opened.run or source}")
    data, side = datasets.resolve(data, size, opened.record)
    images = datasets.load(data, data_dir=data_dir or data_dir_of(opened, data), size=side)
    split = images.test.take(torch.arange(min(n or len(images.test), len(images.test))))
    guide = _teacher(teacher, images) if teacher else None
    if devices > len(split):
        raise UsageError("more processes than images", f"{devices} > {len(split)}", "a lower --devices")
    fabric, chosen = launch(device, devices, precision=precision)
    if fabric.world_size > len(split):
        raise UsageError("more processes than images", f"{fabric.world_size} > {len(split)}", "fewer of them")
    chunk = chunk or rows_on(fabric.device)
    if compile and fabric.device.type == "cpu":
        raise UsageError("torch.compile slows attacks on a CPU", "--compile true", "leave it out")
    model = opened.model.to(fabric.device)
    lay_out_weights(model)
    guide = guide.to(fabric.device) if guide else None
    first = fabric.global_rank == 0
    say = Console(quiet=not first)
    if side != size and data != opened.record.get("data"):
        say.print(f"{data}: {side} pixels a side, as {source} was made for (--size)", markup=False)
    for note in [*opened.notes, *unfinished(opened.run), *(n for n in images.notes if n.startswith("test:"))]:
        say.print(note, markup=False)
    if first and opened.record.get("classes") not in (None, images.classes):
        says = f"was made for other classes than {images.name}, or another order"
        print(f"gacd: warning: {source} {says}", file=sys.stderr)
    where = Path(out) if out else opened.run
    if where is None:
        say.print("nothing is kept of this evaluation without --out: no results.json, and a stopped one starts anew")
    searched = dict(bf16="bfloat16").get(chosen, "float32")
    say.print(f"adversarial images are searched for in {searched}, judged in float32")
    # origin and code: of every entry of results.json; known: of the journal's key besides; told: of a witness pack.
    digest = checkpoint.digest(model)
    origin: dict[str, Any] = dict(weights=opened.weights, sha256=results.identity(digest, source))
    origin |= dict(data=images.name, n=len(split), data_sha256=results.fingerprint(split))
    origin |= dict(split_n=len(images.test), seed=seed, chunk=chunk, search=chosen + ", compiled" * compile)
    code = results.provenance(fabric.device)
    keep = max(witnesses, MOST)
    known = dict(attacks=attacks, device=fabric.device.type, versions=code["versions"], keep=keep)
    known |= dict(code=fabric.broadcast(code_of_all()))
    with ranks.together():
        untouched = _untouched(model, split, chunk) if first else []
    told = dict[str, Any](source=source, weights=opened.weights, weights_sha256=digest)
    told |= dict(data=images.name, data_sha256=origin["data_sha256"], evaluated=len(split))
    told |= dict(architecture=results.named(model), device=fabric.device.type)
    rows: list[dict[str, Any]] = []
    found: list[Audit] = []
    packs: list[Path] = []
    made: list[Journal] = []
    seconds: dict[str, float] = {}
    with (
        stoppable(where),
        Progress(len(split) * (len(attacks) + 1) * len(eps), quiet=not first) as progress,
        scratch(where, fabric) as folder,
        another if first else nullcontext() as fresh,
        ExitStack() as journals,  # a radius's is kept until all are through
    ):

        def running(name: str, robust: int, judged: int) -> None:
            low, high = interval(robust, judged)
            progress.console.print(f"{name}: {robust / judged:.1%} ({low:.1%}-{high:.1%}) of {judged} images so far")

        for radius in eps:
            threat: dict[str, Any] = dict(norm=norm, eps=radius, step_size=step_size, chunk=chunk, seed=seed)
            journal = journals.enter_context(Journal(folder, origin | threat | known, keep=keep))
            made.append(journal)
            result = _together(
                model,
                split,
                attacks,
                **threat,
                compile=compile,
                search=fabric.autocast,
                done=progress.advance,
                running=running,
                journal=journal,
                shard=(fabric.global_rank, fabric.world_size),
            )
            with ranks.together():
                if not first:
                    continue
                beaten = journal.witnesses()
                shown = dict(threat, fresh=fresh, teacher=guide, full=audits == "full")
                audited = _audited(model, split, result, beaten, **shown)
                audited.findings[: len(untouched)] = untouched  # seen before any attack
                found.append(audited)
                if result and audited.exit_code < 4:
                    new = _entered(where, result, origin | code, audited, audits, model)
                    rows += new[1:] if rows else new  # the natural images are the same at every radius
                    seconds = result.seconds if len(eps) == 1 else {}
                    if where and witnesses:
                        kept = split.take(torch.arange(min(witnesses, len(split))))
                        packs.append(where / witness.file_name(norm, radius, journal.name))
                        told |= dict(norm=norm, eps=radius, verdict=audited.verdict)
                        witness.write(packs[-1], kept, result, beaten, **told)
        for journal in made:
            journal.settled = not any(audited.unfinished for audited in found)
    if not first:
        return
    if result and result.classes > images.num_classes:
        says = f"{result.classes} outputs for {images.num_classes} classes: output i must be class i of"
        print(f"gacd: warning: {says} {', '.join(images.classes[:5])}, ...", file=sys.stderr)
    invalid = [audited for audited in found if audited.exit_code == 4 and not audited.unfinished]
    if where and invalid:
        same = dict(sha256=str(origin["sha256"]), data=images.name)
        if count := results.revoke(where, invalid[0], same):
            say.print(f"SUSPECT now: {count} entries of {where / 'results.json'}", markup=False)
    outcome.show(rows, seconds, say)
    if rows and where:
        say.print(f"written to {where / 'results.json'}", markup=False)
        for pack in packs:
            say.print(f"what beat it is in {pack.name}: gacd verify re-scores it", markup=False)
    outcome.conclude(found, eps, say, audits)


def _teacher(source: str, images: Dataset) -> nn.Module:
    """The network from which attacks are transferred, if it is one for such images."""
    model = checkpoint.load(source)
    x = datasets.pixels(images.test.images[:2])
    lay_out(model, x)
    check_classes(model, x, source, images)
    return model


def _untouched(model: nn.Module, split: Split, chunk: int) -> list[Finding]:
    """The first audit's finding if it is against a network that no attack has run yet: some effects come only once."""
    x = datasets.pixels(split.images[: min(chunk, MOST)])
    return audit(model, x, split.labels[: len(x)], chunk=chunk, only=["mode and side effects"]).troubles


def _audited(model: nn.Module, split: Split, result: Evaluation | None, beaten: Beaten, **options: Any) -> Audit:
    """The audits of one radius; `result` is None of a network that is not finite somewhere."""
    x, x_adv = _tried(split, beaten)
    known = dict[str, Any](correct=result.correct, x_adv=x_adv) if result else {}
    found = audit(model, x, split.labels[:MOST], **known, **options)
    if not result and found.exit_code < 4:
        found.findings.append(NOT_FINITE)
    return found


def _entered(
    where: Path | None, result: Evaluation, about: dict[str, Any], found: Audit, audits: str, model: nn.Module
) -> list[dict[str, Any]]:
    """One radius's entries as results.json holds them now; what stands there may leave doubts, added to `found`."""
    rows = results.entries(result, about, found, audits)
    if not where:
        return rows
    if audits == "quick" and (doubts := results.earlier_doubts(where, rows)):
        found.findings += [Finding(results.EARLIER, "suspect", doubt) for doubt in doubts]
        rows = results.entries(result, about, found, "full")
    rows = results.add(where, rows, model)
    outcome.compare(rows, found)
    return rows


@contextmanager
def stoppable(where: Path | None) -> Iterator[None]:
    """Says of an interrupted evaluation that it goes on, where its verdicts are kept."""
    try:
        yield
    except KeyboardInterrupt:
        if not where or not list(where.glob(".evaluation-*/*.pt")):
            raise
        raise Stopped(signal.SIGINT, where) from None


@contextmanager
def scratch(where: Path | None, fabric: "Fabric") -> Iterator[Path]:
    """The directory itself, or a temporary one, the same for all processes."""
    if where:
        yield where
    else:
        with tempfile.TemporaryDirectory(prefix="gacd-") as folder:
            yield Path(fabric.broadcast(folder))


def _together(*args: Any, **options: Any) -> Evaluation | None:
    """All processes' shards; None if the network is not finite somewhere: the audits say what it is."""
    result = Evaluation()
    with ranks.together(), suppress(NotFinite):
        result = measure(*args, **options)
    if bool(ranks.either(torch.tensor([not result.correct]))):
        return None
    return result.union()


def _tried(split: Split, beaten: Beaten) -> tuple[Tensor, Tensor]:
    """The first images (m,C,H,W) in [0,1], and the same with those that were beaten replaced by what beat them."""
    x = datasets.pixels(split.images[:MOST])
    x_adv = x.clone()
    positions, images, _ = beaten
    near = positions < len(x)
    if near.any():
        x_adv[positions[near]] = images[near]
    return x, x_adv
