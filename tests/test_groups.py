"""Which runs are repetitions, and what is said of them together."""

import math
from pathlib import Path

import pytest

from gacd.figures import Point
from gacd.groups import grouped, mean, mean_line, mean_point, over_seeds
from gacd.records import Measured, Run
from gacd.sections import Section


def run(name, seed=None, robust=None, n=1000, attack="pgd20", **options):
    made = Run(name, Path(name), dict(method="pgdat", eps="8/255") | options, "resnet8")
    made.options |= {} if seed is None else dict(seed=seed)
    if robust is not None:
        made.measured = [Measured("c", n, a, "Linf", 0.03, r, {}) for a, r in (("natural", 0.8), (attack, robust))]
    return made


def names(*runs):
    return {group.name: [r.name for r in group.runs] for group in grouped(runs)}


@pytest.mark.parametrize("form", ["a-{}", "a_{}", "a-s{}", "x/a-seed{}", "seed{}/a", "{}/a", "a-{}/b", "a.{}"])
def test_names_that_end_in_the_seed(form):
    runs = [run(form.format(seed), seed) for seed in (0, 1, 12)]
    (group,) = grouped(runs[::-1])
    assert group.seeds == [0, 1, 12]
    assert not any(c.isdigit() for c in group.name)


def test_what_differs_in_more_than_the_seed_is_apart():
    assert len(names(run("a-0", 0), run("a-1", 1, lr=0.1))) == 2
    assert len(names(run("a-0", 0), run("b-1", 1))) == 2
    assert len(names(run("a-0", 0), run("a-10", 1))) == 2, "0 is not the seed 10"
    assert len(names(run("wrn-34-0", 0), run("wrn-10-1", 1))) == 2
    assert len(names(run("a-0", 0, device="cpu"), run("a-1", 1, device="cuda", data_dir="/x"))) == 1


def test_sources_may_be_the_same_or_those_of_the_same_seed():
    own = [run(f"a-{s}", s, teacher=f"r/t-{s}", init=f"r/i-{s}") for s in (0, 1, 2)]
    assert names(*own) == {"a": ["a-0", "a-1", "a-2"]}
    shared = [run(f"a-{s}", s, teacher="r/t-0", init=f"r/i-{s}") for s in (0, 1, 2)]
    assert names(*shared) == {"a": ["a-0", "a-1", "a-2"]}
    shipped = [run(f"a-{s}", s, teacher=f"r/t-{s}.safetensors", init=f"r/i-{s}/checkpoints/best.pt") for s in (0, 1)]
    assert names(*shipped) == {"a": ["a-0", "a-1"]}
    assert len(names(run("a-0", 0, teacher="wrn-40-2"), run("a-1", 1, teacher="wrn-40-4"))) == 2


def test_a_seed_counts_once_and_a_run_without_one_is_alone():
    assert names(run("a", 0), run("a-0", 0), run("a-1", 1)) == {"a": ["a", "a-1"], "a-0": ["a-0"]}
    assert names(run("a"), run("b"), run("c", [0])) == {"a": ["a"], "b": ["b"], "c": ["c"]}


def test_no_two_groups_have_one_name():
    runs = [run("a-0", 0), run("a-1", 1), run("a_0", 0, lr=1), run("a_1", 1, lr=1), run("a", lr=2)]
    assert [group.name for group in grouped(runs)] == ["a-0", "a_0", "a"]


def test_means_and_spreads_are_those_of_a_sample():
    runs = [run(f"a-{s}", s, share) for s, share in enumerate((0.40, 0.42, 0.47))]
    runs += [run("b-0", 0, 0.5), run("c-0", 0)]
    table = over_seeds(Section("c", runs), grouped(runs))
    b, a = table.rows
    mu = (0.40 + 0.42 + 0.47) / 3
    sd = math.sqrt(sum((x - mu) ** 2 for x in (0.40, 0.42, 0.47)) / 2)
    assert [cell.text for cell in a] == ["a", "pgdat", "resnet8", "3", "80.0 ± 0.0", "43.0 ± 3.6", "43.0 ± 3.6", "1000"]
    assert a[5].values == pytest.approx((100 * mu, 100 * sd))
    assert [cell.text for cell in b] == ["b-0", "pgdat", "resnet8", "1", "80.0", "50.0", "50.0", "1000"]
    assert b[6].best and not a[6].best


def test_few_images_do_not_compete():
    runs = [run(f"a-{s}", s, 0.4) for s in (0, 1)] + [run(f"b-{s}", s, 0.6, n=50) for s in (0, 1)]
    best = {row[-1].text: (row[4].best, row[-2].best) for row in over_seeds(Section("c", runs), grouped(runs)).rows}
    assert best == {"1000": (True, True), "50": (False, False)}


def test_nothing_repeated_no_table():
    runs = [run("a-0", 0, 0.4), run("b-0", 0, 0.5), run("a-1", 1)]
    assert over_seeds(Section("c", runs), grouped(runs)) is None


def test_only_like_is_averaged_with_like():
    runs = [run("a-0", 0, 0.4), run("a-1", 1, 0.5), run("a-2", 2, 0.1, attack="fgsm"), run("a-3", 3, 0.7, n=50)]
    full, few = over_seeds(Section("c", runs), grouped(runs)).rows
    if full[-1].text == "50":
        full, few = few, full
    assert [cell.text for cell in few[3:]] == ["1", "80.0", "70.0", "–", "70.0", "50"]
    assert [cell.text for cell in full[3:]] == ["3", "80.0 ± 0.0", "45.0 ± 7.1", "10.0", "–", "1000"]
    assert [cell.note for cell in full[5:7]] == ["of 2", "of 1"]


def test_means_of_points_and_curves():
    assert mean([None]) is None
    single = Point(0.8, 0.4, 0.3, 0.5)
    assert mean_point([single, None]) == single
    assert mean_point([None]) is None
    assert mean_point([single, Point(0.9, 0.2, 0.1, 0.3)]) == pytest.approx(Point(0.85, 0.3, 0.2, 0.4))
    lines = [[(0.0, 1.0), (1.0, 2.0), (2.0, 9.0)], [], [(0.0, 3.0), (1.0, 4.0)]]
    assert mean_line(lines) == [(0.0, 2.0), (1.0, 3.0)]
    assert mean_line([[(0.0, 1.0)], [(1.0, 1.0), (2.0, 1.0)]]) == [(1.0, 1.0), (2.0, 1.0)]
    assert mean_line([[], []]) == []
