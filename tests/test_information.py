"""Mutual information: both bounds against a literal loop, and where the truth is known."""

import math

import pytest
import torch
from torch.nn import functional as F

from gacd import noise
from gacd.errors import InputError
from gacd.information import Estimator, Pairs, begin, fit, information, log_odds, right_side


def pairs(n, key=0, classes=10, know="nothing", dims=(12, 9)):
    """Features of which the truth is known: independent, of the class alone, or the same but for little noise."""
    index = torch.arange(n)
    y = (noise.uniform(noise.key("y", key), index) * classes).long()
    t, s = (noise.normal(noise.key(side, key), index, (d,)) for side, d in zip("ts", dims, strict=True))
    if know == "class":
        t, s = (8 * noise.normal(noise.key("of", side), y, (d,)) for side, d in zip("ts", dims, strict=True))
    if know == "all":
        s = t[:, : dims[1]] + 0.1 * s
    return Pairs(t, s, y, torch.full((n,), 0.44))


def slow_right_side(e, p, k, printed):
    """Eq. 11, or the bound that holds, a pair at a time in Python's floats."""

    def embed(weight, bias, f):
        e = [sum(w * x for w, x in zip(row, f.tolist(), strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        return [x / math.sqrt(sum(x * x for x in e)) for x in e]

    t = [embed(e.weight_t.tolist(), e.bias_t.tolist(), f) for f in p.t]
    s = [embed(e.weight_s.tolist(), e.bias_s.tolist(), f) for f in p.s]

    def h(i, j):
        score = math.exp(sum(a * b for a, b in zip(t[i], s[j], strict=True)) / 0.1)
        return score / (score + k * math.exp(float(e.log_z)))

    total = 0.0
    for i in range(len(t)):
        negatives = [j for j in range(len(s)) if (p.y[j] != p.y[i] if printed else j != i)]
        mean = sum(math.log(1 - h(i, j)) for j in negatives) / len(negatives)
        total += (float(p.w[i]) if printed else 1.0) * (math.log(h(i, i)) + k * mean)
    return math.log(k) + total / len(t)


@pytest.mark.parametrize("printed", [False, True])
def test_both_bounds_equal_a_literal_loop(printed):
    p = Pairs(*(v.double() if v.is_floating_point() else v for v in pairs(9, classes=3)))
    p = p._replace(w=torch.linspace(0.1, 0.9, 9).double())
    e = Estimator(*(v.detach().double() for v in begin(12, 9, 0)))
    e = e._replace(bias_t=noise.normal(5, torch.arange(128), ()).double(), log_z=torch.tensor(1.7).double())
    expected = slow_right_side(e, p, 40, printed)
    assert float(right_side(e, p, k=40, printed=printed)) == pytest.approx(expected, rel=1e-12)


def test_log_odds_are_those_of_the_paper_s_h():
    e, p = begin(12, 9, 0), pairs(5)
    u = log_odds(e._replace(log_z=torch.tensor(0.3)), p.t, p.s, k=7)
    cosine = F.cosine_similarity(F.linear(p.t, e.weight_t)[:, None], F.linear(p.s, e.weight_s)[None], dim=2)
    h = (cosine / 0.1).exp() / ((cosine / 0.1).exp() + 7 * math.exp(0.3))
    assert torch.allclose(u.sigmoid(), h, atol=1e-6)


SMALL = dict(k=299, steps=150)


def test_independent_features_share_nothing_whatever_eq_11_says():
    found = information(pairs(1500), pairs(300, key=1), **SMALL)
    assert found["bound"] < 0
    assert found["eq11"] > 1, "the truth is 0"


def test_features_that_know_the_class_alone_share_at_most_its_entropy():
    found = information(pairs(1500, know="class"), pairs(300, key=1, know="class")._replace(w=torch.ones(300)), **SMALL)
    assert 0.8 < found["bound"] < math.log(10)
    assert found["eq11"] > math.log(10) + 1, "negatives of other classes only are told apart by the class"


def test_features_that_share_more_have_a_higher_bound():
    found = information(pairs(1500, know="all"), pairs(300, key=1, know="all"), **SMALL)
    assert 3 < found["bound"] <= math.log(299)


def test_information_is_deterministic_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    fitted, held_out = pairs(300), pairs(40, key=1)
    first = information(fitted, held_out, k=39, steps=3, seed=1)
    assert information(fitted, held_out, k=39, steps=3, seed=1) == first
    assert information(fitted, held_out, k=39, steps=3, seed=2) != first
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(fitted.t, pairs(300).t)


def test_fitting_makes_the_right_side_larger():
    p = pairs(400, know="all")
    long, short = (float(right_side(fit(p, k=50, steps=n), p, k=50)) for n in (100, 1))
    assert long > short + 1


def test_images_of_one_class_have_no_negatives_of_others():
    p = pairs(40)._replace(y=torch.zeros(40).long())
    with pytest.raises(InputError, match="no negatives"):
        information(p, p, k=39, steps=1)
    with pytest.raises(InputError, match="at least 1"):
        information(p, p, k=0, steps=1)
