"""How a search of a row begins and moves: starts, literal twins, what is asked for without saying so."""

import pytest
import torch
from searches import curved, images

from gacd import noise
from gacd.attacks import fgsm, margin, maximize, pgd
from gacd.attacks.search import PGD, Search, ask, begin, uniform_in_ball
from gacd.losses import cross_entropy, margin_loss


class Network(torch.nn.Module):
    def forward(self, z):
        return curved(z)


def test_starts_are_uniform_on_each_images_ball():
    x, eps, n = torch.zeros(4000, 1, 1, 3), 0.2, 4000
    cube = uniform_in_ball(x, "Linf", eps, 1, torch.arange(n)).flatten(1).double() / eps
    assert float(cube.abs().max()) <= 1
    assert torch.allclose(cube.sort(0).values, torch.linspace(-1, 1, n).double()[:, None].expand(n, 3), atol=0.06)
    ball = uniform_in_ball(x, "L2", eps, 1, torch.arange(n)).flatten(1).double() / eps
    share = ball.norm(dim=1).sort().values ** 3  # of the ball's volume, further inside
    assert torch.allclose(share, torch.linspace(0, 1, n).double(), atol=0.03)
    side = (ball / ball.norm(dim=1, keepdim=True)).sort(0).values  # a sphere's shadow on an axis is uniform
    assert torch.allclose(side, torch.linspace(-1, 1, n).double()[:, None].expand(n, 3), atol=0.06)
    for v in (cube, ball):
        assert float((torch.corrcoef(v.T) - torch.eye(3)).abs().max()) < 0.06
    around = uniform_in_ball(x + 0.5, "L2", eps, 1, torch.arange(n)).flatten(1).double()
    assert torch.allclose(around, 0.5 + eps * ball, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("loss", [cross_entropy, margin_loss])
def test_pgd_equals_a_literal_loop(norm, loss):
    x = images(6).double()
    y, eps, step_size = curved(x).argmax(1), 0.1 if norm == "Linf" else 0.5, 0.03 if norm == "Linf" else 0.2
    search = PGD(norm=norm, eps=eps, step_size=step_size, steps=5, loss=loss)
    rows = begin(search, x, y, torch.arange(6), None)
    for i in range(6):
        alone = begin(search, x[i : i + 1], y[i : i + 1], torch.tensor([i]), None)
        z = alone["z"][0]
        for _ in range(5):
            z = z.detach().requires_grad_()
            (g,) = torch.autograd.grad(loss(curved(z[None]), y[i : i + 1]).sum(), z)
            move = z.detach() + step_size * (g.sign() if norm == "Linf" else g / g.norm()) - x[i]
            move = move.clamp(-eps, eps) if norm == "Linf" else move * min(1.0, eps / float(move.norm()))
            z = (x[i] + move).clamp(0, 1)
        for _ in range(5):
            search.step(alone, *ask(search, curved, alone, "gradient"))
        assert torch.allclose(alone["z"][0], z, rtol=0, atol=1e-9)
        assert not torch.equal(alone["z"], rows["z"][i : i + 1])


def test_what_is_not_said():
    """8/255 exactly, steps of 2/255, twenty of them, seed 0, an index made from the pixels."""
    x = images(5)
    y, model = curved(x).argmax(1), Network()
    said = dict(norm="Linf", eps=8 / 255, step_size=2 / 255, steps=20, seed=0, index=noise.fingerprint(x))
    for attack in (pgd, margin, fgsm):
        assert torch.equal(attack(model, x, y), attack(model, x, y, **said))
    assert torch.equal(pgd(model, x, y, loss=margin_loss), margin(model, x, y))
    assert float((fgsm(model, x, y).double() - x.double()).abs().max()) > 8 / 255 - 1e-7
    assert (Search().eps, PGD().eps, PGD().step_size, PGD().steps) == (8 / 255, 8 / 255, 2 / 255, 20)


def test_starts_depend_on_the_index_and_the_loss():
    x = images(5)
    y, model, still = curved(x).argmax(1), Network(), dict(step_size=0.0, steps=1)
    start = pgd(model, x, y, index=torch.arange(5), **still)
    assert torch.equal(start, pgd(model, x, y, index=torch.arange(5), **still))
    other = pgd(model, x, y, index=torch.tensor([0, 7, 2, 8, 4]), **still)
    assert [torch.equal(a, b) for a, b in zip(start, other, strict=True)] == [True, False, True, False, True]
    assert not torch.equal(start, margin(model, x, y, index=torch.arange(5), **still))
    same = pgd(model, x[:1].expand(3, -1, -1, -1), y[:1].expand(3), index=torch.tensor([1, 1, 2]), **still)
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_maximize_works_without_gradients_and_at_any_scale(norm):
    x, options = images(4, 0.3, 0.7), dict(norm=norm, eps=0.1, step_size=0.03, steps=3)
    a = noise.normal(3, torch.arange(48))
    plain = maximize(x, lambda z: z.flatten(1) @ a, **options)
    with torch.no_grad():
        assert torch.equal(maximize(x, lambda z: z.flatten(1) @ a, **options), plain)
    tiny = maximize(x, lambda z: z.flatten(1) @ (a * 1e-30), **options)  # squares vanish in float32
    assert torch.allclose(tiny, plain, rtol=0, atol=1e-6)
    uneven = maximize(x, lambda z: (z.flatten(1) @ a) * torch.tensor([1.0, 1e3, 1e-3, 1.0]), **options)
    assert torch.allclose(uneven, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_shows(norm, bad):
    factor = torch.tensor([1.0, bad, 1.0])
    x_adv = maximize(images(3), lambda z: z.flatten(1).sum(1) * factor, norm=norm, eps=0.1, step_size=0.1, steps=1)
    assert x_adv.flatten(1).isnan().any(1).tolist() == [False, True, False]
