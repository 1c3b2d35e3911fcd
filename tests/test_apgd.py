"""Auto-PGD against closed-form, exhaustive and literal twins."""

import itertools
import math

import pytest
import torch
from searches import (
    attack,
    curved,
    forward,
    images,
    linear,
    linear_case,
)
from torch.nn import functional as F

from gacd import noise
from gacd.attacks.apgd import APGD, TargetedAPGD, dlr_loss, targeted_dlr_loss
from gacd.attacks.search import ask, begin
from gacd.attacks.search import run as run_whole
from gacd.errors import InputError


def bumpy(x):
    """Four classes on the plane (B,1,1,2) with round and wavy borders, and their labels' margins."""
    p = x.flatten(1) * 4
    centres = p.new_tensor([[1, 1], [3, 1.2], [1.1, 3], [2.9, 3.1]])
    return torch.sin(2 * p.sum(1))[:, None] * p.new_tensor([0.3, -0.2, 0.1, 0.0]) - ((p[:, None] - centres) ** 2).sum(2)


def plane_case(eps=0.06):
    """Images (400,1,1,2) and labels, eps, and whether an exhaustive grid of the ball finds a mistake by 0.01."""
    side = torch.linspace(0.02, 0.98, 20)
    x = torch.cartesian_prod(side, side).view(-1, 1, 1, 2)
    y = bumpy(x).argmax(1)
    grid = torch.cartesian_prod(*[torch.linspace(-eps, eps, 61)] * 2)
    logits = bumpy((x.view(-1, 1, 2) + grid).clamp(0, 1).view(-1, 1, 1, 2)).view(400, -1, 4)
    wrong = logits.clone()
    wrong[torch.arange(400), :, y] = -torch.inf
    margin = (wrong.amax(2) - logits[torch.arange(400), :, y]).amax(1)
    keep = margin.abs() > 0.01  # the grid is sure
    assert 50 < int((margin[keep] > 0).sum()) < 250
    return x[keep], y[keep], eps, margin[keep] < 0


class Twin:
    """One image's APGD, written out move by move as in the paper, at the code's checkpoints."""

    def __init__(self, model, loss, x, y, z, eps, n):
        def f(z):
            z = z.detach().requires_grad_()
            value = loss(model(z[None]), y[None]).sum()
            return float(value.detach()), torch.autograd.grad(value, z)[0]

        def clip(z):
            return torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0, 1)

        values, gradients, points = [f(z)[0]], [f(z)[1]], [z]
        checkpoints, width = [0], 22
        while checkpoints[-1] < n:
            checkpoints.append(checkpoints[-1] + width)
            width = max(width - 3, 6)
        self.steps, self.restarts, eta, previous, top, last_top, last_eta = [], [], 2 * eps, z, 0, values[0], None
        for k in range(n):
            here, gradient = points[k], gradients[k]
            if k in checkpoints[1:]:
                j = checkpoints[checkpoints.index(k) - 1]
                rises = sum(values[i + 1] > values[i] for i in range(j, k))
                unchanged = last_eta == eta and values[top] == last_top
                last_eta, last_top = eta, values[top]
                if rises <= 0.75 * (k - j) or unchanged:
                    eta, here, gradient = eta / 2, points[top], gradients[top]
                    self.restarts.append((k, here))
            z = clip(here + eta * gradient.sign())
            share = 1.0 if k == 0 else 0.75
            points.append(clip(here + share * (z - here) + (1 - share) * (here - previous)))
            previous = here
            value, gradient = f(points[-1])
            values.append(value)
            gradients.append(gradient)
            top = k + 1 if value > values[top] else top
            self.steps.append(eta)
        self.points, self.best = points, points[top]


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_steps_and_restarts_equal_a_literal_twin(loss):
    x = images(8, 0.3, 0.7).double()
    y, eps = curved(x).argmax(1), 0.08
    search = APGD(loss=loss, eps=eps)
    rows = begin(search, x, y, torch.arange(8), curved(x))
    starts, steps, moved_from, asked = rows["z"], [], [], []
    for _ in range(search.steps):
        asked.append(rows["z"])
        forward(search, curved, rows)
        steps.append(rows["step"])
        moved_from.append(rows["previous"])
    restarts = 0
    for i in range(8):
        twin = Twin(curved, {"ce": F.cross_entropy, "dlr": dlr_loss}[loss], x[i], y[i], starts[i], eps, 100)
        assert [float(step[i]) for step in steps[:100]] == twin.steps
        for k, point in twin.restarts:
            assert torch.allclose(moved_from[k][i], point, rtol=0, atol=1e-12)
        assert torch.allclose(asked[100][i], twin.points[100], rtol=0, atol=1e-12)
        assert torch.allclose(search.found(rows)[i], twin.best, rtol=0, atol=1e-12)
        restarts += len(twin.restarts)
    assert 8 < restarts < 64  # neither rule always holds


@pytest.mark.parametrize("scale", [1e-6, 1.0, 50.0, 1e4])
def test_a_linear_network_s_verdicts_are_the_true_ones(scale):
    x, y, eps, robust = linear_case()
    assert torch.equal(attack(TargetedAPGD(eps=eps, steps=30), linear(scale), x, y)[0], robust)
    right = torch.ones(len(x), dtype=torch.bool)
    for restart in range(3):  # towards whichever class leads: a start may lead to the wrong one
        right &= attack(APGD(loss="dlr", eps=eps, restart=restart), linear(scale), x, y)[0]
    assert torch.equal(right, robust)


def test_the_l2_worst_case_of_a_linear_network_is_reached():
    x, eps = images(8, 0.3, 0.7), 0.2
    model = linear(classes=2)
    y = model(x).argmax(1)
    w = noise.normal(1, torch.arange(2), (48,))
    found = APGD(norm="L2", eps=eps, loss="dlr").found(attack(APGD(norm="L2", eps=eps, loss="dlr"), model, x, y)[1])
    margin = [model(z)[torch.arange(8), 1 - y] - model(z)[torch.arange(8), y] for z in (x, found)]
    assert torch.allclose(margin[1] - margin[0], eps * (w[1] - w[0]).norm().expand(8), rtol=1e-3)


def test_each_run_has_its_target_and_its_start():
    x = images(5)
    y = curved(x).argmax(1)
    search = TargetedAPGD(eps=0.05, steps=4)
    assert (search.runs, search.steps) == (9, 5)
    order, starts = curved(x).argsort(dim=1, descending=True)[:, 1:], []
    for run in range(9):
        rows = begin(search, x, y, torch.arange(5), curved(x), torch.full((5,), run))
        starts.append(rows["z"])
        for _ in range(search.steps):
            logits, value, _ = ask(search, curved, rows, "gradient")
            assert torch.equal(value, targeted_dlr_loss(logits, y, order[:, run]))
            forward(search, curved, rows)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(starts, 2))
    assert (TargetedAPGD(classes=3).runs, TargetedAPGD(classes=100).runs) == (2, 9)


def test_the_ratio_losses_against_their_definitions():
    logits = 3 * noise.normal(5, torch.arange(40), (6,)).double()
    y, target = torch.arange(40) % 6, (torch.arange(40) + 1 + torch.arange(40) % 5) % 6
    for z, label, aim, a, b in zip(
        logits.tolist(), y, target, dlr_loss(logits, y), targeted_dlr_loss(logits, y, target), strict=True
    ):
        order = sorted(z, reverse=True)
        best = max(v for k, v in enumerate(z) if k != label)
        assert math.isclose(a, -(z[label] - best) / (order[0] - order[2]), rel_tol=1e-9)
        assert math.isclose(b, -(z[label] - z[aim]) / (order[0] - (order[2] + order[3]) / 2), rel_tol=1e-9)
    few, of = logits[:, :2], torch.arange(40) % 2
    assert torch.equal(dlr_loss(few, of), few.gather(1, 1 - of[:, None])[:, 0] - few.gather(1, of[:, None])[:, 0])
    assert torch.equal(targeted_dlr_loss(few, of, 1 - of), dlr_loss(few, of))
    assert (
        dlr_loss(logits.bfloat16(), y).dtype == targeted_dlr_loss(logits.bfloat16(), y, target).dtype == torch.float32
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: APGD(loss="margin"), "unknown loss: margin .one of ce, dlr"),
        (lambda: APGD(eps=8.0), "did you mean 8/255"),
        (lambda: TargetedAPGD(targets=0), "needs a target"),
        (lambda: TargetedAPGD(classes=1), "2 classes"),
        (lambda: attack(TargetedAPGD(classes=7), linear(), images(2), torch.arange(2)), "another number of classes: 7"),
    ],
)
def test_nonsense_is_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_few_classes():
    x = images(6)
    for classes in (2, 3):
        model = linear(classes=classes)
        y = model(x).argmax(1)
        for search in (APGD(loss="dlr", eps=0.5, steps=20), TargetedAPGD(eps=0.5, steps=20, classes=classes)):
            assert not attack(search, model, x, y)[0].any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_starts_lie_on_the_balls_surface(norm):
    x, eps = images(8, 0.4, 0.6), 0.2
    rows = begin(APGD(norm=norm, eps=eps), x, torch.arange(8), torch.arange(8), None)
    away = (rows["z"] - x).flatten(1).norm(p=torch.inf if norm == "Linf" else 2, dim=1)
    assert torch.allclose(away, torch.full((8,), eps), rtol=1e-5)
    assert 0.3 < float((rows["z"] > x).double().mean()) < 0.7
    far = (rows["z"] - x).abs().flatten(1) > 0.99 * eps
    assert norm == "L2" or far.sum(1).double().mean() < 3  # coordinates on the ball's faces, 48 * 0.01 expected


def test_the_strongest_point_of_all_targets_is_found():
    x, eps = images(12), 0.05
    y, search = curved(x).argmax(1), TargetedAPGD(eps=eps, steps=6, targets=4)
    margins, asked = [], []
    for run in range(4):
        rows = begin(search, x, y, torch.arange(12), curved(x), torch.full_like(y, run))
        for _ in range(search.steps):
            logits = curved(rows["z"])
            margins.append(logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0])
            asked.append(rows["z"])
            forward(search, curved, rows)
    first = torch.stack(margins).argmax(0)
    strongest = torch.stack(asked)[first, torch.arange(12)]
    assert torch.equal(search.found(attack(search, curved, x, y)[1]), strongest)
    assert torch.equal(run_whole(search, curved, x, y, torch.arange(12)), strongest)
    assert len(set((first // 7).tolist())) > 1


def test_a_network_that_breaks_in_a_later_run_is_noticed():
    x, asked = images(3), []
    y = curved(x).argmax(1)

    def model(z):
        asked.append(len(z))
        return curved(z) / (len(asked) < 10)

    found = run_whole(TargetedAPGD(eps=0.05, steps=6, targets=2), model, x, y, torch.arange(3))
    assert len(asked) == 15 and bool(found.isnan().flatten(1).any(1).all())


def test_of_runs_that_are_all_alike_the_first_gives_the_result():
    x, y, search = images(3), torch.full((3,), 4), TargetedAPGD(eps=0.05, steps=6, targets=2)
    flat = lambda z: 0 * curved(z) + torch.eye(10)[4]  # noqa: E731
    start = begin(search, x, y, torch.arange(3), flat(x))["z"]
    assert torch.equal(run_whole(search, flat, x, y, torch.arange(3)), start)
