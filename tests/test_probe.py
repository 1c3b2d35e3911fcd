"""Heads on frozen features against scikit-learn's and against loops; the probe's choice."""

import pytest
import torch
from torch.nn import functional as F

from gacd import noise
from gacd.data import Dataset
from gacd.datasets import Split
from gacd.evaluation import evaluate
from gacd.heads import linear, prototypes, regress, ridge
from gacd.models import build
from gacd.probe import features, probe, with_head, with_ridge_head

N, D, K = 120, 6, 3
Y = torch.arange(N) % K
CENTRES = noise.normal(1, torch.arange(K), (D,))
# Features of unequal scale and with a mean far from zero, as after a ReLU.
FEATURES = (noise.normal(2, torch.arange(N), (D,)) + CENTRES[Y]) * torch.tensor([1, 1, 0.3, 0.3, 2, 1.0]) + 4


def split(n, start):
    """Dark and light halves and something in between, by class, under noise."""
    labels = torch.arange(n) % K
    x = 90 * noise.uniform(3, torch.arange(start, start + n), (3, 8, 8)) + 60 * labels.view(-1, 1, 1, 1)
    return Split(x.to(torch.uint8), labels)


@pytest.fixture(scope="module")
def data():
    return Dataset("made", split(90, 0), split(40, 100), split(3, 200), ["a", "b", "c"], (0,) * 3, (1,) * 3)


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    made = build("resnet8-x0.25", K)
    with torch.no_grad():
        for _ in range(20):
            made(data.train.images / 255)
    return made


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


def test_features_are_the_penultimate_ones_in_eval_mode(model, data):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    f = features(model, data.train, batch=7)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not f.requires_grad
    model.eval()
    with torch.no_grad():
        slow = torch.stack([model.features(image[None].float() / 255)[0] for image in data.train.images])
    assert torch.allclose(f, slow, atol=1e-5)
    assert torch.allclose(model.head(f), model(data.train.images / 255), atol=1e-5)


def test_with_head_leaves_the_original_alone(model):
    head, before = linear(torch.ones(2, model.feature_dim), torch.tensor([0.5, -0.5])), model.head
    model.train()
    changed = with_head(model, head)
    assert model.training
    assert not changed.training
    assert model.head is before
    assert changed.num_classes == 2
    assert changed.head is not head
    assert torch.equal(changed.head.weight, head.weight)
    assert all(p is not q for p, q in zip(model.parameters(), changed.parameters(), strict=True))
    assert (
        with_head(build("resnet8-x0.25", 2).double(), ridge(torch.eye(16), torch.arange(16) % 2, 2)).head.weight.dtype
        == torch.float64
    )


def test_probe_keeps_the_most_robust_row_and_leaves_the_model_as_it_was(model, data):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept, rows = probe(model, data, weight_decays=[0.0, 1.0, 0.01], steps=2, seed=3)
    assert [row["weight_decay"] for row in rows] == [1.0, 0.01, 0.0]
    assert [row["kept"] for row in rows].count(True) == 1
    best = next(row for row in rows if row["kept"])
    assert best["val_robust"] == max(row["val_robust"] for row in rows) > 0
    assert len({row["val_robust"] for row in rows}) > 1
    result = evaluate(kept, data.val, ["pgd2"], seed=3)
    assert (result.natural, result.worst) == (best["val_natural"], best["val_robust"])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    trunk = {name: value for name, value in kept.state_dict().items() if not name.startswith("fc.")}
    assert all(torch.equal(value, before[name]) for name, value in trunk.items())
    expected = regress(features(model, data.train), data.train.labels, K, best["weight_decay"])
    difference = predictions(expected, features(model, data.train)) - predictions(
        kept.head, features(model, data.train)
    )
    assert best["weight_decay"] == 0 or float(difference.abs().max()) < 0.05


def test_the_ridge_head_is_fitted_on_evenly_spread_images(model, data):
    changed = with_ridge_head(model, data, limit=40)
    part = data.train.take(torch.arange(0, 90, 3))
    assert torch.equal(changed.head.weight, ridge(features(model, part), part.labels, K).weight)
    full = with_ridge_head(model, data, limit=5000)
    assert torch.equal(full.head.weight, ridge(features(model, data.train), data.train.labels, K).weight)
    assert evaluate(full, data.val, []).natural > 0.8
