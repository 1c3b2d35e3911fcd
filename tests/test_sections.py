"""How the evaluations of several runs stand beside each other."""

import re

from pages import entry, make, page

from gacd.groups import grouped, over_seeds
from gacd.records import collect
from gacd.sections import family_of, percent, sections


def test_numbers_are_the_right_ones(tmp_path):
    rows = [
        entry("natural", 0.9),
        entry("pgd20", 0.44, "8/255"),
        entry("fgsm", 0.6, "8/255"),
        entry("pgd20", 0.2, "16/255"),
    ]
    rows += [
        entry("pgd20", 0.45, "8/255", seed=1),
        entry("worst", 0.43, "8/255"),
        entry("pgd20", 0.7, "4/255", versions=3, commit=None),
    ]
    make(tmp_path, "a", rows)
    make(tmp_path, "b", [entry("natural", 0.8), entry("pgd20", 0.5, "8/255")])
    (section,) = sections(collect([str(tmp_path)]))
    assert [str(part) for part in section.threat] == ["Linf", "8/255"]
    assert [line.run.name for line in section.lines] == ["b", "a"], "the most robust first"
    a = section.lines[1]
    assert (a.natural.accuracy, a.attacks["pgd20"].accuracy, a.worst.accuracy) == (0.9, 0.44, 0.43)
    curve = section.robust(a.run, "pgd20")
    assert [accuracy for _, accuracy in curve] == [0.9, 0.7, 0.44, 0.2]
    text, document = page(tmp_path)
    assert not document.open
    assert {"90.0", "44.0", "43.0", "12,345"} <= set(document.cells)
    assert "–".join(f" {v} " for v in ("36.0", "50.2")).strip() in text.replace("&ndash;", "–")
    assert {"abc123", "2.13.0", "a CPU"} <= set(re.findall(r"abc123|2\.13\.0|a CPU", text))


def test_runs_with_other_n_and_other_data_are_not_mixed(tmp_path):
    make(tmp_path, "a", [entry("natural", 0.9), entry("pgd20", 0.45, "8/255")])
    make(
        tmp_path,
        "b",
        [entry("natural", 0.9, n=10), entry("pgd20", 0.4, "8/255", n=10), entry("natural", 0.7, data="stl10")],
    )
    text, document = page(tmp_path)
    assert [section.data for section in sections(collect([str(tmp_path)]))] == ["cifar10", "stl10"]
    assert "differ in their images" in text
    table = text[: text.index("stl10")]
    assert re.findall(r"best\"[^>]*>\s*([\d.]+)<", table) == ["90.0", "45.0"], "of the rows with the most images"
    assert {"10", "200"} <= set(document.cells)


def test_a_line_is_of_the_images_evaluated_last(tmp_path):
    """Under one name and number: a folder's may have changed, or been scaled."""
    older = [entry("natural", 0.9), entry("worst", 0.05, "8/255", of=["mine"])]  # it is not known of which
    rows = [(share, dict(data_sha256=images)) for share, images in ((0.95, "a"), (0.15, "b"), (0.12, "a"))]
    attacked = [entry(name, share - 0.1, "8/255", **of) for share, of in rows for name in ("pgd20", "margin20")]
    make(tmp_path, "a", [*older, *(entry("natural", share, **of) for share, of in rows[:2]), *attacked[:4]])
    (section,) = sections(collect([str(tmp_path)]))
    (line,) = section.lines
    found = [line.natural, *line.attacks.values(), line.worst]
    assert [round(m.accuracy, 6) for m in found] == [0.9, 0.05, 0.05, 0.05]
    make(tmp_path / "b", "b", [entry("pgd20", 0.6, "4/255", data_sha256="a"), *attacked[2:4], entry("natural", 0.8)])
    (section,) = sections(collect([str(tmp_path / "b")]))
    assert section.robust(section.runs[0], "pgd20") == [(0.0, 0.8), (8 / 255, attacked[2]["accuracy"])]


def test_only_what_was_attacked_alike_and_is_not_in_doubt_is_ranked(tmp_path):
    rows = [entry("natural", 0.9), entry("pgd20", 0.5, "8/255")]
    make(tmp_path, "masked", [rows[0], entry("pgd20", 0.85, "8/255", verdict="SUSPECT", doubts=["x"])])
    for name in "ab":
        make(tmp_path, name, rows)
    (section,) = sections(collect([str(tmp_path)]))
    assert [line.run.name for line in section.lines] == ["a", "b", "masked"]
    assert section.comparable == [True, True, False]
    make(tmp_path, "c", [*rows, entry("autoattack", 0.4, "8/255")])
    (section,) = sections(collect([str(tmp_path)]))
    assert not any(section.comparable)
    assert all(section.whole)
    assert "not attacked alike" in page(tmp_path)[0]


def test_of_equal_numbers_the_one_in_doubt_is_shown(tmp_path):
    sure, doubted = (entry("pgd20", 0.4, "8/255", verdict=verdict) for verdict in ("TRUSTED", "SUSPECT"))
    for name, rows in (("a", [sure, doubted]), ("b", [doubted, sure])):
        make(tmp_path, name, rows)
    for line in sections(collect([str(tmp_path)]))[0].lines:
        assert line.attacks["pgd20"].suspect and line.worst.suspect


def test_decimals_are_those_that_n_can_tell():
    assert percent(0.12345, 1000) == "12.3"
    assert percent(0.12345, 10_000) == "12.35"


def test_accuracy_by_steps(tmp_path):
    shares = {1: 0.6, 5: 0.5, 20: 0.45, 50: 0.44}
    rows = [entry("natural", 0.9), *(entry(f"pgd{k}", v, "8/255", steps=k) for k, v in shares.items())]
    rows += [entry("pgd20", 0.46, "8/255", steps=20, seed=1), entry("pgd50", 0.1, "16/255", steps=50)]
    make(tmp_path, "a", [*rows, entry("margin20", 0.4, "8/255", steps=20)])
    (section,) = sections(collect([str(tmp_path)]))
    assert section.by_steps(section.runs[0], "pgd") == sorted(shares.items())
    assert section.by_steps(section.runs[0], "margin") == [(20, 0.4)]
    assert "against the number of its steps" in page(tmp_path)[0]


def test_as_many_other_images_are_neither_ranked_nor_averaged(tmp_path):
    """--size, or a folder whose content has changed, makes them."""
    for seed, images, natural, robust in ((0, "a", 0.6, 0.3), (1, "b", 0.8, 0.5), (2, "a", 0.7, 0.4)):
        rows = [entry("natural", natural, data_sha256=images), entry("pgd20", robust, "8/255", data_sha256=images)]
        make(tmp_path, f"r-{seed}", rows, options=dict(seed=seed))
    make(tmp_path, "old", [entry("natural", 0.5), entry("pgd20", 0.2, "8/255")])  # it is not known of which
    runs = collect([str(tmp_path)])
    (section,) = sections(runs)
    assert {line.run.name: may for line, may in zip(section.lines, section.comparable, strict=True)} == {
        "r-0": True, "r-1": False, "r-2": True, "old": False,
    }  # fmt: skip
    groups = grouped(runs)
    table = over_seeds(section, groups)
    assert sorted((row[3].text, row[4].text) for row in table.rows if row[0].text == "r") == [
        ("1", "80.0"), ("2", "65.0 ± 7.1"),
    ]  # fmt: skip
    assert [line.run.name for group in groups if group.name == "r" for line in group.alike(section)] == ["r-0", "r-2"]
    assert "differ in their images" in page(tmp_path)[0]


def test_what_is_hidden_chooses_no_radius(tmp_path):
    """Of the same number of other images, evaluated before."""
    rows = [entry("natural", 0.9, data_sha256="a"), entry("pgd20", 0.5, "8/255", data_sha256="a")]
    rows += [entry("natural", 0.8, data_sha256="b"), entry("pgd20", 0.6, "4/255", data_sha256="b")]
    make(tmp_path, "a", rows)
    (section,) = sections(collect([str(tmp_path)]))
    assert str(section.threat[1]) == "4/255"
    assert section.lines[0].worst.accuracy == 0.6
    assert page(tmp_path)


def test_restarts_are_no_steps():
    assert [family_of(name) for name in ("pgd20", "pgd20x5", "pgdx5", "apgd-ce100", "cascade", "7")] == [
        ("pgd", 20), ("pgd20x5", 0), ("pgdx5", 0), ("apgd-ce", 100), ("cascade", 0), ("", 7),
    ]  # fmt: skip


def test_curves_with_a_number_in_doubt_are_dashed(tmp_path):
    sure = [entry("natural", 0.9), entry("pgd20", 0.6, "4/255"), entry("pgd20", 0.5, "8/255")]
    make(tmp_path, "sure", sure)
    make(tmp_path, "beside", [*sure, entry("margin20", 0.6, "8/255", verdict="SUSPECT", doubts=["x"])])
    assert "stroke-dasharray" not in page(tmp_path)[0]
    make(tmp_path, "masked", [*sure[:2], entry("pgd20", 0.85, "8/255", verdict="SUSPECT", doubts=["x"])])
    assert "stroke-dasharray" in page(tmp_path)[0]
