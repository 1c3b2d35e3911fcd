"""Mutual information between teacher's and student's features: a bound that holds, and the paper's Eq. 11 beside it.

Both fit the paper's estimation model h afresh on some images and are read off others. With k negatives

    I(t; s) >= log k + E[log h(t, s+)] + k E[log(1 - h(t, s-))]

holds for every h if the negatives are drawn from all images. Eq. 11 as printed weighs each anchor by the teacher's
probability of its class and draws negatives from other classes only; then it is no bound (docs/paper.md).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gacd import noise
from gacd.errors import InputError
from gacd.losses import reweighted_nce

DIM, TEMPERATURE, BATCH, RATE = 128, 0.1, 250, 0.01


class Pairs(NamedTuple):
    """What two networks say of the same N images.

    Attributes:
        t: (N,Dt) the teacher's features.
        s: (N,Ds) the student's.
        y: (N,) labels.
        w: (N,) the teacher's probability of the true class.
    """

    t: Tensor
    s: Tensor
    y: Tensor
    w: Tensor

    def take(self, index: Tensor) -> "Pairs":
        return Pairs(*(values[index] for values in self))


class Estimator(NamedTuple):
    """h: a linear map of each side's features to the unit sphere of `DIM` dimensions, and the constant log Z."""

    weight_t: Tensor
    bias_t: Tensor
    weight_s: Tensor
    bias_s: Tensor
    log_z: Tensor


def information(fitted: Pairs, held_out: Pairs, *, k: int, steps: int = 1000, seed: int = 0) -> dict[str, float]:
    """Both right-hand sides, in nats, neither clamped; independent features give about -1 of the bound.

    Args:
        fitted: images on which the estimator is fitted, once for each objective.
        held_out: other images, on which it is read off.
        k: negatives per anchor. Their sum is k times the mean over the whole pool, what k draws give on average, so
            the pool may be smaller than k.
        steps: of Adam, each on `BATCH` images.
        seed: of the estimator's first weights and the batches.

    Returns:
        "bound", the valid one, which is never above log k, and "eq11".
    """
    if k < 1 or steps < 1:
        raise InputError("k and the estimator's steps must be at least 1", f"k = {k}, steps = {steps}")
    centre = [(values.mean(0), values.std(0).clamp_min(1e-6)) for values in fitted[:2]]
    fitted, held_out = (
        pairs._replace(t=(pairs.t - centre[0][0]) / centre[0][1], s=(pairs.s - centre[1][0]) / centre[1][1])
        for pairs in (fitted, held_out)
    )
    values = {}
    for name, printed in (("bound", False), ("eq11", True)):
        estimator = fit(fitted, k=k, steps=steps, seed=seed, printed=printed)
        with torch.no_grad():
            values[name] = float(right_side(estimator, held_out, k=k, printed=printed))
    return values


def right_side(estimator: Estimator, pairs: Pairs, *, k: int, printed: bool = False) -> Tensor:
    """log k + E[log h(t, s+)] + k E[log(1 - h(t, s-))], in nats, a scalar.

    Args:
        estimator: h.
        pairs: N images; each is an anchor once.
        k: negatives per anchor.
        printed: as Eq. 11 has it, weighted and with negatives of other classes; else unweighted, all other images.
    """
    u = log_odds(estimator, pairs.t, pairs.s, k)
    if printed:
        pool, w = (pairs.y[:, None] != pairs.y).to(u.dtype), pairs.w.to(u.dtype)
    else:
        pool, w = 1 - torch.eye(len(u), dtype=u.dtype, device=u.device), u.new_ones(len(u))
    size = pool.sum(1, keepdim=True)
    if bool((size == 0).any()):
        raise InputError("an image has no negatives", f"{len(u)} images", "give images of at least two classes")
    return math.log(k) - reweighted_nce(u.diagonal(), u, pool * (k / size), w).mean()


def log_odds(estimator: Estimator, t: Tensor, s: Tensor, k: int) -> Tensor:
    """u = logit h of every t (N,Dt) with every s (M,Ds): (N,M) of cosine / T - log Z - log k."""
    embedded_t = F.normalize(F.linear(t, estimator.weight_t, estimator.bias_t), dim=1)
    embedded_s = F.normalize(F.linear(s, estimator.weight_s, estimator.bias_s), dim=1)
    return embedded_t @ embedded_s.T / TEMPERATURE - estimator.log_z - math.log(k)


def fit(pairs: Pairs, *, k: int, steps: int, seed: int = 0, printed: bool = False) -> Estimator:
    """The estimator that makes `right_side` large, by Adam; arguments as there and for `information`."""
    estimator = begin(pairs.t.shape[1], pairs.s.shape[1], seed)
    rates = [RATE] * 4 + [10 * RATE]  # log Z, of the order of 1 / T, has further to go
    optimizer = torch.optim.Adam([dict(params=p, lr=rate) for p, rate in zip(estimator, rates, strict=True)])
    size = min(BATCH, len(pairs.y))
    batches = len(pairs.y) // size
    for step in range(steps):
        if step % batches == 0:
            order = noise.permutation(noise.key(seed, "information", step // batches), len(pairs.y), pairs.y.device)
        batch = pairs.take(order[step % batches * size :][:size])
        optimizer.zero_grad()
        (-right_side(estimator, batch, k=k, printed=printed)).backward()
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - (step + 1) / steps)
    return Estimator(*(values.detach() for values in estimator))


def begin(dim_t: int, dim_s: int, seed: int) -> Estimator:
    """Random embeddings, float32, that know nothing of either network."""
    sides: list[Tensor] = []
    for name, dim in (("teacher", dim_t), ("student", dim_s)):
        weight = noise.normal(noise.key(seed, "estimator", name), torch.arange(DIM), (dim,)) / math.sqrt(dim)
        sides += [weight.requires_grad_(), torch.zeros(DIM, requires_grad=True)]
    return Estimator(*[*sides, torch.zeros((), requires_grad=True)])
