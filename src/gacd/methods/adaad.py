"""Adaptive adversarial distillation (Huang et al., CVPR 2023)."""

import torch
from torch import Tensor, nn

from gacd.losses import kl
from gacd.methods.base import Method
from gacd.models.folding import attackable


class AdaAD(Method):
    """alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x)), where x' sets student and teacher most apart.

    Args:
        alpha: weight of the adversarial term; at 1, the published code's value, neither network sees x.
        eps: radius of the Linf ball, in pixel units.
        step_size: of the attack, in pixel units.
        steps: of the attack, which ascends KL(T(x') || S(x')) through both networks from x + 1e-3 N(0,1).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        labels: Tensor | None = None,
        *,
        alpha: float = 1.0,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
    ):
        super().__init__(student, teacher, labels)
        self.alpha, self.eps, self.step_size, self.steps = alpha, eps, step_size, steps

    def attack(self, x, y, index=None):
        with attackable(self.student, x) as student, attackable(self.teacher, x) as teacher:
            return self.ascend(
                x, lambda z: kl(teacher(z), student(z)), x + 1e-3 * self.noise(x, index, "normal", "start")
            )

    def forward(self, x, y, index=None):
        return self.imitation(x, *self.both(self.attack(x, y, index)))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits (B,K), without gradient, and the student's."""
        with torch.no_grad():
            t = self.teacher(x)
        return t, self.student(x)

    def imitation(self, x: Tensor, t: Tensor, s: Tensor) -> dict[str, Tensor]:
        """The loss, from x (B,C,H,W) and both networks' logits (B,K) of x'."""
        adv = kl(t, s).mean()
        if self.alpha == 1:
            return dict(loss=adv)
        nat = kl(*self.both(x)).mean()
        return dict(loss=self.alpha * adv + (1 - self.alpha) * nat, adv=adv, nat=nat)
