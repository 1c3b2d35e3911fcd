"""How alike two networks are on the same images: numbers from logits (N,K), features (N,D) and predictions (N,)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gacd.errors import InputError, UsageError


def correlation(logits: Tensor) -> Tensor:
    """Pearson correlation of every two classes' logits over the images (the paper's Figures 3 and 4).

    Args:
        logits: (N,K), N > 1.

    Returns:
        (K,K) float64 in [-1,1], 1 on the diagonal.
    """
    flat = (logits == logits[:1]).all(0).nonzero()[:, 0].tolist()
    if flat:
        raise InputError("a logit is the same for every image: it correlates with nothing", f"class {flat[0]}")
    z = logits.double()
    z = F.normalize(z - z.mean(0), dim=0, eps=0)
    return (z.T @ z).clamp(-1, 1).fill_diagonal_(1)


def difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of two correlation matrices (K,K) off the diagonal: 0 for equal ones, at most 2."""
    off = ~torch.eye(len(a), dtype=torch.bool)
    return float((a - b)[off].abs().mean())


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al., 2019), debiased: HSIC_1 of Song et al. (2012) in its place.

    The standard estimate grows with D / N even for independent features; this one is 0 on average, so it may be
    slightly negative. In feature space: no N x N matrix.

    Args:
        x: (N,Dx) features, N > 3.
        y: (N,Dy) features of the same images.

    Returns:
        1 for features equal up to rotation, shift and scale.
    """
    x, y = (f.double() - f.double().mean(0) for f in (x, y))
    x, y = (f / f.square().sum(1).mean().sqrt().clamp_min(1e-300) for f in (x, y))  # their scale is of no account
    own = _hsic(x, x) * _hsic(y, y)
    if len(x) < 4 or not own > 0:
        raise InputError("similarity of features needs 4 images that differ in them", f"{len(x)} images")
    return _hsic(x, y) / own**0.5


def inherited(t: Tensor, s: Tensor, y: Tensor) -> dict[str, float | None]:
    """How many of the teacher's errors the student makes too.

    What chance would give is the mean over all shuffles of the student's predictions among the images of a class: two
    networks that confuse cats with dogs independently of each other share that much.

    Args:
        t: (N,) the teacher's predicted classes.
        s: (N,) the student's.
        y: (N,) labels.

    Returns:
        "errors", the teacher's; of these the shares "wrong" (the student errs too) and "same" (in the same wrong
        class), with "wrong_by_chance" and "same_by_chance"; None where the teacher makes none.
    """
    errs = t != y
    if not bool(errs.any()):
        return dict(errors=0, wrong=None, wrong_by_chance=None, same=None, same_by_chance=None)
    k = int(torch.stack([t, s, y]).max()) + 1
    confusion = torch.zeros(k, k, dtype=torch.float64).index_put_((y, s), torch.tensor(1.0).double(), accumulate=True)
    share = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    return dict(
        errors=int(errs.sum()),
        wrong=float((s != y)[errs].double().mean()),
        wrong_by_chance=float(1 - share[y, y][errs].mean()),
        same=float((s == t)[errs].double().mean()),
        same_by_chance=float(share[y, t][errs].mean()),
    )


def directions(f: Tensor, centre: Tensor) -> Tensor:
    """Features (N,D) as unit vectors from a centre (D,): what distances, clusters and pictures of them are made of."""
    return F.normalize(f.double() - centre.double(), dim=1)


def separation(a: Tensor, b: Tensor) -> dict[str, float]:
    """How tight and how far apart two classes lie.

    Args:
        a: (N,D) unit vectors of one class, N > 1.
        b: (M,D) of the other.

    Returns:
        Mean Euclidean distances, in [0,2]: "intra" within a class (mean of the two classes), "inter" between them, and
        "ratio", inter / intra: the larger, the clearer.
    """
    within = [float(F.pdist(c).mean()) for c in (a, b)]
    intra, inter = sum(within) / 2, float(torch.cdist(a, b).mean())
    if not intra > 0:
        raise InputError("a class's features are all the same", f"{len(a)} and {len(b)} images")
    return dict(intra=intra, inter=inter, ratio=inter / intra)


def nearer(points: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(N,) bool: which points (N,D) lie nearer to the centroid of a (M,D) than to b's, by Euclidean distance."""
    return torch.cdist(points, torch.stack([a.mean(0), b.mean(0)])).argmin(1) == 0


def tsne(points: Tensor, *, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """t-SNE (van der Maaten and Hinton, 2008), the same for the same points: (N,D) -> (N,2)."""
    from sklearn.manifold import TSNE  # a second of import
    from threadpoolctl import threadpool_limits

    check_perplexity(perplexity, len(points))
    with threadpool_limits(1):  # sums over threads round anew each time, and on busy cores they take 50 times as long
        made = TSNE(perplexity=perplexity, init="pca", random_state=seed % 2**32).fit_transform(points.float().numpy())
    return torch.from_numpy(made)


def check_perplexity(perplexity: float, points: int) -> None:
    """Refuses one for which there are too few points: t-SNE looks at three times as many neighbours."""
    if not 1 <= perplexity <= (points - 1) / 3:
        fix = f"--perplexity from 1 to {(points - 1) // 3}" if points >= 4 else "more --points"
        raise UsageError(f"perplexity {perplexity:g} does not suit {points} points", "", fix)


def _hsic(x: Tensor, y: Tensor) -> float:
    """HSIC_1 of linear kernels, from centred features: the trace and the sums of x x' and y y' without diagonals."""
    n = len(x)
    dx, dy = x.square().sum(1), y.square().sum(1)
    rows_x, rows_y = x @ x.sum(0) - dx, y @ y.sum(0) - dy
    trace = (x.T @ y).square().sum() - dx @ dy
    total = rows_x.sum() * rows_y.sum() / ((n - 1) * max(n - 2, 1))
    return float(trace + total - 2 / max(n - 2, 1) * (rows_x @ rows_y))
