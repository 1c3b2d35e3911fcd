"""PGD adversarial training (Madry et al., ICLR 2018)."""

from torch import Tensor, nn

from gacd.losses import cross_entropy
from gacd.methods.base import Method
from gacd.models.folding import attackable


class PGDAT(Method):
    """Cross-entropy on the images that PGD makes worst for the network being trained.

    Args:
        eps: radius of the Linf ball, in pixel units.
        step_size: of the attack, in pixel units.
        steps: of the attack, from a uniform random start, the network in eval mode.
    """

    def __init__(
        self,
        student: nn.Module,
        labels: Tensor | None = None,
        *,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
    ):
        super().__init__(student, labels=labels)
        self.eps, self.step_size, self.steps = eps, step_size, steps

    def attack(self, x, y, index=None):
        with attackable(self.student, x) as student:
            return self.ascend(
                x, lambda z: cross_entropy(student(z), y), x + self.eps * self.noise(x, index, "uniform", "start")
            )

    def forward(self, x, y, index=None):
        return dict(loss=cross_entropy(self.student(self.attack(x, y, index)), y).mean())
