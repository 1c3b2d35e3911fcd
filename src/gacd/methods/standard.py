"""Standard training on natural images: the undefended network."""

from torch import Tensor, nn

from gacd.losses import cross_entropy
from gacd.methods.base import Method


class Standard(Method):
    """Cross-entropy on natural images; no defence."""

    best_by = "val_natural"  # robust accuracy is highest in the first epoch, where it knows least

    def __init__(self, student: nn.Module, labels: Tensor | None = None):
        super().__init__(student, labels=labels)

    def forward(self, x, y, index=None):
        return dict(loss=cross_entropy(self.student(x), y).mean())
