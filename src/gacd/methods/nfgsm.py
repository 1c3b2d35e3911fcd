"""N-FGSM: single-step adversarial training that does not collapse (de Jorge et al., NeurIPS 2022)."""

from torch import Tensor, nn

from gacd.attacks.loop import maximize
from gacd.losses import cross_entropy
from gacd.methods.base import Method
from gacd.models.folding import attackable


class NFGSM(Method):
    """Cross-entropy after strong noise and one unprojected step: cheap robust teachers.

    Args:
        eps: length of the step, in pixel units.
        spread: the noise is uniform within spread * eps.
    """

    def __init__(self, student: nn.Module, labels: Tensor | None = None, *, eps: float = 8 / 255, spread: float = 2.0):
        super().__init__(student, labels=labels)
        self.eps, self.spread = eps, spread

    def attack(self, x, y, index=None):
        with attackable(self.student, x) as student:
            return maximize(
                x,
                lambda z: cross_entropy(student(z), y),
                start=x + self.spread * self.eps * self.noise(x, index, "uniform", "start"),
                eps=min(1.0, (1 + self.spread) * self.eps),  # noise and step together: the projection never cuts
                step_size=self.eps,
                steps=1,
            )

    def forward(self, x, y, index=None):
        return dict(loss=cross_entropy(self.student(self.attack(x, y, index)), y).mean())
