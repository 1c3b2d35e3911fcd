"""The Square Attack: its schedule, its squares, its strength; and what the tests of all the searches of a row share."""

import copy

import pytest
import torch
from test_attacks import awkward, exactly_inside

from gacd import noise
from gacd.attacks.loop import box
from gacd.attacks.search import advance, ask, begin, strengths
from gacd.attacks.square import Square
from gacd.errors import InputError
from gacd.models import build

CLASSES = 10


def linear(scale=1.0, classes=CLASSES, pixels=48):
    """Logits scale (w_k x + b_k), summed row by row: the same bits in any batch."""
    weight = noise.normal(1, torch.arange(classes), (pixels,))
    bias = 0.3 * noise.normal(2, torch.arange(classes))
    return lambda x: scale * ((x.flatten(1)[:, None] * weight.to(x.dtype)).sum(2) + bias.to(x.dtype))


def curved(x):
    """Ten smooth classes of bent borders, row by row."""
    score = linear()(x)
    return score + 0.2 * score.roll(1, 1) ** 2 - 0.1 * score.roll(3, 1) ** 2


def images(n, low=0.0, high=1.0):
    return low + (high - low) * noise.uniform(7, torch.arange(n), (3, 4, 4))


def linear_worst(x, y, eps):
    """The largest margin in the ball and the box, (B,) float64: the best corner for each wrong class."""
    low, high = (end.flatten(1).double() for end in box(x, eps))
    weight = noise.normal(1, torch.arange(CLASSES), (x[0].numel(),)).double()
    bias = 0.3 * noise.normal(2, torch.arange(CLASSES)).double()
    towards = weight[None] - weight[y][:, None]
    gain = (towards * torch.where(towards > 0, high[:, None], low[:, None])).sum(2) + bias[None] - bias[y][:, None]
    return gain.scatter(1, y[:, None], -torch.inf).amax(1)


def attack(search, model, x, y, index=None):
    """As the driver does it: whether each image is right at every candidate asked about and at `found`; the rows."""
    index = torch.arange(len(x)) if index is None else index
    right, strongest = torch.ones(len(x), dtype=torch.bool), {}
    for run in range(search.runs):
        rows = begin(search, x, y, index, lambda: model(x), torch.full_like(y, run))
        while bool((rows["t"] < search.steps).any()):
            counts = search.candidates(rows)
            right &= (forward(search, model, rows) == y) | ~counts
        rows["strength"] = strength = strengths(search, rows)
        stronger = strength > strongest["strength"] if strongest else torch.ones_like(right)
        for key, value in rows.items():
            wider = stronger.view(-1, *[1] * (value.ndim - 1))
            strongest[key] = torch.where(wider, value, strongest[key]) if run else value
    with torch.no_grad():
        return right & (model(search.found(strongest)).argmax(1) == y), strongest


def need(search, rows):
    """What the next forward of rows at the same step is for."""
    return search.needs[int(rows["t"][0]) % len(search.needs)]


def forward(search, model, rows):
    """One forward of all rows: the predictions of what was asked about."""
    logits, value, gradient = ask(search, model, rows, need(search, rows))
    advance(search, rows, logits, value, gradient)
    return logits.argmax(1)


def assert_rows_stand_alone(search, model, steps, n=6):
    """Rows that began 4 steps apart, and rows all by themselves, hold the same bits."""
    x = images(n)
    y, index, early = model(x).argmax(1), torch.arange(n) * 5 + 2, torch.arange(n) < n // 2

    def start(which):
        return begin(search, x[which], y[which], index[which], lambda: model(x[which]))

    def further(rows, steps):
        for _ in range(steps):
            forward(search, model, rows)
        return rows

    def both(first, second):
        return {key: torch.cat([first[key], second[key]]) for key in first}

    order = torch.cat([early.nonzero()[:, 0], (~early).nonzero()[:, 0]])
    mixed = further(both(further(start(early), 4), start(~early)), steps)
    for place, i in enumerate(order.tolist()):
        alone = further(start([i]), steps + 4 * bool(early[i]))
        for key, value in alone.items():
            same = torch.equal(mixed[key][place], value[0])
            assert same, (key, i)
    assert len(set(mixed["t"].tolist())) > 1


def assert_whatever_the_order(make, seeds=True):
    x = images(6)
    y, index = curved(x).argmax(1), torch.tensor([4, 10, 3, 77, 5, 6])

    def start(seed=0, restart=0):
        return begin(make(seed=seed, restart=restart), x, y, index, lambda: curved(x))["z"]

    def found(which):
        return make().found(attack(make(), curved, x[which], y[which], index[which])[1])

    straight, order = found(torch.arange(6)), torch.tensor([3, 5, 0, 1, 4, 2])
    torch.manual_seed(99)
    assert torch.equal(found(torch.arange(6)), straight)
    assert torch.equal(found(order), straight[order])
    assert torch.equal(start(seed=1), start()) != seeds
    assert not torch.equal(start(restart=1), start())
    assert not torch.equal(start(seed=1, restart=1), start(restart=1))


def assert_stays_inside(make, norm, eps):
    """Every candidate asked about, and the result, at pixels on the box's faces."""
    search, x, y = make(norm=norm, eps=eps), awkward(), torch.arange(4)
    rows = begin(search, x, y, torch.arange(4), lambda: linear()(x))
    while bool((rows["t"] < search.steps).any()):
        which = search.candidates(rows)
        exactly_inside(x[which], rows["z"][which], norm, eps)
        assert bool(((rows["z"] >= 0) & (rows["z"] <= 1)).all())
        forward(search, linear(), rows)
    exactly_inside(x, search.found(rows), norm, eps)


def assert_no_side_effects(search):
    torch.manual_seed(0)
    model = build("resnet8-x0.25", CLASSES).eval().to(memory_format=torch.channels_last)
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x, y = images(4).contiguous(memory_format=torch.channels_last), torch.arange(4)
    given = x.clone(), y.clone()
    rows = begin(search, x, y, torch.arange(4), lambda: model(x))
    for _ in range(search.steps):
        forward(search, model, rows)
        for key, value in rows.items():  # else the network takes another path, of other bits
            assert value.ndim < 4 or value.is_contiguous(memory_format=torch.channels_last), key
        assert all(value.grad_fn is None and not value.requires_grad for value in rows.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, given[0]) and torch.equal(y, given[1])


def assert_broken_network_is_noticed(search):
    """NaN in one forward reaches the result, lest a broken network look robust."""
    x = images(4)
    y, count = linear()(x).argmax(1), iter(range(10**6))

    def model(z):
        return linear()(z) * torch.where(torch.tensor([True, next(count) != 4, True, True]), 1.0, torch.nan)[:, None]

    rows = attack(search, model, x, y)[1]
    assert search.found(rows).flatten(1).isnan().any(1).tolist() == [False, True, False, False]


def linear_case(n=300, eps=0.05):
    """Images, labels and eps: about half of them can be beaten, none so narrowly that float32 could not tell."""
    x = images(n)
    y = linear()(x).argmax(1)
    worst = linear_worst(x, y, eps)
    assert n / 3 < int((worst > 0).sum()) < 2 * n / 3
    assert float(worst.abs().min()) > 1e-4
    return x, y, eps, worst < 0


def test_the_squares_have_the_scheduled_size():
    """Half the area after each of these shares of the queries, from 80 % of 64x64 pixels on."""
    x = noise.uniform(7, torch.arange(3), (3, 64, 64))
    shares = [0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
    for steps, whole in ((1000, 1000), (5000, 5000), (5000, 10000)):  # the last as AutoAttack runs it
        search = Square(steps=steps, rescale=whole == steps)
        rows = begin(search, x, torch.zeros(3, dtype=torch.int64), torch.arange(3), lambda: None)
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
    rows = begin(search, x, torch.zeros(n, dtype=torch.int64), torch.arange(n), lambda: None)
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
    rows = begin(search, x, torch.zeros(500, dtype=torch.int64), torch.arange(500), lambda: None)
    rows["t"] += 1
    for up in ((rows["z"] == rows["high"])[:, :, 0, 0], search.square(rows)[1][:, :, 0, 0]):
        assert float((torch.corrcoef(up.double().T) - torch.eye(3)).abs().max()) < 0.15
        assert torch.allclose(up.double().mean(0), torch.full((3,), 0.5).double(), atol=0.1)


def test_the_loss_never_falls_and_the_proposals_differ_by_a_square():
    search, (x, y, *_) = Square(eps=0.05, steps=300), linear_case()
    rows = begin(search, x, y, torch.arange(len(x)), lambda: None)
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


def test_rows_stand_alone():
    assert_rows_stand_alone(Square(eps=0.1, steps=40), curved, 36)


def test_a_function_of_seed_and_image_whatever_the_order():
    assert_whatever_the_order(lambda **options: Square(eps=0.1, steps=20, **options))


@pytest.mark.parametrize("eps", [0.0, 1e-3, 8 / 255, 1.0])
def test_inside_the_ball_and_the_box_in_exact_arithmetic(eps):
    assert_stays_inside(lambda **options: Square(steps=12, **options), "Linf", eps)


def test_no_side_effects():
    assert_no_side_effects(Square(steps=25))


def test_a_broken_network_is_noticed():
    assert_broken_network_is_noticed(Square(steps=10))


@pytest.mark.parametrize(
    ("options", "says"),
    [(dict(norm="L2"), "Linf only: L2"), (dict(p_init=0.0), "p_init must be"), (dict(eps=8.0), "did you mean 8/255")],
)
def test_nonsense_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        Square(**options)
