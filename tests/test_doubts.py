"""Which runs of an image stay in doubt after a search in low precision, and that these alone are made once more."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from test_local import exact
from test_pool import ROUGHLY, Still, runs
from torch import nn

from gacd import noise
from gacd.attacks.search import PGD
from gacd.attacks.square import Square
from gacd.judge import attacked


class Functional(nn.Module):
    """A function of images as a network."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


class Told(Still):
    """Run r asks about an image of its own, whose second pixel is margins[r] more than the first; two forwards."""

    def __init__(self, *margins):
        super().__init__(steps=2)
        self.margins, self.runs = torch.tensor(margins), len(margins)

    def begin(self, rows, logits):
        rows["z"] = torch.stack([torch.full(rows["run"].shape, 0.5), 0.5 + self.margins[rows["run"]]], 1)[:, None, None]

    def found(self, rows):
        return rows["z"]

    def strength(self, rows):
        return -rows["run"]


@pytest.mark.parametrize(
    ("margins", "doubts", "strongest"),
    [
        ((-0.3, -0.3, -0.3), set(), 0),
        ((-0.3, -0.002, -0.3), {1}, 0),
        ((-0.3, 0.3, -0.3), {1, 2}, 1),
        ((-0.002, -0.3, 0.3, -0.3), {0, 2, 3}, 2),
        ((0.3, -0.3, -0.002), {0, 1, 2}, 0),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_in_doubt_are_runs_that_beat_the_image_or_nearly_and_those_given_up(margins, doubts, strongest, chunk):
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    found = runs(Told(*margins), lambda z: z.flatten(1), x, y, torch.tensor([0]), chunk, ROUGHLY)
    image, given = found[0]
    assert given == doubts
    assert torch.allclose(image.flatten(), torch.tensor([0.5, 0.5 + margins[strongest]]))


def test_only_the_runs_asked_for_are_made():
    asked = []

    def model(z):
        asked.append([round(float(pixel), 2) for pixel in z[:, 0, 0, 1]])
        return z.flatten(1)

    x, y = torch.full((3, 1, 1, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    search = Told(-0.1, -0.2, -0.3)
    found = runs(search, model, x, y, torch.tensor([2, 0]), 2, only={0: {1}, 2: {1, 2}})
    assert asked[1:] == [[0.3, 0.3]] * 2 + [[0.2, 0.3]] * 2  # one is to spare
    assert {i: round(float(image[0, 0, 1]), 2) for i, (image, _) in found.items()} == {0: 0.3, 2: 0.3}


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_a_run_that_met_nan_stays_in_doubt_behind_one_that_seems_to_beat_the_image(chunk):
    class Broken(Told):
        def strength(self, rows):
            return torch.where(rows["run"] == 0, torch.nan, 0.0)

    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    found = runs(Broken(-0.3, -0.3, 0.3), lambda z: z.flatten(1), x, y, torch.tensor([0]), chunk)
    assert found[0][1] == {0, 2}


def test_what_is_in_doubt_is_made_once_more_in_float32():
    """Two images, of which the second's label is the other pixel: it is beaten, and none of its runs is made again."""
    asked = []

    def flat(z):
        asked.append((torch.is_autocast_enabled("cpu"), [round(float(pixel), 3) for pixel in z[:, 0, 0, 1]]))
        return z.flatten(1)

    x, y = torch.full((2, 1, 1, 2), 0.5), torch.tensor([0, 1])
    result = attacked(
        Functional(flat),
        Functional(flat),
        Told(-0.3, -0.002, -0.3),
        fetch=lambda where: (x[where], y[where], x[where].flatten(1)),
        which=torch.arange(2),
        chunk=6,
        again=1,
        context=ROUGHLY,
    )
    judged = {i: still for where, right, _ in result for i, still in zip(where.tolist(), right.tolist(), strict=True)}
    assert judged == {0: True, 1: False}
    assert [len(pixels) for rough, pixels in asked if rough] == [6, 6]
    judged_first, *again, judged_last = [pixels for rough, pixels in asked if not rough]
    assert (len(judged_first), again, judged_last) == (6, [[0.498]] * 2, [0.498])


@pytest.mark.parametrize("n", [5, 20, 41])
def test_every_image_is_judged_though_windows_have_twice_the_rows(n):
    x = (64 * noise.uniform(8, torch.arange(n), (3, 16, 16))).floor() / 64
    model = exact(x)
    logits = model(x)
    y, judged = logits.argmax(1), []
    for where, right, x_adv in attacked(
        model,
        model,
        Square(eps=1 / 8, steps=2),  # many are beaten at once, and all others are through at once
        fetch=lambda which: (x[which], y[which], logits[which]),
        which=torch.arange(n),
        chunk=4,
        again=2,
        context=nullcontext,
    ):
        judged += where.tolist()
        assert torch.equal(right, model(x_adv).argmax(1) == y[where])
    assert sorted(judged) == list(range(n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_only_the_folded_network_is_beaten_the_network_itself_is_attacked(dtype):
    """The quick one's margins are off by more than rounding: it gives up before the other is beaten."""

    def network(shift):
        return lambda z: torch.stack([torch.ones(len(z)), 1 + shift + z.float().mean((1, 2, 3)) - 0.51], 1)

    x, y = torch.full((40, 1, 8, 8), 0.5), torch.zeros(40, dtype=torch.int64)
    natural = network(0.0)(x)
    options = dict(fetch=lambda rows: (x[rows], y[rows], natural[rows]), which=torch.arange(40), chunk=16, again=8)
    search = PGD(eps=0.03, step_size=0.01, steps=6)
    context = partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)
    found = list(attacked(Functional(network(0.0)), Functional(network(0.02)), search, context=context, **options))
    where, right, _ = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert sorted(where.tolist()) == list(range(40))
    assert not right.any()
