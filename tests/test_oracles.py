"""Every attack that has a name against the truth: a linear network's closed form, and a plane searched in full."""

from functools import partial

import pytest
import torch
from test_apgd import bumpy, plane_case
from torch import nn
from torch.nn import functional as F

from gacd import noise
from gacd.attacks.names import CASCADE, LOSSES, MAKERS, parse_attack
from gacd.evaluation import evaluate

# Cut short where the full attack takes seconds; "autoattack", which cannot be, has tests of its own.
CROSS_ENTROPY = ("fgsm", "pgd20", "apgd-ce")  # towards all wrong classes at once, and blind where it saturates
ANY_SCALE = ("margin20", "apgd-dlr", "apgd-t30", "fab-t20", "square600", "cascade")
LINF_ONLY = ("fab-t20", "square600", "cascade")
SHORT = {"apgd-ce": 10, "apgd-t": 12, "fab-t": 12, "square": 150}
every_scale = pytest.mark.parametrize("scale", [1e-6, 1.0, 50.0, 1e4])


class Linear(nn.Module):
    """Logits scale (w_k x + b_k)."""

    def __init__(self, classes, scale):
        super().__init__()
        self.weight = noise.normal(1, torch.arange(classes), (48,))
        self.bias = 0.3 * noise.normal(2, torch.arange(classes))
        self.scale = scale

    def forward(self, x):
        return self.scale * (x.flatten(1) @ self.weight.T + self.bias)


class Bumpy(nn.Module):
    def forward(self, x):
        return bumpy(x)


def largest_margin(model, x, y, norm, eps):
    """The largest margin of scale 1 in the ball and the box, (B,) float64: for each wrong class the best point.

    In L2 that is clamp(x + c w) with the c at which it lies eps away from x.
    """
    w, image = model.weight.double(), x.flatten(1).double()
    towards = w[None] - w[y][:, None]
    low, high = -image[:, None], 1 - image[:, None]
    if norm == "Linf":
        move = torch.where(towards > 0, high.clamp_max(eps), low.clamp_min(-eps))
    else:
        near, far = torch.zeros_like(towards[..., :1]), torch.full_like(towards[..., :1], 1e6)
        for _ in range(100):
            c = (near + far) / 2
            out = (c * towards).clamp(low, high).norm(dim=2, keepdim=True) > eps
            near, far = torch.where(out, near, c), torch.where(out, c, far)
        move = (near * towards).clamp(low, high)
    logits = image @ w.T + model.bias.double()
    margin = logits - logits.gather(1, y[:, None]) + (towards * move).sum(2)
    return margin.scatter(1, y[:, None], -torch.inf).amax(1)


def linear_case(classes, norm, n=40):
    """Images on all of [0,1], labels, eps, and the margins known."""
    x, model = noise.uniform(7, torch.arange(n), (3, 4, 4)), Linear(classes, 1.0)
    eps = (0.05 if norm == "Linf" else 0.35) * (2 if classes == 2 else 1)
    y = model(x).argmax(1)
    margin = largest_margin(model, x, y, norm, eps)
    assert n / 10 < int((margin < 0).sum()) < n / 2
    assert float(margin.abs().min()) > 1e-3
    return x, y, eps, margin


@pytest.fixture
def short_cascade(monkeypatch):
    for name, make in CASCADE.items():
        monkeypatch.setitem(CASCADE, name, partial(make, steps=SHORT[name]))


def test_no_attack_is_left_out():
    families = {parse_attack(name).family for name in CROSS_ENTROPY + ANY_SCALE}
    assert families == {"fgsm", "cascade", *LOSSES, *MAKERS} - {"autoattack"}
    assert list(SHORT) == list(CASCADE)


@every_scale
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    ("name", "norm"),
    [(a, n) for a in CROSS_ENTROPY + ANY_SCALE for n in ("Linf", "L2") if n == "Linf" or a not in LINF_ONLY],
)
def test_a_linear_network_s_robust_images_are_the_known_ones(name, norm, classes, scale, short_cascade):
    x, y, eps, margin = linear_case(classes, norm)
    survived = evaluate(Linear(classes, scale), (x, y), [name], norm=norm, eps=eps, chunk=40).survivors
    assert bool(survived[margin < 0].all())  # nothing is beaten that cannot be
    missed = survived & (margin > 0)
    if name in ANY_SCALE:  # in L2 as near as steps of finite length come to a corner of ball and box
        assert not bool(missed[margin > (0 if norm == "Linf" else 0.05)].any())
    elif classes == 2 and norm == "Linf" and scale <= 1:  # one direction, which the first gradient shows
        assert not bool(missed.any())
    elif scale == 1e4:  # the gradient is zero in float32 from the start: why the other losses exist
        assert int(missed.sum()) > 0.8 * int((margin > 0).sum())


@pytest.mark.parametrize("name", CROSS_ENTROPY + ANY_SCALE)
def test_curved_borders_against_an_exhaustive_grid(name, short_cascade):
    x, y, eps, robust = plane_case()
    survived = evaluate(Bumpy(), (x, y), [name], eps=eps, chunk=400).survivors
    assert bool(survived[robust].all())
    missed = int((survived & ~robust).sum())
    assert missed <= (0 if name in ("apgd-t30", "fab-t20", "cascade") else 2)  # of 84


@every_scale
def test_autoattack_beats_every_image_of_a_linear_network_that_can_be(scale):
    pytest.importorskip("pyautoattack")
    x, y, eps, margin = linear_case(10, "Linf")
    which = (margin > 0) & (torch.arange(40) < 25)
    assert int(which.sum()) > 10
    assert evaluate(Linear(10, scale), (x[which], y[which]), ["autoattack"], eps=eps).worst == 0


def test_autoattack_on_curved_borders():
    pytest.importorskip("pyautoattack")
    x, y, eps, robust = plane_case()

    class OfTenClasses(Bumpy):
        def forward(self, x):
            z = super().forward(x)
            return F.pad(z, (0, 10 - z.shape[1]), value=-10.0)

    assert evaluate(OfTenClasses(), (x[~robust], y[~robust]), ["autoattack"], eps=eps).worst == 0
