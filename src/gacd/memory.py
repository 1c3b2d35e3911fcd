"""The banks of past embeddings and the drawing of negatives from them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gacd import noise


class Bank(nn.Module):
    """One unit-norm embedding per training image, (M, dim), a buffer that moves and saves with its owner.

    Args:
        size: M, the number of training images.
        dim: of an embedding.
        name: makes the random first rows differ from another bank's.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int, name: str):
        super().__init__()
        rows = noise.normal(noise.key("bank", name), torch.arange(size), (dim,))
        self.register_buffer("rows", F.normalize(rows, dim=1))

    @torch.no_grad()
    def update(self, index: Tensor, embeddings: Tensor, momentum: float) -> None:
        """rows[index] <- normalised(momentum rows[index] + (1 - momentum) embeddings (B,dim))."""
        mixed = momentum * self.rows[index] + (1 - momentum) * embeddings.to(self.rows.dtype)
        self.rows[index] = F.normalize(mixed, dim=1)


def draw(labels: Tensor, y: Tensor, k: int, key: int) -> tuple[Tensor, Tensor]:
    """k negatives of other classes for each anchor, without replacement, as a mask over one shared random prefix.

    Each anchor's negatives are the first k images of other classes in one random order, so that one matrix product
    with the prefix replaces a gather of B x k rows.

    Args:
        labels: (M,) of the bank's images.
        y: (B,) of the anchors.
        k: at most the number of images outside the largest class.
        key: from `noise.key`.

    Returns:
        columns (L,) of the bank, and keep (B,L), 1.0 exactly k times a row.
    """
    sizes = labels.bincount()
    largest = float(sizes.max()) / len(labels)
    order = noise.permutation(key, len(labels), labels.device)
    length = min(len(labels), int(1.02 * k / (1 - largest)) + 64)
    counts = labels[order[:length]].bincount(minlength=len(sizes))
    columns = order[:length] if length - int(counts.max()) >= k else order
    other = labels[columns] != torch.arange(len(sizes), device=labels.device)[:, None]
    keep = other & (other.cumsum(1, dtype=torch.int32) <= k)
    return columns, keep.float()[y]
