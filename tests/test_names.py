"""What the attacks' names stand for, with all their settings."""

import inspect

import torch
from searches import curved, images

from gacd.attacks.apgd import APGD, TargetedAPGD
from gacd.attacks.fab import TargetedFAB
from gacd.attacks.names import MAKERS, STEPS, parse_attack, searches, written
from gacd.attacks.search import FGSM, PGD, begin
from gacd.attacks.square import Square
from gacd.losses import cross_entropy, margin_loss


def made(name, norm="Linf"):
    threat = dict(norm=norm, eps=0.1, step_size=0.02)
    found, told = searches(name, **threat, seed=3, classes=5), written(name, **threat)
    assert all(search.norm == norm and search.eps == 0.1 for search in found)
    assert all(search.seed == (0 if name == "fgsm" else 3) for search in found)
    assert (told["norm"], told["eps"]) == (norm, 0.1)
    return found, {key: value for key, value in told.items() if key not in ("norm", "eps")}


def of(search, *names):
    return (type(search), *(getattr(search, name) for name in names))


def test_pgd_margin_and_fgsm():
    for norm in ("Linf", "L2"):
        for name, loss in (("pgd", cross_entropy), ("margin", margin_loss)):
            (search,), told = made(name, norm)
            assert of(search, "loss", "steps", "step_size", "restart") == (PGD, loss, 20, 0.02, 0)
            assert told == dict(step_size=0.02, steps=20)
            found, told = made(f"{name}7x3", norm)
            assert [of(s, "loss", "steps", "restart") for s in found] == [(PGD, loss, 7, r) for r in range(3)]
            assert told == dict(step_size=0.02, steps=7, restarts=3)
        (search,), told = made("fgsm", norm)
        assert of(search, "steps", "step_size") == (FGSM, 1, 0.1)
        assert told == dict(step_size=0.1, steps=1)


def test_the_others_with_steps_and_restarts():
    (search,), told = made("apgd-ce", "L2")
    assert of(search, "loss", "moves", "restart") == (APGD, "ce", 100, 0)
    assert told == dict(steps=100)
    found, told = made("apgd-dlr30x2")
    assert [of(s, "loss", "moves", "restart") for s in found] == [(APGD, "dlr", 30, r) for r in range(2)]
    assert told == dict(steps=30, restarts=2)
    found, _ = made("apgd-t7x2")
    assert [of(s, "moves", "classes", "runs", "restart") for s in found] == [(TargetedAPGD, 7, 5, 4, r) for r in (0, 1)]
    found, _ = made("fab-t12x2")
    assert [of(s, "steps", "classes", "runs", "restart") for s in found] == [(TargetedFAB, 24, 5, 4, r) for r in (0, 1)]
    assert made("fab-t12")[1] == dict(steps=12) and made("fab-t")[1] == dict(steps=100)
    found, _ = made("square40x2")
    assert [of(s, "steps", "rescale", "restart") for s in found] == [(Square, 40, True, r) for r in (0, 1)]
    assert made("square")[1] == dict(steps=5000)


def test_a_name_without_numbers_stands_for_the_attacks_own():
    for family, make in MAKERS.items():
        if family in STEPS:
            own = inspect.signature(make).parameters["steps"].default
            assert STEPS[family] == own == parse_attack(family).steps, family
    assert parse_attack("autoattack").steps is parse_attack("cascade").steps is None


def test_cascade_is_autoattacks_four_at_their_settings():
    (ce, targeted, fab, square), told = made("cascade")
    assert of(ce, "loss", "moves") == (APGD, "ce", 100)
    assert of(targeted, "moves", "classes", "runs") == (TargetedAPGD, 100, 5, 4)
    assert of(fab, "steps", "classes", "runs") == (TargetedFAB, 2 * 100, 5, 4)
    assert of(fab, "alpha_max", "eta", "beta") == (TargetedFAB, 0.1, 1.05, 0.9)
    assert of(square, "steps", "p_init", "rescale") == (Square, 5000, 0.8, False)
    assert told == dict(of=["apgd-ce", "apgd-t", "fab-t", "square"])


def test_restarts_start_elsewhere():
    x = images(4)
    y = curved(x).argmax(1)
    for name in ("pgd2x3", "margin2x3", "apgd-ce2x3", "apgd-dlr2x3", "fab-t2x3", "square2x3"):
        found = searches(name, norm="Linf", eps=0.1, step_size=0.02, seed=0, classes=10)
        starts = [begin(search, x, y, None, curved(x))["z"] for search in found]
        for i in range(3):
            assert not any(torch.equal(starts[i], other) for other in starts[:i]), name
