"""Linear heads on frozen features: the classifier that the paper's row "GACD" needs."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gacd.attacks import evaluating
from gacd.data import Dataset, Split
from gacd.evaluation import evaluate

WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0)


def probe(
    model: nn.Module,
    data: Dataset,
    *,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    steps: int = 10,
    seed: int = 0,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Multinomial regression on frozen features, once per weight decay (the paper's "linear evaluation").

    A head that is free to use every direction of the features throws robustness away, so the front of natural and
    robust accuracy over its weight decay matters more than any point of it.

    Args:
        model: a `Classifier`; its trunk is left as it is.
        data: its training images fit the head, its held-out ones choose.
        weight_decays: L2 on the head's weights, times a half, beside the mean cross-entropy.
        steps: of the PGD on the held-out images.
        seed: of that PGD.

    Returns:
        A copy of the model with the head of the best held-out robust accuracy, and a row per weight decay: its
        "weight_decay", "val_natural" and "val_robust", and "kept" on the best.
    """
    f, y = features(model, data.train), data.train.labels
    rows, best, head = [], None, None
    for weight_decay in sorted(weight_decays, reverse=True):  # each starts from the next stronger one's solution
        head = regress(f, y, data.num_classes, weight_decay, start=head)
        candidate = with_head(model, head)
        result = evaluate(candidate, data.val, [f"pgd{steps}"], seed=seed)
        rows.append(dict(weight_decay=weight_decay, val_natural=result.natural, val_robust=result.worst, kept=False))
        if best is None or result.worst > best[0]:
            best = result.worst, candidate, rows[-1]
    best[2]["kept"] = True
    return best[1], rows


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


def prototypes(bank: Tensor, labels: Tensor, projection: Tensor, bias: Tensor, temperature: float) -> nn.Linear:
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


def with_ridge_head(model: nn.Module, data: Dataset, limit: int) -> nn.Module:
    """A copy of the model with a closed-form head, fitted on at most `limit` evenly spread training images."""
    which = torch.arange(0, len(data.train), math.ceil(len(data.train) / limit))
    part = data.train.take(which)
    return with_head(model, ridge(features(model, part), part.labels, data.num_classes))


def with_head(model: nn.Module, head: nn.Linear) -> nn.Module:
    """A copy of a `Classifier` with another head, in eval mode."""
    changed = copy.deepcopy(model)
    old = changed.head.weight
    changed.head = copy.deepcopy(head).to(old.device, old.dtype)
    return changed.eval()


@torch.no_grad()
def features(model: nn.Module, split: Split, batch: int = 500) -> Tensor:
    """Penultimate features of natural images, (N,D) float32 on the CPU."""
    device = next(model.parameters()).device
    with evaluating(model):
        return torch.cat(
            [
                model.features(
                    images.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)
                ).float()
                for images in split.images.split(batch)
            ]
        ).cpu()


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """nn.Linear, float32, without gradient, from weight (K,D) and bias (K,)."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict(dict(weight=weight.float(), bias=bias.float()))
    return head.requires_grad_(False)
