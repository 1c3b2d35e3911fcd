"""Every attack: inside the ball exactly, no side effects, a function of (seed, image), and as strong as theory says."""

import random
from fractions import Fraction

import pytest
import torch
from torch import nn

from gacd import noise
from gacd.attacks import ATTACKS, evaluating, maximize
from gacd.errors import InputError
from gacd.losses import cross_entropy, margin_loss
from gacd.models import build

NORMS = ("Linf", "L2")
INDEX = torch.tensor([4, 10, 3, 77, 5, 6])
every_attack = pytest.mark.parametrize(("name", "norm"), [(a, n) for a in ATTACKS for n in NORMS])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build("resnet8-x0.25", 2)
    with torch.no_grad():
        model(torch.rand(64, 3, 8, 8))  # batch-norm statistics
    return model.eval()


class Linear(nn.Module):
    """Two classes, logits `scale` (w_k x + b_k)."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(48, 2)
        with torch.no_grad():
            self.layer.weight.copy_(noise.normal(1, torch.arange(2), (48,)))
            self.layer.bias.copy_(torch.tensor([0.3, -0.1]))
        self.scale = scale

    def forward(self, x):
        return self.scale * self.layer(x.flatten(1))


def images(n=6, size=8, low=0.0, high=1.0):
    return low + (high - low) * noise.uniform(7, torch.arange(n), (3, size, size))


def labels(n=6):
    return torch.arange(n) % 2


def awkward(n=4):
    """Images with pixels on the box's faces, subnormal, and at the ends of float32's binades."""
    x = images(n, 4)
    values = [0, 1, 1e-45, 1e-40, 1.2e-38, 1 - 2**-24, 0.5, 0.5 - 2**-25, 0.25, 8 / 255, 247 / 255, 0.969, 1e-3, 2**-20]
    x.view(n, -1)[:, : len(values)] = torch.tensor(values)
    return x


def exactly_inside(x, x_adv, norm, eps):
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert bool(((x_adv >= 0) & (x_adv <= 1)).all())
    if norm == "Linf":
        assert bool(((x_adv.double() - x.double()).abs() <= eps).all())
        return
    for a, b in zip(x.flatten(1).tolist(), x_adv.flatten(1).tolist(), strict=True):
        assert sum((Fraction(u) - Fraction(v)) ** 2 for u, v in zip(a, b, strict=True)) <= Fraction(eps) ** 2


@every_attack
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.031, 8 / 255, 0.1, 1.0])
def test_inside_the_ball_and_the_box_in_exact_arithmetic(name, norm, eps):
    x = awkward()
    x_adv = ATTACKS[name](Linear(), x, labels(4), norm=norm, eps=eps, step_size=eps / 2, steps=3, index=INDEX[:4])
    exactly_inside(x, x_adv, norm, eps)
    assert eps > 0 or torch.equal(x_adv, x)
    assert eps < 0.031 or float((x_adv - x).flatten(1).norm(dim=1).min()) > 0.9 * eps / (1 if norm == "Linf" else 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.031, 8 / 255, 1 / 3, 1.0])
@pytest.mark.parametrize("x", [awkward(), images(20, 4, 0.3, 0.7)])  # at the box's faces, and far from them
def test_a_start_is_projected(norm, eps, x):
    start = x + 3 * noise.normal(3, torch.arange(len(x)), (3, 4, 4))
    given = start.clone()
    x_adv = maximize(x, lambda z: z.flatten(1).sum(1), norm=norm, eps=eps, step_size=0, steps=0, start=start)
    exactly_inside(x, x_adv, norm, eps)
    assert torch.equal(start, given)
    near = x + (eps / 8) * (0.5 - x).sign()  # already inside: kept
    kept = maximize(x, lambda z: z.flatten(1).sum(1), norm=norm, eps=eps, step_size=0, steps=0, start=near)
    assert torch.equal(kept, near)


def test_a_tiny_l2_radius_takes_no_time(monkeypatch):
    double, rounds = torch.Tensor.double, []

    def counted(tensor):
        rounds.append(1)
        assert len(rounds) < 1000
        return double(tensor)

    for eps in (1e-5, 1e-6, 1e-7):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "double", counted)
            x_adv = maximize(images(), None, norm="L2", eps=eps, step_size=0, steps=0, start=1 - images())
        exactly_inside(images(), x_adv, "L2", eps)


@every_attack
def test_the_loss_rises(network, name, norm):
    x, y, eps = images(), labels(), 0.1 if norm == "Linf" else 1.0
    x_adv = ATTACKS[name](network, x, y, norm=norm, eps=eps, step_size=eps / 4, steps=8, index=INDEX)
    with torch.no_grad():
        before, after = cross_entropy(network(x), y), cross_entropy(network(x_adv), y)
    assert bool((after > before).all())


@every_attack
def test_no_side_effects(network, name, norm):
    model = build("resnet8-x0.25", 2)
    model.load_state_dict(network.state_dict())
    model.train()
    model.layer2.eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)
        parameter.grad = torch.full_like(parameter, 0.5) if i % 3 == 1 else None
    modes = [module.training for module in model.modules()]
    x, y = images(), labels()
    given, rng, other = (x.clone(), y.clone()), torch.get_rng_state(), random.getstate()
    ATTACKS[name](model, x, y, norm=norm, eps=0.1, step_size=0.05, steps=2)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in model.state_dict().items())
    for i, parameter in enumerate(model.parameters()):
        assert parameter.requires_grad == (i % 3 > 0)
        assert bool((parameter.grad == 0.5).all()) if i % 3 == 1 else parameter.grad is None
    assert torch.equal(x, given[0])
    assert torch.equal(y, given[1])
    assert x.grad is None
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == other


@every_attack
def test_the_network_is_attacked_in_eval_mode_even_without_gradient(network, name, norm):
    x, y, options = images(), labels(), dict(norm=norm, eps=0.1, step_size=0.05, steps=2, index=INDEX)
    expected = ATTACKS[name](network, x, y, **options)
    network.train()
    with torch.no_grad():
        x_adv = ATTACKS[name](network, x, y, **options)
    assert network.training
    network.eval()
    assert torch.equal(x_adv, expected)


@every_attack
@pytest.mark.parametrize("index", [INDEX, None])
def test_a_function_of_seed_and_image_whatever_the_batch(network, name, norm, index):
    def attack(rows, seed=0):
        which = None if index is None else index[rows]
        options = dict(norm=norm, eps=0.1, step_size=0.05, steps=3, seed=seed, index=which)
        return ATTACKS[name](network, images()[rows], labels()[rows], **options)

    straight, order, repeated = torch.arange(6), torch.tensor([3, 5, 0, 1, 4, 2]), torch.tensor([2, 2, 5, 2, 0, 0])
    x_adv = attack(straight)
    torch.manual_seed(99)
    assert torch.equal(attack(straight), x_adv)
    assert torch.equal(attack(order), x_adv[order])
    assert torch.equal(attack(repeated), x_adv[repeated])
    assert torch.equal(attack(straight, seed=1), x_adv) == (name == "fgsm")


@every_attack
@pytest.mark.parametrize("scale", [1e-6, 1.0, 50.0, 1e4])
def test_a_linear_network_s_worst_case_is_reached(name, norm, scale):
    model, x, y, eps = Linear(scale), images(8, 4, 0.3, 0.7), labels(8), 0.2
    x_adv = ATTACKS[name](model, x, y, norm=norm, eps=eps, step_size=eps / 4, steps=20)
    w = (model.layer.weight[1] - model.layer.weight[0]).detach()
    strength = eps * float(w.abs().sum() if norm == "Linf" else w.norm())
    with torch.no_grad():
        gain = (margin_loss(model(x_adv), y) - margin_loss(model(x), y)) / scale
    assert float(gain.max()) < strength * (1 + 1e-5)
    if scale <= 1 or name not in ("pgd", "fgsm"):  # whose cross-entropy saturates: that is why margin exists
        assert float(gain.min()) > strength * (1 - (1e-5 if norm == "Linf" else 2e-3))


@pytest.mark.parametrize("norm", NORMS)
def test_maximize_equals_a_literal_loop(norm):
    x = images(5, 4).double()
    start = x + 0.2 * noise.normal(9, torch.arange(5), (3, 4, 4)).double()
    a = noise.normal(11, torch.arange(48), (48,)).double()
    eps, step_size = (0.1, 0.03) if norm == "Linf" else (0.5, 0.15)
    options = dict(norm=norm, eps=eps, step_size=step_size, steps=4, start=start)
    result = maximize(x, lambda z: ((z.flatten(1) @ a) ** 2).sum(1), **options)
    for i in range(5):
        centre, z = x[i].flatten(), start[i].flatten()
        for step in range(5):
            delta = z - centre
            delta = delta.clamp(-eps, eps) if norm == "Linf" else delta * min(1, eps / float(delta.norm()))
            z = (centre + delta).clamp(0, 1)
            gradient = 2 * a @ (a.T @ z)
            if step < 4:
                z = z + step_size * (gradient.sign() if norm == "Linf" else gradient / gradient.norm())
        assert torch.allclose(result[i].flatten(), z, atol=1e-6 if norm == "L2" else 1e-12)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(eps=8.0), "did you mean 8/255"),
        (dict(step_size=2.0), "did you mean 2/255"),
        (dict(eps=-0.1), "eps must be"),
        (dict(eps="8:255"), "no length in pixel units: '8:255'"),
        (dict(eps=float("nan")), "eps must be"),
        (dict(eps=float("inf"), norm="L2"), "eps must be"),
        (dict(step_size=float("nan")), "step_size must be"),
        (dict(steps=-1), "steps must be"),
        (dict(norm="linf"), "unknown norm: linf .one of Linf, L2"),
    ],
)
def test_nonsense_is_refused(options, says):
    threat = dict(eps=0.1, step_size=0.01, steps=1) | options
    with pytest.raises(InputError, match=says):
        maximize(images(), lambda z: z.flatten(1).sum(1), **threat)
    if "norm" in options or "eps" in options:
        for attack in ATTACKS.values():
            with pytest.raises(InputError, match=says):
                attack(Linear(), images(6, 4), labels(), **threat)


def test_a_radius_is_a_number_or_a_fraction():
    x, y, model = images(6, 4), labels(), Linear()
    for attack in ATTACKS.values():
        assert torch.equal(attack(model, x, y, eps="8/255"), attack(model, x, y, eps=8 / 255))
    threat = dict(step_size="2/255", steps=2)
    x_adv = maximize(x, lambda z: z.flatten(1).sum(1), eps="8/255", **threat)
    assert torch.equal(x_adv, maximize(x, lambda z: z.flatten(1).sum(1), eps=8 / 255, step_size=2 / 255, steps=2))


def test_images_that_were_normalised_or_not_divided_are_refused():
    for x, says in (
        (2 * images(4) - 1, r"pixels must be in \[0,1\].*the model normalises"),
        (images(4) * 1.5, r"pixels must be in \[0,1\]"),
        (images(4).byte(), "floats"),
    ):
        for attack in ATTACKS.values():
            with pytest.raises(InputError, match=says):
                attack(Linear(), x, labels(), eps=0.1)
        with pytest.raises(InputError, match=says):
            maximize(x, lambda z: z.flatten(1).sum(1), eps=0.1, step_size=0.1, steps=1)


def test_no_images_are_attacked_to_none():
    assert maximize(images(0), lambda z: z.flatten(1).sum(1), eps=0.1, step_size=0.1, steps=1).shape == images(0).shape


def test_a_radius_above_one_is_meant_in_l2():
    x = images(4)
    x_adv = maximize(x, lambda z: z.flatten(1).sum(1), norm="L2", eps=2.0, step_size=1.0, steps=2)
    exactly_inside(x, x_adv, "L2", 2.0)
    assert float((x_adv - x).flatten(1).norm(dim=1).min()) > 1.0


def test_evaluating_restores_each_submodule_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3)), nn.Identity())
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(AssertionError), evaluating(model):
        assert any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
