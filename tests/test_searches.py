"""What all the searches of a row keep: a new one is a line of EVERY."""

from functools import partial

import pytest
from searches import (
    assert_broken_network_is_noticed,
    assert_no_side_effects,
    assert_rows_stand_alone,
    assert_stays_inside,
    assert_whatever_the_order,
)

from gacd.attacks.apgd import APGD, TargetedAPGD
from gacd.attacks.fab import TargetedFAB
from gacd.attacks.search import PGD
from gacd.attacks.square import Square

EVERY = {
    "pgd": partial(PGD, step_size=0.02, steps=10),
    "apgd": partial(APGD, loss="dlr", steps=40),
    "apgd-t": partial(TargetedAPGD, steps=13, targets=4),
    "fab-t": partial(TargetedFAB, steps=6, targets=4),
    "fab-t again": partial(TargetedFAB, steps=6, targets=4, restart=1),
    "square": partial(Square, steps=40),
}
every = pytest.mark.parametrize("name", EVERY)
every_norm = pytest.mark.parametrize(
    ("name", "norm"), [(n, norm) for n in EVERY for norm in ("Linf", "L2") if norm == "Linf" or "pgd" in n]
)


@every_norm
def test_rows_stand_alone(name, norm):
    search = EVERY[name](norm=norm, eps=0.3 if "pgd" in name else 0.1)
    assert_rows_stand_alone(search, search.steps - 4)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "fab-t again"])
def test_a_function_of_seed_and_image_whatever_the_order(name):
    assert_whatever_the_order(partial(EVERY[name], eps=0.1), seeds=name != "fab-t")  # which starts at the image


@every_norm
@pytest.mark.parametrize("eps", [0.0, 1e-3, 8 / 255, 1.0])
def test_inside_the_ball_and_the_box_in_exact_arithmetic(name, norm, eps):
    assert_stays_inside(EVERY[name], norm, eps)


@every_norm
def test_no_side_effects(name, norm):
    assert_no_side_effects(EVERY[name](norm=norm))


@every
def test_a_broken_network_is_noticed(name):
    assert_broken_network_is_noticed(EVERY[name]())
