"""Likeness of two networks: numbers against literal twins and against cases known by hand."""

import itertools

import numpy as np
import pytest
import torch

from gacd import noise, similarity
from gacd.errors import InputError, UsageError


def numbers(*shape, key=0):
    """Reproducible normals, float64."""
    return noise.normal(key, torch.arange(shape[0]), shape[1:]).double()


def test_correlation_is_pearson_s():
    logits = numbers(30, 4) * torch.tensor([1e-3, 1, 50, 3]) + torch.tensor([0, 5, -900, 1])
    r = similarity.correlation(logits)
    for i, j in itertools.product(range(4), repeat=2):
        a, b = logits[:, i] - logits[:, i].mean(), logits[:, j] - logits[:, j].mean()
        assert r[i, j].item() == pytest.approx(float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()), abs=1e-12)
    assert np.allclose(r, np.corrcoef(logits.T))
    assert torch.equal(r.diagonal(), torch.ones(4).double())


def test_a_constant_logit_correlates_with_nothing():
    logits = numbers(30, 4)
    logits[:, 2] = 0.1
    with pytest.raises(InputError, match="class 2"):
        similarity.correlation(logits)


def test_difference_leaves_out_the_diagonal():
    a, b = numbers(4, 4), numbers(4, 4, key=1)
    off = [abs(float(a[i, j] - b[i, j])) for i in range(4) for j in range(4) if i != j]
    assert similarity.difference(a, b) == pytest.approx(sum(off) / 12)
    assert similarity.difference(a, a + torch.eye(4)) == 0


def hsic(x, y):
    """HSIC_1 of linear kernels, as Song et al. print it, but for its constant factor."""
    n, k, m = len(x), x @ x.T, y @ y.T
    k, m = k - k.diag().diag(), m - m.diag().diag()
    one = torch.ones(n).double()
    return (k @ m).trace() + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)


def test_cka_equals_its_formula_on_gram_matrices():
    x, y = numbers(12, 5) + 3, numbers(12, 7, key=1)
    y[:, :5] += x
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert similarity.cka(x, y) == pytest.approx(float(expected), abs=1e-12)


def test_cka_does_not_see_rotation_shift_or_scale():
    x, y = numbers(40, 6), numbers(40, 9, key=1)
    y[:, :6] += x
    turned = y @ torch.linalg.qr(numbers(9, 9, key=2))[0]
    assert similarity.cka(x, 1e-6 * turned) == pytest.approx(similarity.cka(x, y), abs=1e-9)
    assert similarity.cka(x + 100, 1e8 * turned - 7) == pytest.approx(similarity.cka(x, y), abs=1e-9)
    assert similarity.cka(x, x @ torch.linalg.qr(numbers(6, 6, key=3))[0]) == pytest.approx(1)
    assert similarity.cka(y, x) == pytest.approx(similarity.cka(x, y))


def test_cka_of_independent_features_is_0_on_average_even_of_many():
    found = [similarity.cka(numbers(50, 200, key=i), numbers(50, 200, key=-i - 1)) for i in range(30)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 30**0.5 < 0.1


@pytest.mark.parametrize("x", [torch.ones(10, 3), numbers(3, 3)])
def test_cka_needs_features_that_vary_on_enough_images(x):
    with pytest.raises(InputError, match="4 images"):
        similarity.cka(x, x)


def test_chance_is_the_mean_over_every_shuffle_within_classes():
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    t, s = torch.tensor([1, 2, 0, 1, 0, 2]), torch.tensor([1, 2, 0, 0, 0, 1])
    found = similarity.inherited(t, s, y)
    wrong, same = [], []
    for a, b in itertools.product(itertools.permutations(range(3)), itertools.permutations(range(3, 6))):
        shuffled = s[torch.tensor([*a, *b])]
        wrong.append(np.mean([shuffled[i] != y[i] for i in (0, 1, 4, 5)]))
        same.append(np.mean([shuffled[i] == t[i] for i in (0, 1, 4, 5)]))
    assert found["errors"] == 4
    assert (found["wrong"], found["same"]) == (0.75, 0.75)
    assert found["wrong_by_chance"] == pytest.approx(np.mean(wrong))
    assert found["same_by_chance"] == pytest.approx(np.mean(same))


def test_a_teacher_without_errors_passes_none_on():
    y = torch.arange(4)
    found = similarity.inherited(y, y.flip(0), y)
    assert found.pop("errors") == 0
    assert set(found.values()) == {None}


def test_distances_and_nearest_centroids_by_hand():
    a, b, points = (similarity.directions(numbers(n, 3, key=n) + shift, torch.ones(3)) for n, shift in SHAPES)
    assert torch.allclose(a.norm(dim=1), torch.ones(5).double())
    distances = [[(x - y).norm().item() for y in b] for x in a]
    within = [np.mean([(x - y).norm().item() for x, y in itertools.combinations(c, 2)]) for c in (a, b)]
    found = similarity.separation(a, b)
    assert found == pytest.approx(
        dict(intra=np.mean(within), inter=np.mean(distances), ratio=np.mean(distances) / np.mean(within))
    )
    expected = [bool((p - a.mean(0)).norm() < (p - b.mean(0)).norm()) for p in points]
    assert similarity.nearer(points, a, b).tolist() == expected
    assert {True, False} == set(expected)
    with pytest.raises(InputError, match="all the same"):
        similarity.separation(a[:1].expand(4, 3), b[:1].expand(4, 3))


SHAPES = (5, 1.0), (7, -1.0), (20, 0.0)


def test_tsne_is_the_same_twice_and_leaves_the_global_generators_alone():
    points = similarity.directions(numbers(40, 5), torch.zeros(5))
    np.random.seed(1)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = similarity.tsne(points, perplexity=5, seed=3)
    assert torch.equal(first, similarity.tsne(points, perplexity=5, seed=3))
    assert first.shape == (40, 2)
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    with pytest.raises(UsageError, match=r"perplexity 14 does not suit 40 points.*from 1 to 13"):
        similarity.tsne(points, perplexity=14)
