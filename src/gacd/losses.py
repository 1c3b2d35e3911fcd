"""Losses as pure functions: one value per image, (B,), in at least float32 whatever the network computed in."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gacd import ranks


def reweighted_nce(positive: Tensor, negatives: Tensor, keep: Tensor, w: Tensor) -> Tensor:
    """Sample-reweighted noise-contrastive estimation, Eq. 9 of the paper negated, from log-odds u = logit h.

    Args:
        positive: (B,) u of each anchor with its positive.
        negatives: (B,L) u of each anchor with L candidates.
        keep: (B,L) 1 where a candidate is one of the anchor's k negatives, else 0.
        w: (B,) weights, the teacher's probability of the true class.

    Returns:
        (B,) w [ -log h(positive) - sum over the negatives of log(1 - h) ].
    """
    return w * (F.softplus(-positive) + torch.linalg.vecdot(F.softplus(negatives), keep))


def weights(t: Tensor, y: Tensor, kind: str) -> Tensor:
    """Each image's weight w (B,) in Eq. 9, from the teacher's logits t (B,K) and labels y (B,).

    Args:
        kind: "probability" of the true class (the paper's), "correct": 1 where the teacher is right and 0 elsewhere
            (what the paper argues against), "none": 1.
    """
    t = at_least_float32(t)
    if kind == "none":
        return t.new_ones(len(y))
    if kind == "correct":
        return (t.argmax(1) == y).to(t.dtype)
    return t.softmax(1).gather(1, y[:, None])[:, 0]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of two softmax distributions given as logits (B,K), summed over classes: (B,)."""
    log_p, log_q = at_least_float32(p).log_softmax(1), at_least_float32(q).log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y], (B,), from logits (B,K) and labels (B,)."""
    return F.cross_entropy(at_least_float32(logits), y, reduction="none")


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit (B,K) minus that of y (B,): (B,), above 0 where wrong (Carlini and Wagner, 2017)."""
    logits = at_least_float32(logits)
    true = y[:, None]
    return logits.scatter(1, true, -math.inf).amax(1) - logits.gather(1, true)[:, 0]


def magnitude(logits: Tensor) -> Tensor:
    """The largest absolute logit, (B,), by which rounding is measured; one a hundred times the top two does not count.

    Such is a class that somebody masked by -1e9, beside which any other difference would pass for rounding.
    """
    size = at_least_float32(logits).abs()
    top = size.gather(1, logits.topk(min(2, logits.shape[1])).indices).amax(1, keepdim=True)
    return size.masked_fill(size > 100 * top, 0).amax(1)


def gap(actual: Tensor, expected: Tensor) -> Tensor:
    """|actual - expected| of logits (B,K), each over the larger of |expected| and its image's `magnitude`: (B,K)."""
    usual = magnitude(expected).clamp_min(1e-30)[:, None]
    return (actual - expected).abs() / expected.abs().maximum(usual)


def transport(a: Tensor, b: Tensor, *, entropy: float = 0.01, iterations: int = 100, tolerance: float = 0.1) -> Tensor:
    """Each row's share of the Wasserstein distance of two batches (Zhang and Wang, 2019): cost max(0, 1 - cosine).

    The plan couples all processes' rows and carries no gradient; the cost does, through `a`.

    Args:
        a: (B,D) features that carry gradient.
        b: (B,D) reference features.
        entropy, iterations, tolerance: see `sinkhorn`.

    Returns:
        (B,) whose sum over all rows is <plan, cost>.
    """
    a, b = at_least_float32(a), ranks.gather(at_least_float32(b))
    with torch.no_grad():
        plan = sinkhorn(cosine_cost(ranks.gather(a), b), entropy=entropy, iterations=iterations, tolerance=tolerance)
    return (ranks.mine(plan) * cosine_cost(a, b)).sum(1)


def sinkhorn(cost: Tensor, *, entropy: float, iterations: int, tolerance: float) -> Tensor:
    """Entropic transport plan between uniform marginals, in the log domain (Cuturi, 2013).

    Args:
        cost: (n,m).
        entropy: weight of the entropy, in units of the cost.
        iterations: at most so many.
        tolerance: stops when the row potentials move less than this in sum, in units of the cost.

    Returns:
        (n,m) plan; column sums are 1/m, row sums 1/n as far as it converged.
    """
    n, m = cost.shape
    scaled = cost / -entropy
    u, v = cost.new_zeros(n, 1), cost.new_zeros(1, m)  # potentials over `entropy`
    for _ in range(iterations):
        before = u
        u = -math.log(n) - (scaled + v).logsumexp(1, keepdim=True)
        v = -math.log(m) - (scaled + u).logsumexp(0, keepdim=True)
        if entropy * float((u - before).abs().sum()) < tolerance:
            break
    return (scaled + u + v).exp()


def cosine_cost(a: Tensor, b: Tensor) -> Tensor:
    """max(0, 1 - cosine) of every row of a (n,D) with every row of b (m,D): (n,m)."""
    with torch.autocast(a.device.type, enabled=False):  # near 1 a cosine in half precision is no cosine
        return (1 - F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).clamp_min(0)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
