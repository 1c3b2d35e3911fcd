"""TRADES: a trade-off between natural and robust error (Zhang et al., ICML 2019)."""

from torch import Tensor, nn

from gacd.losses import cross_entropy, kl
from gacd.methods.base import Method
from gacd.models.folding import attackable


class TRADES(Method):
    """CE(S(x), y) + beta KL(S(x) || S(x')); both branches of the KL carry gradient.

    Args:
        beta: weight of the robust term.
        eps: radius of the Linf ball, in pixel units (the paper's code has .031).
        step_size: of the attack, in pixel units (the paper's code has .007).
        steps: of the attack, which ascends the same KL from x + 1e-3 N(0,1).
    """

    def __init__(
        self,
        student: nn.Module,
        labels: Tensor | None = None,
        *,
        beta: float = 6.0,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
    ):
        super().__init__(student, labels=labels)
        self.beta, self.eps, self.step_size, self.steps = beta, eps, step_size, steps

    def attack(self, x, y, index=None):
        with attackable(self.student, x) as student:
            clean = student(x).detach()
            return self.ascend(x, lambda z: kl(clean, student(z)), x + 1e-3 * self.noise(x, index, "normal", "start"))

    def forward(self, x, y, index=None):
        x_adv = self.attack(x, y, index)
        s = self.student(x)
        nat, adv = cross_entropy(s, y).mean(), kl(s, self.student(x_adv)).mean()
        return dict(loss=nat + self.beta * adv, nat=nat, adv=adv)
