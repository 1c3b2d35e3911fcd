"""The probe of frozen features: which head it keeps, natural and adversarial."""

import pytest
import torch
from torch.nn import functional as F

from gacd import noise
from gacd.data import Dataset, pixels
from gacd.evaluation import evaluate
from gacd.heads import linear, regress, ridge
from gacd.models import build
from gacd.probe import attacked, features, probe, with_head, with_ridge_head
from gacd.readers import Split

K = 3


def made(lightness, n_val):
    """Dark and light images and something in between, by class, under noise."""

    def split(n, start):
        labels = torch.arange(n) % K
        x = 90 * noise.uniform(3, torch.arange(start, start + n), (3, 8, 8)) + lightness * labels.view(-1, 1, 1, 1)
        return Split(x.to(torch.uint8), labels)

    return Dataset("made", split(90, 0), split(n_val, 100), split(3, 200), ["a", "b", "c"], (0,) * 3, (1,) * 3)


def network(data, *normalisation):
    torch.manual_seed(0)
    built = build("resnet8-x0.25", K, *normalisation)
    with torch.no_grad():
        for _ in range(20):
            built(data.train.images / 255)
    return built


@pytest.fixture(scope="module")
def data():
    return made(60, 40)


@pytest.fixture(scope="module")
def model(data):
    return network(data)


@pytest.fixture(scope="module")
def harder():
    """A network and images of classes that an attack takes for each other."""
    data = made(40, 60)
    return network(data, (0.4,) * 3, (0.25,) * 3), data


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
    with torch.no_grad():
        difference = expected(features(model, data.train)) - kept.head(features(model, data.train))
    assert float(difference.abs().max()) < 0.05


def test_the_ridge_head_is_fitted_on_evenly_spread_images(model, data):
    changed = with_ridge_head(model, data, limit=40)
    part = data.train.take(torch.arange(0, 90, 3))
    assert torch.equal(changed.head.weight, ridge(features(model, part), part.labels, K).weight)
    full = with_ridge_head(model, data, limit=5000)
    assert torch.equal(full.head.weight, ridge(features(model, data.train), data.train.labels, K).weight)
    assert evaluate(full, data.val, []).natural > 0.8


def test_attacked_features_are_those_of_a_plain_pgd_loop(harder):
    model, data = harder
    index, eps, step_size = torch.tensor([4, 0, 77]), 8 / 255, 3 / 255
    head = regress(features(model, data.train), data.train.labels, K, 0.1)
    draw = attacked(with_head(model, model.head), data.train, eps=eps, step_size=step_size, steps=3, seed=5)
    actual = draw(head.weight, head.bias, index, 2)
    whole = with_head(model, head)
    x = pixels(data.train.images[index])
    u = noise.uniform(noise.key(5, "probe start", 2), index, (3, 8, 8))
    z = (x + eps * (2 * u - 1)).clamp(0, 1)
    for _ in range(3):
        z.requires_grad_()
        F.cross_entropy(whole(z), data.train.labels[index], reduction="sum").backward()
        z = (z.detach() + step_size * z.grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    assert torch.allclose(actual, whole.features(z), atol=1e-3)


def adversarial_loss(model, split):
    """Cross-entropy on training images attacked by other noise than a head was trained on."""
    draw = attacked(with_head(model, model.head), split, eps=16 / 255, step_size=4 / 255, steps=5, seed=9)
    f = draw(model.head.weight, model.head.bias, torch.arange(len(split)), 0)
    return float(F.cross_entropy(model.head(f), split.labels))


def test_an_adversarial_head_withstands_more_and_the_trunk_stays(harder):
    model, data = harder
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    options = dict(weight_decays=[0.001], eps=16 / 255, steps=5)
    natural, _ = probe(model, data, **options)
    robust, rows = probe(model, data, solver="adversarial", epochs=5, **options)
    again, same = probe(model, data, solver="adversarial", epochs=5, **options)
    assert adversarial_loss(robust, data.train) < adversarial_loss(natural, data.train) - 0.01
    assert rows == same
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in robust.state_dict().items())
    assert model.training
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)
        assert name.startswith("fc.") or torch.equal(robust.state_dict()[name], value)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("select", ["natural", "robust"])
@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_the_chosen_accuracy_chooses(harder, solver, select):
    model, data = harder
    _, rows = probe(model, data, solver=solver, select=select, eps=24 / 255, steps=2)
    best = next(row for row in rows if row["kept"])
    assert best[f"val_{select}"] == max(row[f"val_{select}"] for row in rows)
    assert len({row[f"val_{select}"] for row in rows}) > 1
