"""AutoAttack standard (Croce and Hein, ICML 2020) by its authors' code: the extra `autoattack`.

Its verdicts depend on the images that share a batch, since it draws from one generator and shrinks its batches: the
other attacks here do not. It is the reference that papers report.
"""

import random
import warnings
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from gacd.attacks.loop import projection
from gacd.attacks.search import Search
from gacd.errors import InputError


class Official(Search):
    """The four attacks one after the other, each on what the ones before left.

    Args:
        classes: of the network; its nine targets an image need ten.
    """

    def __init__(self, *, norm: str, eps: float, seed: int, classes: int, restart: int = 0):
        super().__init__(norm=norm, eps=eps, seed=seed)
        if classes < 10:
            raise InputError(
                "AutoAttack's targeted attacks need at least 10 classes", classes, "cascade, or margin20x5"
            )
        self.package()
        self.restart = restart

    @staticmethod
    def package() -> Any:
        try:
            import pyautoattack
        except ImportError:
            raise InputError(
                "AutoAttack's code is not installed", "pyautoattack", "pip install 'gacd[autoattack]'"
            ) from None
        return pyautoattack

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """(B,C,H,W) pixels in [0,1] and labels (B,) -> what it found, inside the ball and the box in exact arithmetic.

        The generators that it seeds and the network's gradients are left as they were.
        """
        x = x.contiguous()  # it views rows
        devices = [x.device] if x.is_cuda else []
        python, legacy = random.getstate(), numpy.random.get_state()
        kept = [(p, p.grad) for p in model.parameters()]  # it calls backward, which adds to them
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model.zero_grad(set_to_none=True)
                judge = self.package().AutoAttack(
                    model, norm=self.norm, eps=self.eps, seed=self.seed + self.restart, device=x.device
                )
                judge.verbose = False
                x_adv = judge.run_standard_evaluation(x, y, batch_size=len(x))
            finally:
                random.setstate(python)
                numpy.random.set_state(legacy)
                for p, gradient in kept:
                    p.grad = gradient
        return projection(x, self.eps, self.norm)(x_adv[0])
