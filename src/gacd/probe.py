"""Linear heads on frozen features: the classifier that the paper's row "GACD" needs, and those of Table 4."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gacd import noise
from gacd.attacks import evaluating, maximize
from gacd.attacks.loop import in_pixels
from gacd.data import Dataset, Split, on_device
from gacd.errors import InputError, UsageError
from gacd.evaluation import evaluate
from gacd.heads import Draw, regress, ridge, sgd
from gacd.losses import cross_entropy
from gacd.models.folding import attackable
from gacd.prepare import check_ranges

WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # at 0 logits of separable features grow until PGD is blind
SOLVERS: dict[str, dict[str, Any]] = {  # and what is theirs where it is not given
    "lbfgs": dict(epochs=None, lr=None),
    "sgd": dict(epochs=30, lr=1.0),
    "adversarial": dict(epochs=3, lr=1.0),
}


def probe(
    model: Any,
    data: Dataset,
    *,
    solver: str = "lbfgs",
    select: str = "robust",
    weight_decays: Sequence[float] | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    eps: float = 8 / 255,
    step_size: float | None = None,
    steps: int = 10,
    seed: int = 0,
    done: Callable[[int], None] = lambda n: None,
) -> tuple[Any, list[dict[str, Any]]]:
    """Multinomial regression on frozen features, once per weight decay (the paper's "linear evaluation").

    A head that is free to use every direction of the features throws robustness away, so the front of natural and
    robust accuracy over its weight decay matters more than any point of it.

    Args:
        model: a `Classifier`; its trunk is left as it is, and only natural images' features are ever kept.
        data: its training images fit the head, its held-out ones choose; of the model's channels, any classes.
        solver: "lbfgs" or "sgd" on the features of the natural images, computed once; "adversarial" goes on from
            lbfgs' head by SGD on images that PGD, end to end through the frozen trunk, makes worst for it.
        select: "robust" or "natural": the held-out accuracy that chooses the weight decay.
        weight_decays: L2 on the head's weights, times a half, beside the mean cross-entropy; WEIGHT_DECAYS if absent.
        epochs: of sgd (30 if absent) and adversarial (3), for each weight decay.
        lr: of sgd and adversarial, see `heads.sgd`; 1 if absent.
        eps: Linf radius of the PGD on the held-out images, with both losses (large logits blind cross-entropy), and
            of adversarial's, in pixel units.
        step_size: of both, in pixel units; eps / 4 if absent.
        steps: of both.
        seed: of both, and of the order of SGD.
        done: called with the number of images after each batch that is attacked or measured.

    Returns:
        A copy of the model with the chosen head, and a row per weight decay: its "weight_decay", "val_natural" and
        "val_robust", and "kept" on the best.

    Raises:
        InputError: an unknown solver, or other channels.
        UsageError: no held-out images, or a number without a meaning.
    """
    options: dict[str, Any] = dict(solver=solver, select=select, weight_decays=weight_decays, epochs=epochs, lr=lr)
    options = resolve(model, data, **options, eps=eps, step_size=step_size, steps=steps, seed=seed)
    threat: dict[str, Any] = dict(eps=eps, step_size=options["step_size"], seed=seed, done=done)
    passes: dict[str, Any] = dict(epochs=options["epochs"], lr=options["lr"], seed=seed)
    f, y, classes = features(model, data.train), data.train.labels, data.num_classes
    rows: list[dict[str, Any]] = []
    best, kept, natural = -1.0, model, None
    for weight_decay in options["weight_decays"]:
        if solver == "sgd":
            head = sgd(f, y, classes, weight_decay, **passes)
        else:  # each starts from the next stronger one's solution
            head = natural = regress(f, y, classes, weight_decay, start=natural)
        candidate = with_head(model, head)
        if solver == "adversarial":
            draw = attacked(candidate, data.train, steps=steps, **threat)
            candidate = with_head(model, sgd(f, y, classes, weight_decay, start=natural, draw=draw, **passes))
        result = evaluate(candidate, data.val, [f"pgd{steps}", f"margin{steps}"], **threat)
        rows.append(dict(weight_decay=weight_decay, val_natural=result.natural, val_robust=result.worst, kept=False))
        if rows[-1][f"val_{select}"] > best:
            best, kept = rows[-1][f"val_{select}"], candidate
    next(row for row in rows if row[f"val_{select}"] == best)["kept"] = True
    return kept, rows


def resolve(
    model: Any,
    data: Dataset,
    *,
    solver: str = "lbfgs",
    select: str = "robust",
    weight_decays: Sequence[float] | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    eps: float | str | None = None,
    step_size: float | None = None,
    steps: int = 10,
    seed: int,
) -> dict[str, Any]:
    """The options of `probe`, with what was absent filled in; refuses what makes no sense before anything is done."""
    if solver not in SOLVERS or select not in ("robust", "natural"):
        raise InputError("unknown solver or selection", f"{solver}, {select}", f"{', '.join(SOLVERS)}; robust, natural")
    if solver == "lbfgs" and (epochs, lr) != (None, None):
        raise UsageError("lbfgs has no epochs and no lr", "--epochs, --lr", "--solver sgd or adversarial has")
    if model.channels != data.channels:
        raise InputError(f"the network takes {model.channels} channels", f"{data.name} has {data.channels}")
    if len(data.val) == 0:
        raise UsageError("the probe needs held-out images", "--val-size", "at least 1; a tenth of the images at most")
    decays = sorted(WEIGHT_DECAYS if weight_decays is None else weight_decays, reverse=True)
    if not decays or not all(0 <= decay < math.inf for decay in decays):
        raise UsageError("weight decays must be numbers >= 0", decays)
    if steps < 1:
        raise UsageError("steps must be at least 1", steps)
    given = {name: value for name, value in dict(epochs=epochs, lr=lr).items() if value is not None}
    radius = in_pixels(8 / 255 if eps is None else eps)
    threat = dict(eps=radius, step_size=radius / 4 if step_size is None else step_size, steps=steps, seed=seed)
    check_ranges(given | threat)
    return dict(solver=solver, select=select, weight_decays=decays) | SOLVERS[solver] | given | threat


def attacked(
    network: Any,
    split: Split,
    *,
    eps: float,
    step_size: float,
    steps: int,
    seed: int,
    done: Callable[[int], None] = lambda n: None,
) -> Draw:
    """A function that draws features (B,D), on the CPU, of images on which PGD raises a head's cross-entropy.

    Args:
        network: a `Classifier` to whom each head is given in turn; PGD sees it in eval mode.
        split: the images.
        eps, step_size, steps: of PGD in Linf, see `maximize`.
        seed: of its random starts, a function of (seed, epoch, image).
        done: called with the number of images.
    """
    device = network.head.weight.device

    def draw(weight: Tensor, bias: Tensor, index: Tensor, epoch: int) -> Tensor:
        network.head.weight.data.copy_(weight)
        network.head.bias.data.copy_(bias)
        x = on_device(split.images[index], device)
        y = split.labels[index].to(device)
        u = noise.uniform(noise.key(seed, "probe start", epoch), index.to(device), tuple(x.shape[1:]))
        with attackable(network, x) as quick:
            x_adv = maximize(
                x,
                lambda z: cross_entropy(quick(z), y),
                start=x + eps * (2 * u - 1),
                eps=eps,
                step_size=step_size,
                steps=steps,
            )
            with torch.no_grad():
                f = network.features(x_adv).float().cpu()
        done(len(index))
        return f

    return draw


def with_ridge_head(model: Any, data: Dataset, limit: int) -> nn.Module:
    """A copy of the model with a closed-form head, fitted on at most `limit` evenly spread training images."""
    which = torch.arange(0, len(data.train), math.ceil(len(data.train) / limit))
    part = data.train.take(which)
    return with_head(model, ridge(features(model, part), part.labels, data.num_classes))


def with_head(model: Any, head: nn.Linear) -> Any:
    """A copy of a `Classifier` with another head, in eval mode."""
    changed = copy.deepcopy(model)
    old = changed.head.weight
    changed.head = copy.deepcopy(head).to(old.device, old.dtype)
    return changed.eval()


@torch.no_grad()
def features(model: Any, split: Split, batch: int = 500) -> Tensor:
    """Penultimate features of natural images, (N,D) float32 on the CPU."""
    device = next(model.parameters()).device
    with evaluating(model):
        chunks = split.images.split(batch)
        return torch.cat([model.features(on_device(images, device)).float() for images in chunks]).cpu()
