"""Knowledge distillation (Hinton et al., 2015)."""

import torch
from torch import Tensor, nn

from gacd.errors import InputError
from gacd.losses import cross_entropy, kl
from gacd.methods.base import Method


class KD(Method):
    """(1 - alpha) CE(S(x), y) + alpha t^2 KL(T(x)/t || S(x)/t), on natural images.

    Args:
        alpha: weight of the teacher's soft labels.
        temperature: t, by which both logits are divided.
    """

    best_by = "val_natural"  # nothing here trains robustness: what it has of it is highest before it has learnt much

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        labels: Tensor | None = None,
        *,
        alpha: float = 0.9,
        temperature: float = 4.0,
    ):
        if not temperature > 0:
            raise InputError("temperature must be > 0", f"temperature = {temperature}")
        super().__init__(student, teacher, labels)
        self.alpha, self.temperature = alpha, temperature

    def forward(self, x, y, index=None):
        with torch.no_grad():
            t = self.teacher(x)
        s = self.student(x)
        ce = cross_entropy(s, y).mean()
        soft = self.temperature**2 * kl(t / self.temperature, s / self.temperature).mean()
        return dict(loss=(1 - self.alpha) * ce + self.alpha * soft, ce=ce, soft=soft)
