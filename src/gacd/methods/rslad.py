"""Robust soft-label adversarial distillation (Zi et al., ICCV 2021)."""

import torch
from torch import Tensor, nn

from gacd.losses import kl
from gacd.methods.base import Method
from gacd.models.folding import attackable


class RSLAD(Method):
    """alpha KL(T(x) || S(x')) / K + (1 - alpha) KL(T(x) || S(x)) / K: clean soft labels guide attack and student.

    Args:
        alpha: weight of the adversarial term.
        scale: of the whole loss; the published code has 10 on CIFAR-100.
        eps: radius of the Linf ball, in pixel units.
        step_size: of the attack, in pixel units.
        steps: of the attack, which ascends KL(T(x) || S(x')) from x + 1e-3 N(0,1).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        labels: Tensor | None = None,
        *,
        alpha: float = 5 / 6,
        scale: float = 1.0,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
    ):
        super().__init__(student, teacher, labels)
        self.alpha, self.scale = alpha, scale
        self.eps, self.step_size, self.steps = eps, step_size, steps

    def attack(self, x, y, index=None, t=None):
        """t (B,K): the teacher's logits of x, computed if absent."""
        if t is None:
            with torch.no_grad():
                t = self.teacher(x)
        with attackable(self.student, x) as student:
            return self.ascend(x, lambda z: kl(t, student(z)), x + 1e-3 * self.noise(x, index, "normal", "start"))

    def forward(self, x, y, index=None):
        with torch.no_grad():
            t = self.teacher(x)
        x_adv = self.attack(x, y, index, t)
        adv, nat = kl(t, self.student(x_adv)).mean(), kl(t, self.student(x)).mean()
        loss = self.scale * (self.alpha * adv + (1 - self.alpha) * nat) / t.shape[1]
        return dict(loss=loss, adv=adv, nat=nat)
