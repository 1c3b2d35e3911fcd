"""Adversarially robust distillation (Goldblum et al., AAAI 2020)."""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from gacd.errors import InputError
from gacd.losses import cross_entropy, kl, weights
from gacd.methods.base import Method
from gacd.models.folding import attackable


class ARD(Method):
    """alpha t^2 KL(T(x)/t || S(x')/t) / K + (1 - alpha) CE(S(x), y): the teacher's clean soft labels at x'.

    Args:
        alpha: weight of the soft labels; at 1, the published value, the student never sees x.
        temperature: t, by which both logits are divided.
        weights: of the images: "none", the teacher's "probability" of the true class (the GACD paper's ablation), or 1
            where it is "correct" and 0 elsewhere.
        attack_mode: the student's mode during the attack: "eval", or "train" as in the published code.
        eps: radius of the Linf ball, in pixel units.
        step_size: of the attack, in pixel units.
        steps: of the attack, on the cross-entropy from a uniform random start.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        labels: Tensor | None = None,
        *,
        alpha: float = 1.0,
        temperature: float = 30.0,
        weights: Literal["none", "probability", "correct"] = "none",
        attack_mode: Literal["eval", "train"] = "eval",
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
    ):
        if not temperature > 0:
            raise InputError("temperature must be > 0", f"temperature = {temperature}", "the paper has 30")
        super().__init__(student, teacher, labels)
        self.alpha, self.temperature, self.weights, self.attack_mode = alpha, temperature, weights, attack_mode
        self.eps, self.step_size, self.steps = eps, step_size, steps

    def attack(self, x, y, index=None):
        with attackable(self.student, x) if self.attack_mode == "eval" else nullcontext(self.student) as student:
            return self.ascend(
                x, lambda z: cross_entropy(student(z), y), x + self.eps * self.noise(x, index, "uniform", "start")
            )

    def forward(self, x, y, index=None):
        x_adv = self.attack(x, y, index)
        with torch.no_grad():
            t = self.teacher(x)
        soft = self.temperature**2 * kl(t / self.temperature, self.student(x_adv) / self.temperature) / t.shape[1]
        soft = (soft * weights(t, y, self.weights)).mean()
        if self.alpha == 1:
            return dict(loss=soft)
        nat = cross_entropy(self.student(x), y).mean()
        return dict(loss=self.alpha * soft + (1 - self.alpha) * nat, soft=soft, nat=nat)
