"""RSLAD, AdaAD and IGDM against literal loops in float64; the reductions and starts on which others' code differs."""

import math

import pytest
import torch

from gacd import methods, models
from gacd.methods.base import Clock

X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X_ADV = (X + 0.03 * torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).clamp(0, 1)
Y, INDEX = torch.arange(5), torch.arange(5)


def network(seed):
    torch.manual_seed(seed)
    model = models.build("resnet8-x0.25").double().eval()
    model.head.weight.data.mul_(5)  # logits that differ
    return model


def make(name, **options):
    return methods.load(name)(network(0), network(1), **options)


def at(method, x_adv=X_ADV):
    """The method's values with its attack replaced."""
    method.attack = lambda *images: x_adv
    return {name: float(value.detach()) for name, value in method(X, Y, INDEX).items()}


def kl_loop(p, q):
    """Mean over images of sum over classes of p log(p/q), from logits."""
    total = 0.0
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        za, zb = sum(map(math.exp, a)), sum(map(math.exp, b))
        total += sum(math.exp(i) / za * (i - math.log(za) - j + math.log(zb)) for i, j in zip(a, b, strict=True))
    return total / len(p)


@torch.no_grad()
def test_rslad():
    method = make("rslad", alpha=0.7, scale=10.0)
    t, s = method.teacher, method.student
    expected = 0.7 * kl_loop(t(X), s(X_ADV)) / 10 + 0.3 * kl_loop(t(X), s(X)) / 10
    assert at(method)["loss"] == pytest.approx(10 * expected, rel=1e-9)
    assert make("rslad").alpha == 5 / 6


@torch.no_grad()
def test_adaad():
    method = make("adaad")
    t, s = method.teacher, method.student
    adv, nat = kl_loop(t(X_ADV), s(X_ADV)), kl_loop(t(X), s(X))
    assert at(method)["loss"] == pytest.approx(adv, rel=1e-9)
    assert at(make("adaad", alpha=0.25))["loss"] == pytest.approx(0.25 * adv + 0.75 * nat, rel=1e-9)


@torch.no_grad()
def test_igdm():
    method = make("igdm", weight=3.0)
    t, s = method.teacher, method.student
    opposite = 2 * X - X_ADV
    slope = kl_loop(t(X_ADV) - t(opposite), s(X_ADV) - s(opposite))
    host = kl_loop(t(X_ADV), s(X_ADV))
    for progress in (0.0, 0.5):
        method.clock = Clock(progress=progress)
        assert at(method)["loss"] == pytest.approx(host + 3 * progress * slope, rel=1e-9)


@pytest.mark.parametrize("name", ["rslad", "adaad", "igdm"])
def test_attack_climbs_the_teacher_s_divergence(name):
    """One step by hand: the start is x + 1e-3 N(0,1), the gradient passes through the teacher in AdaAD's alone."""
    method = make(name, steps=1, step_size=0.01, eps=0.05)
    t, s = method.teacher, method.student
    start = X + 1e-3 * method.noise(X, INDEX, "normal", "start")
    z = start.clone().requires_grad_()
    guide = t(X).detach() if name == "rslad" else t(z)
    divergence = (guide.softmax(1) * (guide.log_softmax(1) - s(z).log_softmax(1))).sum()
    (gradient,) = torch.autograd.grad(divergence, z)
    expected = (start.clamp(0, 1) + 0.01 * gradient.sign()).clamp(0, 1)
    firm = (gradient.abs() > 1e-9) & (start > 0) & (start < 1)
    assert firm.double().mean() > 0.9
    assert torch.allclose(method.attack(X, Y, INDEX)[firm], expected[firm], atol=1e-9)
