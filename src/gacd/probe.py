"""Linear heads on frozen features: the classifier that the paper's row "GACD" needs."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from gacd import checkpoint
from gacd.attacks import evaluating
from gacd.data import Dataset, Split, pixels
from gacd.errors import InputError, UsageError
from gacd.evaluation import evaluate

WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # at 0 logits of separable features grow until PGD is blind


def probe(
    model: Any,
    data: Dataset,
    *,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    eps: float = 8 / 255,
    steps: int = 10,
    seed: int = 0,
) -> tuple[Any, list[dict[str, Any]]]:
    """Multinomial regression on frozen features, once per weight decay (the paper's "linear evaluation").

    A head that is free to use every direction of the features throws robustness away, so the front of natural and
    robust accuracy over its weight decay matters more than any point of it.

    Args:
        model: a `Classifier`; its trunk is left as it is.
        data: its training images fit the head, its held-out ones choose.
        weight_decays: L2 on the head's weights, times a half, beside the mean cross-entropy.
        eps: radius of the PGD on the held-out images, with both losses: large logits blind cross-entropy.
        steps: of that PGD.
        seed: of that PGD.

    Returns:
        A copy of the model with the head of the best held-out robust accuracy, and a row per weight decay: its
        "weight_decay", "val_natural" and "val_robust", and "kept" on the best.
    """
    if len(data.val) == 0:
        raise UsageError("the probe needs held-out images", "--val-size", "at least 1")
    if not weight_decays or not all(0 <= decay < math.inf for decay in weight_decays):
        raise UsageError("weight decays must be numbers >= 0", list(weight_decays))
    if steps < 1:
        raise UsageError("steps must be at least 1", steps)
    f, y = features(model, data.train), data.train.labels
    rows: list[dict[str, Any]] = []
    best, kept, head = -1.0, model, None
    for weight_decay in sorted(weight_decays, reverse=True):  # each starts from the next stronger one's solution
        head = regress(f, y, data.num_classes, weight_decay, start=head)
        candidate = with_head(model, head)
        result = evaluate(candidate, data.val, [f"pgd{steps}", f"margin{steps}"], eps=eps, seed=seed)
        rows.append(dict(weight_decay=weight_decay, val_natural=result.natural, val_robust=result.worst, kept=False))
        if result.worst > best:
            best, kept = result.worst, candidate
    next(row for row in rows if row["val_robust"] == best)["kept"] = True
    return kept, rows


def fit_head(
    run: Path,
    images: Dataset,
    say: Console,
    *,
    head: str = "linear",
    weight_decays: Sequence[float] | None = None,
    eps: float = 8 / 255,
    steps: int = 10,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> None:
    """Gives a run a classifier: prints the front of a linear one, or takes a bank's class means; writes probe.pt."""
    folder = run / "checkpoints"
    if head == "linear":
        opened = checkpoint.open_source(str(next(p for p in (folder / "best.pt", folder / "last.pt") if p.exists())))
        decays = WEIGHT_DECAYS if weight_decays is None else weight_decays
        model, rows = probe(opened.model.to(device), images, weight_decays=decays, eps=eps, steps=steps, seed=seed)
        table = Table("weight decay", "natural", f"PGD-{steps}, worst of two losses", "", title="held-out images")
        for row in rows:
            kept = "kept" if row["kept"] else ""
            table.add_row(f"{row['weight_decay']:g}", f"{row['val_natural']:.1%}", f"{row['val_robust']:.1%}", kept)
        say.print(table)
        measured = next(row for row in rows if row["kept"]) | dict(front=rows)
    else:
        opened = checkpoint.open_source(str(folder / "last.pt"))
        state = checkpoint.read(folder / "last.pt")["method"]
        own = {name.removeprefix("student."): t for name, t in state.items() if name.startswith("student.")}
        opened.model.load_state_dict(own)  # the bank is of these weights, not of their average
        if f"bank_{head[0]}.rows" not in state:
            raise InputError("the run has no bank of embeddings", run, "only a run of gacd distill gacd has one")
        projection = state["embed_s.weight"], state["embed_s.bias"]
        model = with_head(opened.model, prototypes(state[f"bank_{head[0]}.rows"], images.train.labels, *projection))
        result = evaluate(model.to(device), images.val, [f"pgd{steps}", f"margin{steps}"], eps=eps, seed=seed)
        measured = dict(val_natural=result.natural, val_robust=result.worst)
        say.print(f"held-out images: natural {result.natural:.1%}, PGD-{steps}, worst of two losses {result.worst:.1%}")
    record = opened.record | dict(head=head) | measured
    checkpoint.write(folder / "probe.pt", dict(model=model.config(), weights=model.state_dict(), record=record))
    say.print(f"written to {folder / 'probe.pt'}", markup=False)


def regress(f: Tensor, y: Tensor, num_classes: int, weight_decay: float, start: nn.Linear | None = None) -> nn.Linear:
    """Softmax regression by L-BFGS: f (N,D), y (N,) -> nn.Linear(D, num_classes)."""
    head = nn.Linear(f.shape[1], num_classes)
    with torch.no_grad():
        for parameter, value in zip(head.parameters(), start.parameters() if start else (0.0, 0.0), strict=True):
            parameter.copy_(torch.as_tensor(value))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(f), y) + weight_decay / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.requires_grad_(False)


def ridge(f: Tensor, y: Tensor, num_classes: int, strength: float = 0.1) -> nn.Linear:
    """Least squares on one-hot labels in closed form.

    Args:
        f: (N,D) features.
        y: (N,) labels.
        num_classes: K.
        strength: ridge over the features' mean variance.

    Returns:
        nn.Linear(D, K).
    """
    f, target = f.double(), F.one_hot(y, num_classes).double()
    centre, level = f.mean(0), target.mean(0)
    gram = (f - centre).T @ (f - centre) / len(f)
    gram.diagonal().add_(strength * gram.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(gram, (f - centre).T @ (target - level) / len(f)).T
    return linear(weight, level - weight @ centre)


def prototypes(bank: Tensor, labels: Tensor, projection: Tensor, bias: Tensor, temperature: float = 0.1) -> nn.Linear:
    """A head that needs no training: the cosine classifier of the student's embedding, with the same argmax.

    Args:
        bank: (M,d) unit-norm embeddings of the training images, the teacher's or the student's.
        labels: (M,).
        projection: (d,D) weight of the student's projection, `bias` (d,) its bias.
        temperature: divides the logits.

    Returns:
        nn.Linear(D, K), whose weight is C @ projection for the unit-norm class means C of the bank.
    """
    sums = bank.new_zeros(int(labels.max()) + 1, bank.shape[1]).index_add_(0, labels, bank)
    c = F.normalize(sums, dim=1) / temperature
    return linear(c @ projection, c @ bias)


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
        chunks = (pixels(images.to(device)) for images in split.images.split(batch))
        return torch.cat(
            [model.features(x.contiguous(memory_format=torch.channels_last)).float() for x in chunks]
        ).cpu()


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """nn.Linear, float32, without gradient, from weight (K,D) and bias (K,)."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict(dict(weight=weight.float(), bias=bias.float()))
    return head.requires_grad_(False)
