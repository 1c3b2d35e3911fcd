"""What students took over from their teacher: the numbers of the paper's Figures 3 to 5, and more than those."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from gacd import checkpoint, noise, results, similarity, summary
from gacd.classifier import lay_out_weights
from gacd.data import Dataset, Split, hold_out
from gacd.device import launch
from gacd.errors import InputError, UsageError
from gacd.information import Pairs, information
from gacd.lineup import Network, Seen, check, crafted, load, networks, observe, towards
from gacd.parser import exact
from gacd.prepare import check_ranges, check_train
from gacd.progress import Progress


def analyze(
    runs: list[str],
    *,
    teacher: str | None = None,
    data: str | None = None,
    out: str = "analysis",
    n: int = 1000,
    classes: list[str] | None = None,
    points: int = 100,
    crafted_on: str | None = None,
    perplexity: float = 30.0,
    k: int | None = None,
    fit_images: int = 5000,
    fit_steps: int = 1000,
    eps: float = 8 / 255,
    step_size: float | None = None,
    steps: int = 20,
    seed: int = 0,
    chunk: int = 250,
    data_dir: str | None = None,
    size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Compares students with their teacher on test images: correlations, features, information, errors, clusters.

    Adversarial images are PGD's on each student; the teacher sees the same ones.

    Args:
        runs: the students: run directories, or any sources of weights.
        teacher: the teacher's weights; the one that the runs' config.yaml (or that of their --init) names if absent.
        data: the runs' if absent.
        out: directory for analysis.json, analysis.md and the figures.
        n: test images, drawn alike from every class.
        classes: two names, for the clusters: images of the second are attacked to look like the first; bird and
            truck if absent, or the data's first two.
        points: test images of each of the two, and of the second as many others to attack; the fixed set is the first
            so many that succeed out of ten times as many.
        crafted_on: the network whose successful adversarial images all networks are shown, such as a standard one;
            the first run if absent.
        perplexity: of t-SNE.
        k: negatives per anchor of the bounds on information; n - 1 if absent.
        fit_images: training images on which their estimator is fitted.
        fit_steps: of that fit.
        eps: radius of the Linf ball, in pixel units.
        step_size: of PGD, in pixel units; a quarter of eps if absent.
        steps: of PGD.
        seed: of the draw of images, PGD's starts, the estimator and t-SNE.
        chunk: images per forward.
        data_dir: where the data sets lie; $GACD_DATA or ./data if absent.
        size: pixels a side.
        mean: of foreign networks (ARCH:FILE), a number per channel.
        std: likewise.
        device: cpu, cuda, or the best there is.
    """
    step_size = eps / 4 if step_size is None else step_size
    check_ranges(dict(eps=eps, step_size=step_size, steps=steps, seed=seed))
    counts = dict(n=n, points=points, k=k, fit_images=fit_images, fit_steps=fit_steps, steps=steps, chunk=chunk)
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1", value)
    if Path(out).exists() and not Path(out).is_dir():
        raise UsageError("--out is no directory", out)
    say = Console(highlight=False)
    students, guide, host = networks(list(dict.fromkeys(runs)), teacher, crafted_on, mean, std)
    everyone = list({net.source: net for net in (guide, *students)}.values())
    everyone = everyone if host in everyone else [host, *everyone]
    images = load(data, students, guide, data_dir, size)
    check_train(images)
    for net in everyone:
        check(net, guide, images)
    pair = two_classes(images, classes)
    sample = drawn(images.test, n, images.num_classes, seed)
    *shown, attacked = of_two_classes(images.test, pair, points)
    similarity.check_perplexity(perplexity, sum(map(len, shown)))
    fitting = hold_out(images.train, min(fit_images, len(images.train)), noise.key(seed, "information"))[1]
    k = len(sample) - 1 if k is None else k
    fabric, _ = launch(device, precision="32")
    for net in everyone:
        for note in net.opened.notes:
            say.print(note, markup=False)
        lay_out_weights(net.opened.model.to(fabric.device))

    work = len(sample) * len(students) + len(attacked) + min(points, len(attacked)) * (len(everyone) - 1)
    with Progress(work) as progress:
        threat = partial(crafted, eps=eps, step_size=step_size, steps=steps, seed=seed)
        attack = partial(threat, chunk=chunk, done=progress.advance)
        t, fit_t = observe(guide, sample.images, chunk), observe(guide, fitting.images, chunk)
        compared = {}
        for net in students:
            s, x_adv = observe(net, sample.images, chunk), attack(net, sample.images, sample.labels)
            fit = paired(fit_t, observe(net, fitting.images, chunk), fitting.labels)
            bounds = information(fit, paired(t, s, sample.labels), k=k, steps=fit_steps, seed=seed)
            compared[net.name] = dict(
                natural=likeness(t, s, sample.labels),
                adversarial=likeness(observe(guide, x_adv, chunk), observe(net, x_adv, chunk), sample.labels),
                information=dict(bounds, k=k, fit_images=len(fitting), fit_steps=fit_steps),
            )
        aims = torch.full_like(attacked.labels, pair[0])
        on_host = attack(host, attacked.images, aims, loss=towards)
        before, after = (observe(host, x, chunk).classes for x in (attacked.images, on_host))
        fixed = on_host[(before == pair[1]) & (after == pair[0])][:points]
        originals, seen, groups = attacked.images[:points], {}, {}
        for net in everyone:
            own = on_host[:points] if net is host else attack(net, originals, aims[:points], loss=towards)
            sets = dict(before=originals, fixed=fixed, own=own)
            seen[net.name], groups[net.name] = clusters(net, sample, shown, sets, pair, chunk)

    first, second = (images.classes[label] for label in pair)
    if not len(fixed):
        note = f"{host.name} takes no {second} for a {first} after the attack only: there is no fixed set to show"
        say.print(note, markup=False)
    result = dict(
        format=1,
        data=images.name,
        split="test",
        n=len(sample),
        seed=seed,
        chunk=chunk,
        threat=dict(norm="Linf", eps=exact(eps), step_size=exact(step_size), steps=steps),
        classes=images.classes,
        teacher=guide.name,
        sources={net.name: described(net) for net in everyone},
        students=compared,
        clusters=dict(
            classes=[first, second],
            points=list(map(len, shown)),
            attacked=len(originals),
            crafted_on=host.name,
            fixed=len(fixed),
            perplexity=perplexity,
            networks=seen,
        ),
        **results.provenance(fabric.device),
    )
    result["versions"]["scikit-learn"] = version("scikit-learn")
    result["figures"] = summary.captions(result)
    place = Path(out)
    checkpoint.replace(place / "analysis.json", (json.dumps(result, allow_nan=False) + "\n").encode())
    summary.write(place, result, groups, say)


def two_classes(images: Dataset, names: Sequence[str] | None) -> list[int]:
    """Labels of the two classes of the clusters."""
    if names is None:
        names = ["bird", "truck"] if {"bird", "truck"} <= set(images.classes) else images.classes[:2]
    unknown = [name for name in names if name not in images.classes]
    if unknown:
        raise UsageError("unknown class", ", ".join(unknown), "one of " + ", ".join(images.classes))
    if len(set(names)) != 2:
        raise UsageError("--classes takes two different names", " ".join(names))
    return [images.classes.index(name) for name in names]


def of_two_classes(test: Split, pair: Sequence[int], points: int) -> tuple[Split, Split, Split]:
    """The first images of two classes to show, and others of the second to attack, up to ten times as many.

    t-SNE would set an attacked image beside its own original, whatever class the network takes it for.
    """
    first, second = ((test.labels == label).nonzero()[:, 0] for label in pair)
    if min(len(first), len(second) // 2) < 2:
        raise InputError("the clusters need two test images of the first class and four of the second", "--classes")
    middle = min(points, len(second) // 2)
    return test.take(first[:points]), test.take(second[:middle]), test.take(second[middle:][: 10 * points])


def drawn(test: Split, n: int, classes: int, seed: int) -> Split:
    """n test images, alike from every class; all if there are no more."""
    least = max(20, 2 * classes)
    if min(n, len(test)) < least:
        raise UsageError(f"{min(n, len(test))} images say nothing of {classes} classes", "--n", f"at least {least}")
    return hold_out(test, min(n, len(test)), noise.key(seed, "analysis"))[1]


def likeness(t: Seen, s: Seen, y: Tensor) -> dict[str, Any]:
    """Correlations, their difference, CKA, accuracies and inherited errors of two networks on the same images."""
    r_t, r_s = similarity.correlation(t.logits), similarity.correlation(s.logits)
    return dict(
        accuracy=dict(teacher=share(t.classes == y), student=share(s.classes == y)),
        correlation=dict(teacher=rounded(r_t), student=rounded(r_s), difference=similarity.difference(r_t, r_s)),
        cka=similarity.cka(t.features, s.features),
        errors=similarity.inherited(t.classes, s.classes, y),
    )


def clusters(
    net: Network, sample: Split, shown: Sequence[Split], sets: Mapping[str, Tensor], pair: Sequence[int], chunk: int
) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
    """Two classes and the attacked images between them, as one network sees them (the paper's Figure 5).

    Args:
        net: the network; features count as directions from their mean over `sample`.
        sample: test images of all classes.
        shown: images of the two classes.
        sets: name -> (N,C,H,W) other images of the second class, attacked or not; N may be 0.
        pair: the classes' labels.
        chunk: images per forward.

    Returns:
        Numbers, None for an empty set; and for the others the unit vectors of the three groups, each (N,D).
    """
    centre = observe(net, sample.images, chunk).features.mean(0)
    a, b = (similarity.directions(observe(net, split.images, chunk).features, centre) for split in shown)
    numbers: dict[str, Any] = dict(similarity.separation(a, b)) | dict.fromkeys(sets)
    groups = {}
    for name, x_adv in sets.items():
        if len(x_adv):
            seen = observe(net, x_adv, chunk)
            points = similarity.directions(seen.features, centre)
            numbers[name] = dict(
                wrong_cluster=share(similarity.nearer(points, a, b)),
                misclassified=share(seen.classes != pair[1]),
                taken=share(seen.classes == pair[0]),
            )
            groups[name] = [a, b, points]
    return numbers, groups


def paired(t: Seen, s: Seen, y: Tensor) -> Pairs:
    """Both networks' features of the same images, with labels (N,) and the teacher's probabilities of them."""
    return Pairs(t.features, s.features, y, t.logits.softmax(1).gather(1, y[:, None])[:, 0])


def described(net: Network) -> dict[str, Any]:
    """What analysis.json says of a network: where it came from, and which weights."""
    model = net.opened.model
    about = dict(source=net.source, weights=net.opened.weights, model=results.named(model))
    return about | dict(sha256=results.identity(checkpoint.digest(model), net.source))


def share(mask: Tensor) -> float:
    return float(mask.double().mean())


def rounded(matrix: Tensor) -> list[list[float]]:
    """As JSON keeps a matrix: to six decimals."""
    return [[round(value, 6) for value in row] for row in matrix.tolist()]
