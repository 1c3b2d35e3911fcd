"""Linear heads from features: softmax regression in two ways, least squares, class means."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gacd import noise

Draw = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # weight (K,D), bias (K,), index (B,), epoch -> features (B,D)


def regress(f: Tensor, y: Tensor, num_classes: int, weight_decay: float, start: nn.Linear | None = None) -> nn.Linear:
    """Softmax regression by L-BFGS: f (N,D), y (N,) -> nn.Linear(D, num_classes).

    It minimises the mean cross-entropy + weight_decay / 2 * the squared norm of the weights; the bias is free.
    """
    if start is None:
        start = linear(torch.zeros(num_classes, f.shape[1]), torch.zeros(num_classes))
    head = copy.deepcopy(start).requires_grad_()
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(f), y) + weight_decay / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.requires_grad_(False)


def sgd(
    f: Tensor,
    y: Tensor,
    num_classes: int,
    weight_decay: float,
    *,
    epochs: int,
    lr: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    start: nn.Linear | None = None,
    draw: Draw | None = None,
) -> nn.Linear:
    """Softmax regression by mini-batches, momentum 0.9, the learning rate falling to 0 along half a cosine.

    The features are centred and divided by their root mean squared length, and the result is put back on the raw
    ones: the loss is the same, but no feature extractor needs a learning rate of its own.

    Args:
        f: (N,D) features.
        y: (N,) labels.
        num_classes: K.
        weight_decay: L2 on the weights for raw features, times a half, beside the mean cross-entropy.
        epochs: passes over the features.
        lr: the largest learning rate, in units of the inverse of the loss's curvature; from 3.8 on it may diverge.
        batch_size: rows a step.
        seed: of the order.
        start: head to start from; zeros if absent.
        draw: makes a batch's features for the head as it stands (attacked ones, say); f's rows if absent.

    Returns:
        nn.Linear(D, K).
    """
    centre = f.mean(0)
    scale = float((f - centre).square().sum(1).mean().sqrt().clamp_min(1e-12))
    decay = weight_decay / scale**2
    weight, bias = f.new_zeros(num_classes, f.shape[1]), f.new_zeros(num_classes)
    if start is not None:
        weight, bias = start.weight.detach() * scale, start.bias.detach() + start.weight.detach() @ centre
    # The cross-entropy's curvature is at most 1/2 in the logits, so also in the weights of features of length 1.
    rates = lr / (0.5 + decay), lr / 0.5
    groups: list[dict[str, Any]] = [dict(params=[weight], weight_decay=decay), dict(params=[bias])]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    for parameter in (weight, bias):
        parameter.requires_grad_()
    step, last = 0, epochs * math.ceil(len(y) / batch_size)
    for epoch in range(epochs):
        for index in noise.permutation(noise.key(seed, "head", epoch), len(y)).split(batch_size):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * (step + 0.5) / last)) / 2
            z = f[index] if draw is None else draw(*_raw(weight, bias, centre, scale), index, epoch)
            optimizer.zero_grad()
            F.cross_entropy((z - centre) / scale @ weight.T + bias, y[index]).backward()
            optimizer.step()
            step += 1
    return linear(*_raw(weight, bias, centre, scale))


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


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """nn.Linear, float32, without gradient, from weight (K,D) and bias (K,)."""
    with torch.random.fork_rng(devices=[]):  # its initialisation, which is overwritten, draws from the global one
        head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict(dict(weight=weight.float(), bias=bias.float()))
    return head.requires_grad_(False)


def _raw(weight: Tensor, bias: Tensor, centre: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Weight and bias for features as they are, from those for (f - centre) / scale."""
    weight = weight.detach() / scale
    return weight, bias.detach() - weight @ centre
