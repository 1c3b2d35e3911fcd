"""The Square Attack: its schedule, its squares, its strength."""

import pytest
import torch
from searches import attack, forward, images, linear, linear_case, linear_worst

from gacd import noise
from gacd.attacks.search import begin
from gacd.attacks.square import Square
from gacd.errors import InputError


def test_the_squares_have_the_scheduled_size():
    """Half the area after each of these shares of the queries, from 80 % of 64x64 pixels on."""
    x = noise.uniform(7, torch.arange(3), (3, 64, 64))
    shares = [0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
    for steps, whole in ((1000, 1000), (5000, 5000), (5000, 10000)):  # the last as AutoAttack runs it
        search = Square(steps=steps, rescale=whole == steps)
        rows = begin(search, x, torch.zeros(3, dtype=torch.int64), torch.arange(3), None)
        ends = [round(share * whole) for share in shares]
        for t in (0, *(end for end in ends if end < steps), *(end + 1 for end in ends if end + 1 < steps)):
            side = max(round((0.8 / 2 ** sum(t > end for end in ends) * 4096) ** 0.5), 1)
            rows["t"] = torch.full((3,), t + 1)
            where, _ = search.square(rows)
            for mask in where[:, 0]:
                extent = [int(v.max() - v.min()) + 1 for v in mask.nonzero().T]
                assert extent == [side, side]
                assert int(mask.sum()) == side**2


def test_squares_fall_everywhere_and_every_row_has_its_own():
    search, n = Square(steps=100), 3000
    x = torch.zeros(1, 1, 1, 1).expand(n, 2, 5, 5)
    rows = begin(search, x, torch.zeros(n, dtype=torch.int64), torch.arange(n), None)
    rows["t"] = torch.full((n,), 100)
    where, up = search.square(rows)
    assert where.sum((1, 2, 3)).unique().tolist() == [1]
    assert torch.allclose(where.double().mean((0, 1)), torch.full((5, 5), 1 / 25, dtype=torch.float64), atol=0.012)
    assert torch.allclose(up.double().mean(0).flatten(), torch.full((2,), 0.5, dtype=torch.float64), atol=0.04)
    rows["t"] = torch.full((n,), 99)
    again = (search.square(rows)[0] & where).any((1, 2, 3))
    assert 0.025 < float(again.double().mean()) < 0.055  # by chance, 1 in 25


def test_every_colour_has_its_own_sign():
    x = images(500)
    search = Square(eps=0.1)
    rows = begin(search, x, torch.zeros(500, dtype=torch.int64), torch.arange(500), None)
    rows["t"] += 1
    for up in ((rows["z"] == rows["high"])[:, :, 0, 0], search.square(rows)[1][:, :, 0, 0]):
        assert float((torch.corrcoef(up.double().T) - torch.eye(3)).abs().max()) < 0.15
        assert torch.allclose(up.double().mean(0), torch.full((3,), 0.5).double(), atol=0.1)


def test_the_loss_never_falls_and_the_proposals_differ_by_a_square():
    search, (x, y, *_) = Square(eps=0.05, steps=300), linear_case()
    rows = begin(search, x, y, torch.arange(len(x)), None)
    up = rows["z"] == rows["high"]
    assert bool((up | (rows["z"] == rows["low"])).all())
    assert torch.equal(up, up[:, :, :1].expand_as(up))  # vertical stripes
    last = torch.full((len(x),), -torch.inf)
    for t in range(300):
        forward(search, linear(), rows)
        assert bool((rows["best_value"] >= last).all())
        assert torch.equal(rows["z"] == rows["high"], up) == (t == 0)
        if t > 30:  # a square of one pixel
            assert int((rows["z"] != rows["best"]).sum((2, 3)).max()) == 1
        last = rows["best_value"]
    margin = linear()(search.found(rows))
    others = margin.scatter(1, y[:, None], -torch.inf).amax(1) - margin.gather(1, y[:, None])[:, 0]
    assert torch.equal(others, last)


def test_a_linear_network_s_worst_case_is_nearly_reached():
    x, y, eps, _ = linear_case()
    for scale in (1e-6, 1.0, 1e4):
        _, rows = attack(Square(eps=eps, steps=600), linear(scale), x, y)
        start = linear()(x)
        before = start.scatter(1, y[:, None], -torch.inf).amax(1) - start.gather(1, y[:, None])[:, 0]
        share = (rows["best_value"] / scale - before) / (linear_worst(x, y, eps) - before)
        assert float(share.max()) < 1 + 1e-4
        assert float(share.mean()) > 0.98


@pytest.mark.parametrize(
    ("options", "says"),
    [(dict(norm="L2"), "Linf only: L2"), (dict(p_init=0.0), "p_init must be"), (dict(eps=8.0), "did you mean 8/255")],
)
def test_nonsense_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        Square(**options)
