"""The full audits: what each is there for, and that a sound network passes them."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from broken import Broken, HugeLogits, Shattered
from sounds import EPS, finding, trained, verdicts

from gacd import data
from gacd.attacks import ATTACKS
from gacd.attacks.square import Square
from gacd.audit import FULL, QUICK, audit
from gacd.audits import full
from gacd.audits.case import Case
from gacd.losses import cross_entropy, margin_loss


def test_the_full_audits_pass_a_sound_network(digits, sound, images):
    x, y = images
    given = verdicts(sound, x, y, "pgd", "margin")
    result = audit(sound, x, y, eps=EPS, chunk=30, **given, teacher=sound, full=True, noises=60)
    assert [f.name for f in result.findings] == [*QUICK, *FULL]
    assert not result.troubles
    assert result.verdict == "TRUSTED"


def alone(name, model, images, **threat):
    """One audit's outcome and sentence, without the others."""
    x, y = images
    threat = dict(norm="Linf", eps=EPS, step_size=EPS / 4, chunk=60, seed=0, teacher=None, noises=0) | threat
    kind = (QUICK | FULL)[name]
    passed, says, _ = kind.look(Case(model.eval(), x, y, given=None, given_x_adv=None, fresh=None, **threat))
    return "passed" if passed else kind.fails, says


def test_each_means_without_gradients_tells_on_its_own(sound, images):
    name, shattered = "black box, transfer, noise", Shattered(sound)
    outcome, says = alone(name, shattered, images)
    assert outcome == "suspect" and re.search(r"gradients: Square [1-9]\d*, no teacher, 0 noises", says)
    outcome, says = alone(name, shattered, images, norm="L2", eps=0.5, step_size=0.125, teacher=sound)
    assert outcome == "suspect" and re.search(r"gradients: transfer [1-9]\d*, 0 noises", says)


def test_a_transfer_takes_all_its_steps(digits, sound):
    """What only just fools the teacher fools nobody else."""
    teacher = trained(digits, "resnet8-x0.5", EPS, seed=5)
    x, y = data.pixels(digits.test.images[:200]), digits.test.labels[:200]
    right, radius = sound(x).argmax(1) == y, 0.2
    z = ATTACKS["margin"](teacher, x, y, eps=radius, step_size=radius / 4)
    expected = int((right & (sound(z).argmax(1) != y)).sum())
    masked = (Shattered(sound), (x, y))
    _, says = alone("black box, transfer, noise", *masked, eps=radius, step_size=radius / 4, teacher=teacher)
    assert int(re.search(r"transfer (\d+)", says)[1]) > 0.7 * expected > 20


def test_squares_are_other_ones_than_the_headline_s(sound, images, monkeypatch):
    keys = []
    monkeypatch.setattr(full, "Square", lambda **options: keys.append((made := Square(**options)).key) or made)
    alone("black box, transfer, noise", sound, images)
    assert keys and keys[0] not in [Square(seed=0, restart=restart).key for restart in range(5)]


def test_an_attack_that_a_larger_ball_catches_is_told_by_the_ladder(sound, images):
    class Purifies(Broken):
        """Answers as at the nearest known image what is far from all of them."""

        def forward(self, z):
            distances = (z[:, None] - images[0]).abs().amax((2, 3, 4))
            far = (distances.amin(1) > 1.2 * EPS)[:, None, None, None]
            return self.net(torch.where(far, images[0][distances.argmin(1)], z))

    assert alone("eps ladder", Purifies(sound), images)[0] == "suspect"
    assert alone("eps ladder", sound, images)[0] == "passed"


def test_an_attack_that_has_not_converged_is_told_by_twice_its_steps(digits, sound):
    images = data.pixels(digits.test.images[:200]), digits.test.labels[:200]
    assert alone("steps and restarts doubled", sound, images, step_size=EPS / 30)[0] == "suspect"  # 24, 3 allowed


def test_a_headline_of_cross_entropy_alone_is_asked_about_the_margin_too(sound, images):
    assert alone("steps and restarts doubled", HugeLogits(sound), images)[0] == "suspect"


@pytest.mark.parametrize(
    ("names", "steps", "restarts"),
    [
        (["pgd2"], 40, 2),
        (["pgd20", "margin100x5", "fgsm"], 200, 10),
        (["mine", "cascade"], 200, 2),
        (["square90"], 40, 2),
    ],
)
def test_twice_is_twice_the_headline_s_own(names, steps, restarts):
    made, right = [], torch.ones(3, dtype=torch.bool)
    case = SimpleNamespace(correct=dict.fromkeys(["natural", *names], right), survivors=right, slack=3)
    case.pgd = lambda loss, **options: made.append((loss, options["restart"], options["steps"]))
    case.broken = lambda which, *searches: ~which
    assert full.doubled(case)[0]
    losses = (cross_entropy, margin_loss)
    first = restarts // 2  # behind the headline's own, whose starts are 0, 1, ...
    assert made == [(loss, first + restart, steps) for loss in losses for restart in range(restarts)]


def test_noise_finds_what_a_shattered_gradient_hides(sound, images):
    x, y = images
    result = audit(Shattered(sound).eval(), x[:30], y[:30], eps=EPS, chunk=30, full=True, noises=300)
    assert finding(result, "black box, transfer, noise").outcome == "suspect"
    assert result.exit_code == 3


def test_an_l2_ball_is_searched_without_the_square_attack(sound, images):
    x, y = images
    result = audit(sound, x[:20], y[:20], norm="L2", eps=0.5, chunk=20, teacher=sound, full=True, noises=20)
    against = finding(result, "black box, transfer, noise")
    assert against.outcome == "passed"
    assert re.search(r"gradients: transfer \d, 20 noises each 0 of \d+$", against.says)  # up to three are luck


@pytest.mark.parametrize(("n", "missed", "passes"), [(49, 0, True), (49, 1, False), (50, 1, True), (100, 2, False)])
def test_one_planted_region_of_fifty_may_be_missed(n, missed, passes, sound, monkeypatch):
    monkeypatch.setattr(full, "_plant", lambda case, model, x, row: row)
    monkeypatch.setattr(full, "_finds", lambda case, model, readout, x, row, restart: restart == 19 and row >= missed)
    case = SimpleNamespace(model=sound, x=torch.zeros(n, 1), correct=dict(natural=torch.ones(n, dtype=torch.bool)))
    assert full.planted_region(case)[:2] == (passes, f"PGD finds {n - missed} of {n} planted regions")


def test_a_planted_region_is_missed_where_gradients_are_masked(sound, images):
    x, y = images
    model = copy.deepcopy(sound)
    model.features = lambda z: sound.features((z * 64).round() / 64)
    result = audit(model, x[:20], y[:20], eps=EPS, chunk=20, full=True, noises=20)
    assert finding(result, "planted region").outcome == "suspect"
