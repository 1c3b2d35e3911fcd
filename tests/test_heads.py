"""Heads against scikit-learn's, against loops and against each other."""

import pytest
import torch
from torch.nn import functional as F

from gacd import noise
from gacd.heads import prototypes, regress, ridge, sgd

N, D, K = 120, 6, 3
Y = torch.arange(N) % K
CENTRES = noise.normal(1, torch.arange(K), (D,))
# Features of unequal scale and with a mean far from zero, as after a ReLU.
FEATURES = (noise.normal(2, torch.arange(N), (D,)) + CENTRES[Y]) * torch.tensor([1, 1, 0.3, 0.3, 2, 1.0]) + 4


def predictions(head, f=FEATURES):
    with torch.no_grad():
        return head(f)


@pytest.mark.parametrize("strength", [0.1, 1e-6, 10.0])
def test_ridge_equals_scikit_learn_s(strength):
    from sklearn.linear_model import Ridge

    f = FEATURES.double()
    alpha = strength * float(f.var(0, unbiased=False).mean()) * N
    theirs = Ridge(alpha=alpha).fit(f.numpy(), F.one_hot(Y, K).double().numpy())
    head = ridge(FEATURES, Y, K, strength)
    assert torch.allclose(head.weight.double(), torch.as_tensor(theirs.coef_), atol=1e-5)
    assert torch.allclose(head.bias.double(), torch.as_tensor(theirs.intercept_), atol=1e-5)
    assert not any(p.requires_grad for p in head.parameters())


def test_ridge_survives_dead_features_and_absent_classes():
    head = ridge(torch.cat([FEATURES, torch.zeros(N, 2)], 1), Y, K + 2)
    assert head.weight.shape == (K + 2, D + 2)
    assert torch.allclose(head.weight[:K, :D], ridge(FEATURES, Y, K, 0.1 * D / (D + 2)).weight, atol=1e-5)
    assert float(head.weight[K:].abs().max()) < 1e-6
    assert bool(ridge(torch.ones(4, 2), torch.arange(4) % 2, 2).weight.isfinite().all())


def objective(weight, bias, weight_decay):
    return F.cross_entropy(FEATURES.double() @ weight.T + bias, Y) + weight_decay / 2 * weight.square().sum()


@pytest.mark.parametrize("weight_decay", [1.0, 0.1, 0.001])
def test_regress_reaches_scikit_learn_s_optimum(weight_decay):
    from sklearn.linear_model import LogisticRegression

    head = regress(FEATURES, Y, K, weight_decay)
    weight, bias = (p.double().requires_grad_() for p in (head.weight, head.bias))
    value = objective(weight, bias, weight_decay)
    value.backward()
    assert float(weight.grad.norm() + bias.grad.norm()) < 1e-3
    theirs = LogisticRegression(C=1 / (N * weight_decay), tol=1e-8, max_iter=5000).fit(FEATURES.numpy(), Y.numpy())
    best = objective(*(torch.as_tensor(v).double() for v in (theirs.coef_, theirs.intercept_)), weight_decay).item()
    assert value.item() == pytest.approx(best, abs=1e-5)
    assert torch.allclose(weight.detach(), torch.as_tensor(theirs.coef_).double(), atol=2e-2)


def test_regress_ends_at_the_same_place_wherever_it_starts():
    torch.manual_seed(0)
    cold = regress(FEATURES, Y, K, 0.1)
    torch.manual_seed(1)
    assert torch.equal(regress(FEATURES, Y, K, 0.1).weight, cold.weight)
    start = regress(FEATURES, Y, K, 1.0)
    given = start.weight.clone()
    assert torch.allclose(regress(FEATURES, Y, K, 0.1, start=start).weight, cold.weight, atol=5e-3)
    assert torch.equal(start.weight, given)


def test_prototypes_predict_as_the_cosine_classifier_of_the_embedding():
    embedding = torch.nn.Linear(D, 5)
    with torch.no_grad():
        embedding.weight.copy_(noise.normal(4, torch.arange(5), (D,)))
        embedding.bias.copy_(-embedding.weight.sum(1) * 4)
    bank = F.normalize(noise.normal(5, torch.arange(N), (5,)) + 2 * F.one_hot(Y, 5), dim=1)
    head = prototypes(bank, Y, embedding.weight.detach(), embedding.bias.detach(), 0.2)
    for i in range(N):
        e = embedding(FEATURES[i]).detach()
        cosines = [F.cosine_similarity(e, bank[k == Y].mean(0), dim=0).item() for k in range(K)]
        assert int(predictions(head)[i].argmax()) == max(range(K), key=cosines.__getitem__)
        assert torch.allclose(predictions(head)[i], torch.tensor(cosines) * e.norm() / 0.2, atol=1e-3)
    assert len(set(predictions(head).argmax(1).tolist())) == K


APART = noise.normal(2, torch.arange(N), (D,)) * torch.tensor([1, 1, 0.3, 0.3, 2, 1.0]) + F.one_hot(Y, D) + 4


def value(head, weight_decay, f=APART):
    with torch.no_grad():
        return float(F.cross_entropy(head(f), Y) + weight_decay / 2 * head.weight.square().sum())


@pytest.mark.parametrize("weight_decay", [1.0, 0.1, 0.001])
def test_sgd_ends_where_lbfgs_does(weight_decay):
    best = regress(APART, Y, K, weight_decay)
    head = sgd(APART, Y, K, weight_decay, epochs=100, batch_size=40)
    assert value(head, weight_decay) == pytest.approx(value(best, weight_decay), abs=2e-3)
    assert torch.allclose(head.weight, best.weight, rtol=0.1, atol=0.1)
    kept = sgd(APART, Y, K, weight_decay, epochs=1, lr=1e-6, start=best)
    assert torch.allclose(kept.weight, best.weight, atol=1e-4)
    assert torch.allclose(kept.bias, best.bias, atol=1e-3)


def test_sgd_does_not_depend_on_the_features_scale_nor_on_global_randomness():
    head = sgd(APART, Y, K, 0.1, epochs=5, batch_size=40)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    large = sgd(1000 * APART, Y, K, 1e5, epochs=5, batch_size=40)
    assert torch.allclose(1000 * large.weight, head.weight, rtol=1e-3, atol=1e-4)
    assert torch.equal(sgd(APART, Y, K, 0.1, epochs=5, batch_size=40).weight, head.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(sgd(APART, Y, K, 0.1, epochs=5, batch_size=40, seed=1).weight, head.weight)
