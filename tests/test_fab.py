"""Targeted FAB: its projection is exact, its result is near the boundary, and its verdicts are the true ones."""

import itertools

import numpy
import pytest
import torch
from scipy.optimize import linprog
from searches import (
    CLASSES,
    attack,
    curved,
    forward,
    images,
    linear,
    linear_case,
    linear_worst,
    need,
)

from gacd import noise
from gacd.attacks.fab import TargetedFAB, to_hyperplane
from gacd.attacks.search import ask, begin
from gacd.errors import InputError


def problems(n=60, size=7):
    """Points with coordinates on the box's faces, normals with zeros and equal entries, gaps of all sizes: float64."""
    point = noise.uniform(1, torch.arange(n), (size,)).double()
    point[::3, 0], point[::4, 1], point[::5] = 0, 1, point[::5].round()
    w = noise.normal(2, torch.arange(n), (size,)).double() * 10.0 ** (torch.arange(n).double()[:, None] % 9 - 6)
    w[::2, 2], w[::7], w[1::7] = 0, w[::7].sign(), 0.5 * w[1::7].abs().amax(1, keepdim=True)
    w[11] = 0
    most = (w.clamp_min(0) * (1 - point) - w.clamp_max(0) * point).sum(1)
    least = (w.clamp_max(0) * (1 - point) - w.clamp_min(0) * point).sum(1)
    share = noise.uniform(3, torch.arange(n)).double() * 1.3
    share[::9], share[5::9] = 0, 1e-9
    return point, w, torch.where(torch.arange(n) % 2 == 0, share * most, share * least)


def test_the_shortest_move_onto_a_hyperplane_against_linear_programming():
    point, w, gap = problems()
    move = to_hyperplane(point, w, gap)
    assert bool(((point + move >= 0) & (point + move <= 1 + 1e-15)).all())
    out_of_reach = 0
    for p, normal, g, m in zip(point.numpy(), w.numpy(), gap.numpy(), move.numpy(), strict=True):
        unit = float(numpy.abs(normal).max()) or 1.0
        d = len(p)  # of (move, length): least length with |move| <= length, point + move in the box, <w, move> = gap
        bounds = [(-v, 1 - v) for v in p] + [(0, None)]
        corner = numpy.hstack([numpy.vstack([numpy.eye(d), -numpy.eye(d)]), -numpy.ones((2 * d, 1))])
        best = linprog(
            [0.0] * d + [1.0],
            A_ub=corner,
            b_ub=numpy.zeros(2 * d),
            A_eq=[[*(normal / unit), 0.0]],
            b_eq=[g / unit],
            bounds=bounds,
        )
        if best.success:
            assert abs(m @ normal - g) <= 1e-12 * unit
            assert abs(numpy.abs(m).max() - best.fun) <= 1e-9
        else:  # then as far as the box goes
            out_of_reach += 1
            corner_move = numpy.where(normal * g > 0, 1 - p, -p) * (normal != 0)
            assert numpy.allclose(m, corner_move, atol=1e-12)
    assert 5 < out_of_reach < 30


def test_the_shortest_move_stands_alone():
    point, w, gap = problems(200, 700)
    together = to_hyperplane(point, w, gap)
    for i in range(0, 200, 7):
        assert torch.equal(to_hyperplane(point[i : i + 1], w[i : i + 1], gap[i : i + 1])[0], together[i])


def test_the_shortest_move_in_the_precision_of_images_whatever_the_search_is_in():
    """Half of what the box allows is closed to float32's rounding."""
    point, w = images(50).flatten(1), noise.normal(3, torch.arange(50), (48,)).float()
    gap = 0.5 * (w.clamp_min(0) * (1 - point) - w.clamp_max(0) * point).sum(1)
    with torch.autocast("cpu", torch.bfloat16):
        move = to_hyperplane(point, w, gap)
    assert torch.allclose((w.double() * move.double()).sum(1), gap.double(), rtol=1e-5)


def test_an_iteration_equals_the_papers():
    """From the image over the hyperplane by 5 %; a mistake is taken back by a tenth; then a tenth's weight on x."""
    x = images(12, 0.3, 0.7).double()
    y = linear()(x).argmax(1)
    search = TargetedFAB(eps=0.05, targets=1)
    rows = begin(search, x, y, torch.arange(12), linear()(x))
    target = linear()(x).argsort(dim=1, descending=True)[:, 1]
    weight = noise.normal(1, torch.arange(10), (48,)).double()
    w = weight[target] - weight[y]
    margin = (linear()(x).gather(1, y[:, None]) - linear()(x).gather(1, target[:, None]))[:, 0]
    step = (margin / w.abs().sum(1))[:, None] * w.sign()  # no face of the box is near
    forward(search, linear(), rows)
    first = x.flatten(1) + 1.05 * step
    assert torch.allclose(rows["z"].flatten(1), first, rtol=0, atol=1e-12)
    assert rows["t"].tolist() == [1] * 12
    forward(search, linear(), rows)
    assert torch.allclose(rows["z"].flatten(1), x.flatten(1) + 0.9 * 1.05 * step, rtol=0, atol=1e-12)
    assert rows["t"].tolist() == [2] * 12
    forward(search, linear(), rows)
    here = x.flatten(1) + 0.945 * step
    length = (0.055 * step.abs().amax(1), step.abs().amax(1))
    alpha = (length[0] / (length[0] + length[1])).clamp_max(0.1)[:, None]
    second = (here + 1.05 * 0.055 * step) * (1 - alpha) + (x.flatten(1) + 1.05 * step) * alpha
    assert torch.allclose(rows["z"].flatten(1), second, rtol=0, atol=1e-12)
    assert torch.allclose(rows["best"].flatten(1), first, rtol=0, atol=1e-12)


def test_at_most_a_tenth_of_a_move_is_aimed_from_the_image():
    """From three times as far as the boundary: two thirds by the lengths of the moves."""
    x = images(12, 0.4, 0.6).double()
    y = linear()(x).argmax(1)
    search = TargetedFAB(targets=1)
    rows = begin(search, x, y, torch.arange(12), linear()(x))
    _, value, gradient = ask(search, linear(), rows, "gradient")
    step = (-value / gradient.abs().sum((1, 2, 3)))[:, None, None, None] * gradient.sign()
    rows["z"] = x + 3 * step
    forward(search, linear(), rows)
    expected = 0.9 * (x + 3 * step - 1.05 * 2 * step) + 0.1 * (x + 1.05 * step)
    assert torch.allclose(rows["z"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 50.0, 1e4])
def test_a_linear_network_s_verdicts_are_the_true_ones(scale):
    x, y, eps, robust = linear_case()
    search = TargetedFAB(eps=eps, steps=12)
    right, rows = attack(search, linear(scale), x, y)
    assert torch.equal(right, robust)
    found = rows["best"] - x
    nearest = linear_worst(x, y, found.abs().flatten(1).amax(1).double()[:, None, None, None] * 0.98)
    assert bool((nearest < 0).all())  # no mistake lies 2 % nearer than the one found


def test_a_mistake_inside_the_ball_is_found_though_later_points_are_none():
    x, y, eps, robust = linear_case()
    search = TargetedFAB(eps=eps, steps=12)
    _, rows = attack(search, linear(), x, y)
    inside = rows["distance"] <= eps
    assert torch.equal(inside, ~robust)
    assert bool((linear()(search.found(rows)).argmax(1) != y)[inside].all())
    asked = begin(search, x, y, torch.arange(len(x)), linear()(x))
    forward(search, linear(), asked)
    outside = (asked["z"].double() - x.double()).abs().flatten(1).amax(1) > eps
    assert torch.equal(search.candidates(asked), ~outside)
    assert 0 < int(outside.sum()) < len(x)


def test_iterations_and_forwards():
    """Each is a forward with a gradient, and one without to look at what it led to."""
    x = images(4)
    y = curved(x).argmax(1)
    search, asked = TargetedFAB(eps=0.01, steps=10, targets=3), []

    def never(z):
        return 0 * linear()(z) + torch.nn.functional.one_hot(y, 10)

    rows = begin(search, x, y, torch.arange(4), never(x))
    while bool((rows["t"] < search.steps).any()):
        asked.append(ask(search, never, rows, need(search, rows))[2] is not None)
        forward(search, never, rows)
    assert asked == [True, False] * 10
    assert torch.equal(search.found(rows), x)


def test_a_look_that_finds_nothing_leaves_the_point():
    x = images(4)
    y, search = curved(x).argmax(1), TargetedFAB(eps=0.01, steps=10, targets=3)
    rows = begin(search, x, y, torch.arange(4), curved(x))
    rows["t"], rows["z"] = rows["t"] + 1, x + 1e-6
    assert torch.equal(forward(search, curved, rows), y)
    assert torch.equal(rows["z"], x + 1e-6)


def test_a_logit_that_is_not_finite_is_noticed_where_the_gradient_is():
    x = images(3)
    y, never = linear()(x).argmax(1), linear()(x).argmin(1)  # aimed at by no target

    def model(z):
        bad = torch.tensor([0.0, torch.inf, 0.0])[:, None]
        return torch.where(torch.nn.functional.one_hot(never, CLASSES).bool(), linear()(z) - bad, linear()(z))

    found = TargetedFAB(steps=3, targets=2).found(attack(TargetedFAB(steps=3, targets=2), model, x, y)[1])
    assert found.flatten(1).isnan().any(1).tolist() == [False, True, False]


def test_an_infinite_gradient_is_noticed():
    """That of a square root at 0, in a network that takes NaN for 0: every logit is finite."""
    x = images(3, 0.3, 0.7)
    x[1, 0, 0, 0] = 0

    def model(z):
        z = torch.where(z.isnan(), 0, z)
        return linear()(z) + 1e-3 * torch.arange(CLASSES) * z[:, 0, 0, :1].sqrt()

    search = TargetedFAB(steps=3, targets=2)
    found = search.found(attack(search, model, x, model(x).argmax(1))[1])
    assert found.flatten(1).isnan().any(1).tolist() == [False, True, False]


def test_l2_is_refused():
    with pytest.raises(InputError, match="Linf only: L2"):
        TargetedFAB(norm="L2")


def test_random_starts_lie_half_a_radius_away():
    x, eps = images(8, 0.4, 0.6), 0.2
    y = curved(x).argmax(1)

    def start(seed=0, restart=1, run=0):
        search = TargetedFAB(eps=eps, seed=seed, restart=restart, targets=3)
        return begin(search, x, y, torch.arange(8), curved(x), torch.full((8,), run))["z"]

    away = (start() - x).abs().flatten(1).amax(1)
    assert torch.allclose(away, torch.full((8,), eps / 2), rtol=1e-5)
    assert 0.3 < float((start() > x).double().mean()) < 0.7
    starts = [start(), start(seed=1), start(restart=2), start(run=1), start(run=2)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(starts, 2))
    assert torch.equal(start(restart=0), x)


def test_each_run_has_its_target():
    x = images(5, 0.3, 0.7)
    y = curved(x).argmax(1)
    search = TargetedFAB(eps=0.05, steps=3, targets=4, restart=1)
    order, run = curved(x).argsort(dim=1, descending=True)[:, 1:], torch.tensor([2, 0, 3, 1, 2])
    rows = begin(search, x, y, torch.arange(5), curved(x), run)
    for _ in range(search.steps):
        logits, value, _ = ask(search, curved, rows, need(search, rows))
        aim, true = (logits.gather(1, k[:, None])[:, 0] for k in (order.gather(1, run[:, None])[:, 0], y))
        assert torch.equal(value, aim - true)
        forward(search, curved, rows)
