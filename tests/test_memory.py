"""The banks, and the drawing of negatives against its slow twin."""

import math

import pytest
import torch

from gacd import noise
from gacd.memory import Bank, draw

BALANCED = torch.arange(60) % 3
UNBALANCED = torch.tensor([0] * 45 + [1] * 10 + [2] * 5)[noise.permutation(noise.key("shuffle"), 60)]
Y = torch.tensor([0, 1, 2, 0, 2])


def drawn(labels, y, k, key):
    """Each anchor's negatives, as positions in the bank, in their columns' order."""
    columns, keep = draw(labels, y, k, key)
    assert keep.shape == (len(y), len(columns))
    assert set(keep.flatten().tolist()) <= {0.0, 1.0}
    return [columns[row.bool()].tolist() for row in keep]


@pytest.mark.parametrize(("labels", "k"), [(BALANCED, 1), (BALANCED, 7), (BALANCED, 40), (UNBALANCED, 15)])
def test_exactly_k_of_other_classes_without_repeats(labels, k):
    for seed in range(20):
        for y, negatives in zip(Y.tolist(), drawn(labels, Y, k, noise.key(seed)), strict=True):
            assert len(negatives) == len(set(negatives)) == k
            assert y not in labels[negatives].tolist()


@pytest.mark.parametrize(("labels", "k"), [(BALANCED, 5), (UNBALANCED, 12)])
def test_draw_equals_its_slow_twin(labels, k):
    for seed in range(20):
        order = noise.permutation(noise.key(seed), len(labels)).tolist()
        expected = [[i for i in order if labels[i] != y][:k] for y in Y.tolist()]
        assert drawn(labels, Y, k, noise.key(seed)) == expected


def test_the_whole_pool_is_drawn_when_k_is_its_size():
    negatives = drawn(UNBALANCED, torch.tensor([0]), 15, noise.key(0))
    assert sorted(negatives[0]) == (UNBALANCED != 0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("labels", "k"), [(BALANCED, 6), (UNBALANCED, 12)])
def test_each_image_of_another_class_is_equally_likely(labels, k):
    draws, count = 600, torch.zeros(3, len(labels), dtype=torch.float64)
    for seed in range(draws):
        columns, keep = draw(labels, torch.arange(3), k, noise.key("fair", seed))
        count[:, columns] += keep
    for y in range(3):
        pool = labels != y
        n = int(pool.sum())
        expected, variance = draws * k / n, draws * k / n * (1 - k / n)
        # Without replacement the counts' covariance makes this a chi-square of n - 1 degrees, scaled by n / (n - 1).
        chi_square = float(((count[y, pool] - expected) ** 2).sum()) / variance * (n - 1) / n
        assert abs(chi_square - (n - 1)) < 4 * math.sqrt(2 * (n - 1))
        assert float(count[y, ~pool].sum()) == 0


def test_a_large_bank_is_searched_only_as_far_as_needed():
    labels = torch.arange(5000) % 10
    columns, keep = draw(labels, torch.arange(10), 500, noise.key(0))
    assert 500 <= len(columns) < 700
    assert keep.sum(1).tolist() == [500.0] * 10
    assert len(columns.unique()) == len(columns)


def test_a_prefix_that_falls_short_is_replaced_by_the_whole_order():
    labels, lengths = (torch.arange(5000) % 10 == 0).long(), set()
    for seed in range(150):
        columns, keep = draw(labels, torch.arange(2), 400, noise.key(seed))
        assert keep.sum(1).tolist() == [400.0, 400.0]
        lengths.add(len(columns))
    assert len(lengths) == 2
    assert max(lengths) == 5000


def test_a_bank_starts_with_unit_rows_of_its_own():
    a, b = Bank(40, 16, "teacher").rows, Bank(40, 16, "student").rows
    assert torch.allclose(a.norm(dim=1), torch.ones(40))
    assert torch.equal(a, Bank(40, 16, "teacher").rows)
    assert float((a @ a.T - torch.eye(40)).abs().max()) < 0.9
    assert float((a @ b.T).abs().max()) < 0.9
    assert list(Bank(2, 3, "x").state_dict()) == ["rows"]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_update_mixes_renormalises_and_touches_nothing_else(momentum):
    bank = Bank(10, 4, "x").double()
    before, index = bank.rows.clone(), torch.tensor([7, 2, 5])
    new = torch.nn.functional.normalize(noise.normal(1, torch.arange(3), (4,)).double(), dim=1).requires_grad_()
    bank.update(index, new, momentum)
    for position, embedding in zip(index.tolist(), new.detach(), strict=True):
        mixed = [
            momentum * float(o) + (1 - momentum) * float(e) for o, e in zip(before[position], embedding, strict=True)
        ]
        length = math.sqrt(sum(v * v for v in mixed))
        assert bank.rows[position].tolist() == pytest.approx([v / length for v in mixed], abs=1e-12)
    rest = [i for i in range(10) if i not in index.tolist()]
    assert torch.equal(bank.rows[rest], before[rest])
    assert not bank.rows.requires_grad
