"""What the tests of the searches of a row share: networks of known borders, the driver, and what every search keeps."""

import copy

import torch
from test_attacks import awkward, exactly_inside

from gacd import noise
from gacd.attacks.loop import box
from gacd.attacks.search import advance, ask, begin, strengths
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
        rows = begin(search, x, y, index, model(x), torch.full_like(y, run))
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


def assert_rows_stand_alone(search, steps, n=6):
    """Rows that began 4 steps apart, and rows all by themselves, hold the same bits."""
    x = images(n)
    y, index, early = curved(x).argmax(1), torch.arange(n) * 5 + 2, torch.arange(n) < n // 2

    def start(which):
        return begin(search, x[which], y[which], index[which], curved(x[which]))

    def further(rows, steps):
        for _ in range(steps):
            forward(search, curved, rows)
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
        return begin(make(seed=seed, restart=restart), x, y, index, curved(x))["z"]

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
    rows = begin(search, x, y, torch.arange(4), linear()(x))
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
    rows = begin(search, x, y, torch.arange(4), model(x))
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
