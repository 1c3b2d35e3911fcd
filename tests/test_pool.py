"""A sweep in chunks that run full gives every image what the attack on that image alone gives it, to the bit."""

from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product

import pytest
import torch
from searches import curved, images, need
from torch.nn import functional as F

from gacd.attacks.apgd import APGD, TargetedAPGD
from gacd.attacks.fab import TargetedFAB
from gacd.attacks.pool import Results, sweep
from gacd.attacks.search import PGD, Search, advance, ask, begin
from gacd.attacks.square import Square
from gacd.losses import margin_loss

EPS = 0.03
ROUGHLY = partial(torch.autocast, "cpu", torch.bfloat16)


class Still(Search):
    """Asks about the image itself, and finds its negative."""

    needs = ("logits",)

    def __init__(self, steps=3):
        super().__init__(eps=0.1)
        self.steps = steps

    def begin(self, rows, logits):
        rows["z"] = rows["x"]

    def objective(self, logits, rows):
        return margin_loss(logits, rows["y"])

    def step(self, rows, logits, value, gradient):
        pass

    def found(self, rows):
        return 1 - rows["x"]


def alone(search, model, x, y):
    """One image (1,C,H,W), a run after the other: what is found, and whether a candidate was seen to beat it."""
    best = None
    for run in range(search.runs):
        rows = begin(search, x, y, None, model(x), torch.tensor([run]))
        while int(rows["t"]) < search.steps:
            logits, value, gradient = ask(search, model, rows, need(search, rows))
            z = logits[0].tolist()
            margin = max(v for k, v in enumerate(z) if k != int(y)) - z[int(y)]
            if bool(search.candidates(rows)) and margin > 1e-4 * max(map(abs, z)):
                return rows["z"], True
            advance(search, rows, logits, value, gradient)
        if best is None or float(search.strength(rows)) > best[0]:
            best = float(search.strength(rows)), search.found(rows)
    return best[1], False


def swept(search, model, x, y, which, chunk, context=nullcontext):
    """Each position -> (image found, whether seen beaten or nearly); every position is yielded once."""
    return {i: (image, bool(doubts)) for i, (image, doubts) in runs(search, model, x, y, which, chunk, context).items()}


def runs(search, model, x, y, which, chunk, context=nullcontext, only=None):
    """Each position -> (image found, the runs in doubt)."""
    natural, found = model(x), {}
    for where, x_adv, doubts in sweep(search, model, lambda w: (x[w], y[w], natural[w]), which, chunk, context, only):
        assert len(where) == len(x_adv) == len(doubts) > 0
        for i, *result in zip(where.tolist(), x_adv, doubts, strict=True):
            assert i in which.tolist() and i not in found
            found[i] = tuple(result)
    assert len(found) == len(which)
    return found


@pytest.mark.parametrize(
    "search",
    [
        PGD(eps=EPS, step_size=0.01, steps=6, loss=margin_loss),
        APGD(eps=EPS, steps=12, loss="dlr"),
        TargetedAPGD(eps=EPS, steps=4, targets=3),
        TargetedFAB(eps=EPS, steps=4, targets=3),
        Square(eps=EPS, steps=25),
    ],
    ids=lambda search: type(search).__name__,
)
def test_every_image_is_attacked_as_if_it_were_alone(search):
    x = images(30)
    y = curved(x).argmax(1)
    y[::10] = (y[::10] + 1) % 10  # beaten at the first forward
    which = torch.arange(30).roll(11)[:23]
    expected = {i: alone(search, curved, x[i : i + 1], y[i : i + 1]) for i in which.tolist()}
    assert 3 < sum(beaten for _, beaten in expected.values()) < 20
    for chunk in (5, 40):  # rows that are refilled, and slots to spare
        found = swept(search, curved, x, y, which, chunk)
        for i, (image, beaten) in expected.items():
            assert (torch.equal(found[i][0], image[0]), found[i][1]) == (True, beaten)


def padded(z, classes):
    return F.pad(z.flatten(1), (0, classes), value=-1e9)


def test_beaten_is_by_more_than_rounding_of_the_images_own_logits():
    """Labels 0, logits the two pixels: wrong by 0.5e-4 and 2e-4 of the larger, right by 0.5 %, 2 % and 100 % of it.

    A class that is masked changes nothing.
    """
    x = [[0.1, 0.1 * (1 + 0.5e-4)], [0.1, 0.1 * (1 + 2e-4)], [0.1, 0.0995], [0.1, 0.098], [1.0, 0.0]]
    x = torch.tensor(x).view(5, 1, 1, 2)
    y, which = torch.zeros(5, dtype=torch.int64), torch.arange(5)
    for context, masked in product((nullcontext, ROUGHLY), (0, 1)):
        near = context is ROUGHLY
        for chunk in (5, 1):  # side by side, and one after the other in one slot
            found = swept(Still(), partial(padded, classes=masked), x, y, which, chunk, context)
            assert [found[i][1] for i in range(5)] == [near, True, near, False, False]
            assert all(torch.equal(found[i][0], x[i] if i == 1 else 1 - x[i]) for i in range(5))


def test_once_nearly_beaten_is_remembered():
    class Passes(Still):
        """Near to being beaten at its second step alone."""

        def step(self, rows, logits, value, gradient):
            rows["z"] = rows["x"] + 0.4 * (rows["t"] == 0).view(-1, 1, 1, 1) * torch.tensor([0.0, 1.0])

    x = torch.tensor([0.5, 0.0977]).view(1, 1, 1, 2)
    assert swept(Passes(), lambda z: z.flatten(1), x, torch.tensor([0]), torch.tensor([0]), 1, ROUGHLY)[0][1]

    class Guesses(Passes):
        """The same, all its forwards at once."""

        guesses = True

        def begin(self, rows, logits):
            rows["z"], rows["moved"] = rows["x"], torch.zeros_like(rows["y"], dtype=torch.bool)

        def step(self, rows, logits, value, gradient):
            pass

        def propose(self, rows):
            rows["z"] = rows["x"] + 0.4 * (rows["t"] == 1).view(-1, 1, 1, 1) * torch.tensor([0.0, 1.0])

    assert swept(Guesses(), lambda z: z.flatten(1), x, torch.tensor([0]), torch.tensor([0]), 3, ROUGHLY)[0][1]
    x = x + torch.tensor([0.0, 0.1])
    image, _ = swept(Guesses(), lambda z: z.flatten(1), x, torch.tensor([0]), torch.tensor([0]), 3)[0]
    assert torch.allclose(image.flatten(), torch.tensor([0.5, 0.5977]))  # beaten there, and right before and after


def test_every_forward_is_full_and_in_the_context():
    shapes, inside = [], []

    @contextmanager
    def context():
        inside.append(True)
        yield
        inside.pop()

    def model(z):
        shapes.append(len(z))
        assert len(shapes) == 1 or inside  # the first makes the natural logits
        return curved(z)

    x = images(10)
    swept(Still(steps=2), model, x, curved(x).argmax(1), torch.arange(10), 4, context)
    assert shapes[1:] == [4] * 2 * 3


def test_a_row_that_is_done_is_filled_at_once():
    x, forwards = images(7), []

    def model(z):
        forwards.append(len(z))
        return curved(z)

    y = curved(x).argmax(1)
    y[1:] = (y[1:] + 1) % 10  # six that a forward each beats, beside one that takes all six steps
    swept(Still(steps=6), model, x, y, torch.arange(7), 2)
    assert forwards[1:] == [2] * 6


def test_rows_that_no_image_waits_for_hold_other_runs_or_guesses():
    """A flat network, which no query but the first improves: in chunks of 8, three targets or 8 queries at once."""
    x, forwards = images(1), []

    def model(z):
        forwards.append(len(z))
        return 0 * curved(z) + torch.eye(10)[3]

    for search, expected in ((TargetedAPGD(eps=EPS, steps=4, targets=3), 5), (Square(eps=EPS, steps=26), 1 + 4)):
        image, _ = alone(search, model, x, torch.tensor([3]))
        forwards.clear()
        found, _ = swept(search, model, x, torch.tensor([3]), torch.tensor([0]), 8)[0]
        assert forwards[1:] == [8] * expected  # of Square 1, and 25 in eights
        assert torch.equal(found, image[0])  # that of the first of three targets that are all alike


def test_guesses_go_to_the_runs_that_are_behind():
    """Three images in chunks of four, a flat network: nobody gets further ahead than by the guess that is over."""
    apart = []

    class Seen(Square):
        def propose(self, rows):
            super().propose(rows)
            apart.append(int(rows["t"].max() - rows["t"].min()))

    x = images(3)
    swept(
        Seen(eps=EPS, steps=50), lambda z: 0 * curved(z) + torch.eye(10)[3], x, torch.full((3,), 3), torch.arange(3), 4
    )
    assert len(apart) > 30 and max(apart) <= 2


def test_runs_after_the_first_to_beat_an_image_are_given_up():
    x, y, forwards = images(1), torch.tensor([3]), []
    search = TargetedAPGD(eps=EPS, steps=4, targets=3)
    start = begin(search, x, y, None, curved(x))["z"]  # of the first run, which alone the network gets wrong

    def model(z):
        forwards.append(len(z))
        wrong = (z == start).flatten(1).all(1, keepdim=True)
        return 0 * curved(z) + torch.where(wrong, torch.eye(10)[5], torch.eye(10)[3])

    assert swept(search, model, x, y, torch.tensor([0]), 3)[0][1]
    assert forwards[1:] == [3]


@pytest.mark.parametrize(
    "search", [TargetedAPGD(eps=EPS, steps=4, targets=3), TargetedFAB(eps=EPS, steps=4, targets=3)]
)
def test_no_row_is_spent_on_later_runs_while_images_wait_for_their_first(search):
    x, forwards = images(16), []

    def model(z):
        forwards.append(len(z))
        return curved(z)

    y = (curved(x).argmax(1) + 1) % 10  # beaten at the first forward, of FAB's two
    swept(search, model, x, y, torch.arange(16), 4)
    assert forwards[1:] == [4] * 4 * len(search.needs)


def test_a_network_that_breaks_in_a_later_run_is_noticed():
    x, search = images(1), TargetedAPGD(eps=1e-3, steps=4, targets=3)
    y = curved(x).argmax(1)
    start = begin(search, x, y, None, curved(x), torch.tensor([2]))["z"]

    def model(z):
        return curved(z).masked_fill((z == start).flatten(1).all(1, keepdim=True), torch.nan)

    for chunk in (1, 3):
        assert bool(model(swept(search, model, x, y, torch.tensor([0]), chunk)[0][0][None]).isnan().all())


def test_a_wrong_guess_is_not_believed():
    """The second forward beats the image only if the first changed nothing, which it does."""

    asked = []

    class Guesses(Still):
        guesses = True

        def begin(self, rows, logits):
            rows["z"], rows["moved"] = rows["x"].clone(), torch.zeros_like(rows["y"], dtype=torch.bool)

        def step(self, rows, logits, value, gradient):
            asked.append(rows["t"].tolist())
            rows["moved"] = torch.ones_like(rows["moved"])

        def propose(self, rows):
            rows["z"] = torch.where((rows["moved"] | (rows["t"] == 0)).view(-1, 1, 1, 1), rows["x"], rows["x"].flip(3))

    x = torch.tensor([0.5, 0.1]).view(1, 1, 1, 2)
    image, seen = swept(Guesses(), lambda z: z.flatten(1), x, torch.tensor([0]), torch.tensor([0]), 4)[0]
    assert torch.equal(image, 1 - x[0]) and not seen
    assert (sorted(asked[0]), len(asked)) == ([0, 0, 1, 2], 3)  # one row is to spare


def test_of_images_that_are_through_one_byte_is_kept():
    results, found = Results(2), torch.zeros(1, 1, 2, 2)
    assert results.wants(14) and results.wants(15) and results.wants(4)
    results.doubt(torch.tensor([14]))
    assert [image for image, *_ in results.enter(torch.tensor([14]), found, None)] == [7]
    assert list(results.left) == [2] and len(results.through) == 8
    assert not results.wants(14) and not results.wants(15) and results.wants(5)
    assert results.enter(torch.tensor([15]), found, None) == []
