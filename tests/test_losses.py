"""Losses against literal loops in float64, and the Sinkhorn plan against POT's."""

import math

import pytest
import torch
from torch.nn import functional as F

from gacd.losses import cosine_cost, cross_entropy, kl, magnitude, margin_loss, reweighted_nce, sinkhorn, transport


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row):
    top = max(row)
    e = [math.exp(v - top) for v in row]
    return [v / sum(e) for v in e]


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_kl_cross_entropy_and_margin_equal_their_loops(scale):
    p, q, y = numbers(7, 5, scale=scale), numbers(7, 5, seed=1, scale=scale), torch.tensor([0, 4, 2, 2, 1, 3, 0])
    for i, label in enumerate(y.tolist()):
        a, b = softmax(p[i].tolist()), softmax(q[i].tolist())
        expected = sum(u * math.log(u / v) for u, v in zip(a, b, strict=True))
        assert float(kl(p, q)[i]) == pytest.approx(expected, rel=1e-10)
        assert float(cross_entropy(q, y)[i]) == pytest.approx(-math.log(b[label]), rel=1e-10)
        wrong = max(v for k, v in enumerate(q[i].tolist()) if k != label)
        assert float(margin_loss(q, y)[i]) == pytest.approx(wrong - float(q[i, label]), rel=1e-12)
    assert torch.equal(margin_loss(q, y) > 0, q.argmax(1) != y)
    for value in (kl(p, q), cross_entropy(q, y), margin_loss(q, y)):
        assert value.shape == (7,)
        assert value.dtype == torch.float64


def test_a_masked_class_has_no_part_in_the_magnitude_of_logits():
    z = torch.tensor([[3.0, -2.0, -40.0], [3.0, -2.0, -1e9], [1e9, -2.0, 1.0], [0.0, 0.0, 0.0]])
    assert magnitude(z).tolist() == [40.0, 3.0, 1e9, 0.0]
    assert magnitude(torch.tensor([[1.0, math.nan]])).isnan().all()
    assert magnitude(torch.tensor([[-5.0]])).tolist() == [5.0]


def test_both_sides_of_kl_carry_gradient():
    p, q = numbers(3, 4).requires_grad_(), numbers(3, 4, seed=1).requires_grad_()
    kl(p, q).sum().backward()
    a, b = p.detach().softmax(1), q.detach().softmax(1)
    ratio = a.log() - b.log()
    assert torch.allclose(q.grad, b - a, atol=1e-12)
    assert torch.allclose(p.grad, a * (ratio - (a * ratio).sum(1, keepdim=True)), atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e6, 1e30])
def test_extreme_logits_give_neither_nan_nor_infinity(scale):
    q = (numbers(6, 4) * scale).float().requires_grad_()
    p, y = (numbers(6, 4, seed=2) * scale).float().requires_grad_(), torch.tensor([0, 1, 2, 3, 0, 1])
    value = kl(p, q) + cross_entropy(q, y) + margin_loss(q, y)
    value.sum().backward()
    assert bool(value.isfinite().all() and p.grad.isfinite().all() and q.grad.isfinite().all())
    assert bool((kl(p, p) == 0).all())


def test_nce_equals_its_loop():
    positive, negatives, w = numbers(4), numbers(4, 9, seed=1, scale=3.0), numbers(4, seed=2).sigmoid()
    keep = (numbers(4, 9, seed=3) > 0).double()
    for i, value in enumerate(reweighted_nce(positive, negatives, keep, w).tolist()):
        h = [1 / (1 + math.exp(-float(u))) for u in negatives[i]]
        expected = -math.log(1 / (1 + math.exp(-float(positive[i]))))
        expected -= sum(math.log(1 - h[j]) for j in range(9) if keep[i, j])
        assert value == pytest.approx(float(w[i]) * expected, rel=1e-12)


def test_nce_far_from_zero_is_linear_and_finite():
    u = torch.tensor([-1e4, -200.0, 200.0, 1e4], requires_grad=True)
    value = reweighted_nce(u, u[:, None], torch.ones(4, 1), torch.ones(4))
    value.sum().backward()
    assert torch.allclose(value, u.detach().abs())
    assert torch.allclose(u.grad, u.detach().sign())
    masked = reweighted_nce(u, u[:, None], torch.zeros(4, 1), torch.ones(4))
    assert torch.allclose(masked, (-u.detach()).clamp_min(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    p, q, y = numbers(6, 8, scale=4.0).to(dtype), numbers(6, 8, seed=1, scale=4.0).to(dtype), torch.arange(6)
    for half, single in (
        (kl(p, q), kl(p.float(), q.float())),
        (cross_entropy(q, y), cross_entropy(q.float(), y)),
        (margin_loss(q, y), margin_loss(q.float(), y)),
        (transport(p, q), transport(p.float(), q.float())),
    ):
        assert half.dtype == torch.float32
        assert torch.equal(half, single)


def test_transport_is_computed_in_float32_under_autocast():
    a = numbers(8, 16).abs().float()
    b = a + 0.05 * numbers(8, 16, seed=1).float()
    expected = transport(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        value = transport(a, b)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.filterwarnings("ignore")  # POT's sources hold invalid escapes
@pytest.mark.parametrize(("n", "m", "entropy"), [(8, 8, 0.05), (5, 9, 0.05), (8, 8, 0.5)])
def test_sinkhorn_equals_pot(n, m, entropy):
    ot = pytest.importorskip("ot")
    cost = cosine_cost(numbers(n, 6), numbers(m, 6, seed=1))
    plan = sinkhorn(cost, entropy=entropy, iterations=5000, tolerance=1e-14)
    a, b = [1 / n] * n, [1 / m] * m
    theirs = ot.sinkhorn(a, b, cost.numpy(), entropy, method="sinkhorn_log", numItermax=5000, stopThr=1e-14)
    assert torch.allclose(plan, torch.as_tensor(theirs), rtol=1e-5, atol=1e-9)
    assert torch.allclose(plan.sum(0), torch.full((m,), 1 / m, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(plan.sum(1), torch.full((n,), 1 / n, dtype=torch.float64), rtol=1e-6)


def test_sinkhorn_equals_the_iteration_in_the_open():
    cost, entropy = cosine_cost(numbers(4, 6), numbers(4, 6, seed=1)), 0.1
    kernel, v = (-cost / entropy).exp(), torch.full((4,), 1.0, dtype=torch.float64)
    for iterations in (1, 2, 3):
        u = 1 / 4 / (kernel @ v)
        v = 1 / 4 / (kernel.T @ u)
        plan = sinkhorn(cost, entropy=entropy, iterations=iterations, tolerance=0)
        assert torch.allclose(plan, u[:, None] * kernel * v, rtol=1e-10)


def test_sinkhorn_stops_when_the_potentials_rest():
    cost = cosine_cost(numbers(6, 6), numbers(6, 6, seed=1))
    full = sinkhorn(cost, entropy=0.1, iterations=1000, tolerance=0)
    kernel, u, v = (-cost / 0.1).exp(), torch.ones(6, 1, dtype=torch.float64), torch.ones(1, 6, dtype=torch.float64)
    moved = math.inf
    while moved >= 0.1:
        before, u = u, 1 / 6 / (kernel * v).sum(1, keepdim=True)
        v, moved = 1 / 6 / (kernel * u).sum(0, keepdim=True), float((0.1 * (u.log() - before.log())).abs().sum())
    assert torch.allclose(sinkhorn(cost, entropy=0.1, iterations=1000, tolerance=0.1), u * kernel * v, rtol=1e-10)
    loose, tight = (sinkhorn(cost, entropy=0.1, iterations=1000, tolerance=t) for t in (0.1, 1e-6))
    assert float((tight - full).abs().max()) < 1e-6 < float((loose - full).abs().max())
    cold = sinkhorn(cost * 1e4, entropy=0.01, iterations=100, tolerance=0.1)  # exp(-cost / entropy) underflows
    assert torch.allclose(cold.sum(0), torch.full((6,), 1 / 6, dtype=torch.float64))


def test_cost_is_one_minus_the_cosine():
    a, b = numbers(3, 5), numbers(4, 5, seed=1)
    for i in range(3):
        for j in range(4):
            expected = max(0.0, 1 - float(a[i] @ b[j] / (a[i].norm() * b[j].norm())))
            assert float(cosine_cost(a, b)[i, j]) == pytest.approx(expected, abs=1e-12)
    assert float(cosine_cost(a.float(), a.float()).min()) >= 0


def test_transport_sums_to_the_plan_s_cost_and_its_gradient_takes_the_plan_as_given():
    a, b = numbers(6, 5).requires_grad_(), numbers(6, 5, seed=1).requires_grad_()
    plan = sinkhorn(cosine_cost(a, b).detach(), entropy=0.01, iterations=100, tolerance=0.1)
    value = transport(a, b)
    value.sum().backward()
    assert value.shape == (6,)
    assert b.grad is None
    by_hand, expected = a.detach().clone().requires_grad_(), 0.0
    for i in range(6):
        for j in range(6):
            cosine = F.cosine_similarity(by_hand[i], b.detach()[j], dim=0)
            expected = expected + plan[i, j] * (1 - cosine).clamp_min(0)
    expected.backward()
    assert value.sum().item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(a.grad, by_hand.grad, atol=1e-12)
    assert float(a.grad.norm()) > 1e-3


def test_transport_pairs_a_row_with_itself_wherever_it_stands():
    a = torch.eye(6, dtype=torch.float64) + 0.01 * numbers(6, 6)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    options = dict(iterations=1000, tolerance=1e-12)
    assert float(transport(a, a[order], **options).sum()) < 1e-10
    b = numbers(6, 6, seed=1)
    assert torch.allclose(transport(a[order], b, **options), transport(a, b, **options)[order], atol=1e-9)
