"""Indirect gradient distillation (Lee et al., 2024), on AdaAD: the student follows the teacher's slope as well."""

from torch import Tensor, nn

from gacd.losses import kl
from gacd.methods.adaad import AdaAD


class IGDM(AdaAD):
    """AdaAD + weight p KL(T(x+d) - T(x-d) || S(x+d) - S(x-d)), d = x' - x, p the share of training done,
    `clock.progress`.

    A difference of logits over 2d stands for the input gradient along d. x - d may leave [0,1].

    Args:
        weight: of the slope's term at the end of training; published: 1 on CIFAR-10, 10 to 20 on CIFAR-100.
        alpha: see AdaAD.
        eps: radius of the Linf ball, in pixel units.
        step_size: of the attack, in pixel units.
        steps: of the attack, see AdaAD.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        labels: Tensor | None = None,
        *,
        weight: float = 1.0,
        alpha: float = 1.0,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
    ):
        super().__init__(student, teacher, labels, alpha=alpha, eps=eps, step_size=step_size, steps=steps)
        self.weight = weight

    def forward(self, x, y, index=None):
        x_adv = self.attack(x, y, index)
        t, s = self.both(x_adv)
        values = self.imitation(x, t, s)
        opposite_t, opposite_s = self.both(2 * x - x_adv)
        slope = kl(t - opposite_t, s - opposite_s).mean()
        return values | dict(loss=values["loss"] + self.weight * self.clock.progress * slope, slope=slope)
