"""What every method is: a module whose forward gives the loss."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gacd import noise
from gacd.attacks.loop import Objective, maximize


@dataclass(frozen=True)
class Clock:
    """Where training stands; `fit` sets it before each step, a foreign loop may."""

    seed: int = 0
    epoch: int = 0
    step: int = 0
    progress: float = 0.0  # in [0,1]


class Method(nn.Module):
    """`forward(x, y, index)` -> dict whose "loss" (a scalar) is minimised and whose rest is logged.

    A method owns its projections and memories, so they move, save and train with it. The teacher is always in eval
    mode, gets no gradient, and is neither saved nor trained with the method.

    Args:
        student: the network to train; images in [0,1] -> logits.
        teacher: the network to learn from, or None.
        labels: (M,) labels of the training set, for methods with a memory.
    """

    trains_head = True  # False: the student's classifier is not trained and is fitted afterwards (`gacd probe`)
    best_by = "val_robust"  # the held-out accuracy that chooses the best weights: or "val_natural"
    clock = Clock()
    student: Any  # a Classifier; for methods on logits any nn.Module
    teacher: Any
    labels: Any
    eps: float  # these three of the attack, in methods that have one
    step_size: float
    steps: int

    def __init__(self, student: nn.Module, teacher: nn.Module | None = None, labels: Tensor | None = None):
        super().__init__()
        self.student = student
        self.__dict__["teacher"] = None if teacher is None else teacher.eval()  # hidden from state_dict and train()
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """x (B,C,H,W) in [0,1], y (B,), index (B,) positions in the training set -> {"loss": scalar, ...}."""
        raise TypeError(f"{type(self).__name__} defines no forward(x, y, index)")

    def attack(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
        """The inner maximisation alone: x_adv (B,C,H,W). Methods without one return x."""
        return x

    def ascend(self, x: Tensor, objective: Objective, start: Tensor) -> Tensor:
        """`maximize` from `start` (B,C,H,W) with the method's own eps, step_size and steps: x_adv (B,C,H,W)."""
        return maximize(x, objective, start=start, eps=self.eps, step_size=self.step_size, steps=self.steps)

    def noise(self, x: Tensor, index: Tensor | None, kind: str, purpose: str) -> Tensor:
        """Random numbers like x, a function of (seed, purpose, epoch, image) alone.

        Args:
            x: (B,...) images; their own bits identify them where index is None.
            index: (B,) positions in the training set, or None.
            kind: "uniform" on [-1,1), or standard "normal".
            purpose: any name; different names draw independently.
        """
        key = noise.key(self.clock.seed, purpose, self.clock.epoch)
        which, shape = noise.fingerprint(x) if index is None else index, tuple(x.shape[1:])
        if kind == "normal":
            return noise.normal(key, which, shape).to(x.dtype)
        return 2 * noise.uniform(key, which, shape).to(x.dtype) - 1

    def _apply(self, fn: Any, recurse: bool = True) -> "Method":
        if self.teacher is not None:
            self.teacher._apply(fn)
        return super()._apply(fn, recurse)
