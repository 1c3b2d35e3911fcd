"""A recipe's rows as tables and figures: means over seeds, costs, beside the paper's numbers."""

import json

from pages import entry, make

from gacd.recipe import Row
from gacd.records import Measured
from gacd.reproduce import Line, beside, drawn, lines_of


def test_another_data_set_s_evaluation_is_no_seed(tmp_path):
    for name in ("a", "b"):
        rows = [entry("natural", 0.5), entry("pgd20", 0.3, "8/255")]
        rows += [entry("natural", 0.1, data="other")] * (name == "b")
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(dict(results=rows)))
    both = [Row("claim", name, [tmp_path / name]) for name in ("a", "b")]
    assert [[set(m) for m in line.measured] for line in lines_of(both)] == [[{"natural", "pgd20"}]] * 2


def measured(cell, **shares):
    run = {a: Measured("cifar10", 1000, a, "Linf", 8 / 255, share, {}) for a, share in shares.items()}
    return Line(cell, [run], [])


def test_numbers_in_cells_are_drawn_as_curves_and_others_as_points():
    swept = [measured(cell, natural=0.6, pgd20=0.3, worst=0.25) for cell in ("k/256", "k/16", "T/0.1", "T/0.2")]
    assert list(drawn("figure2", swept)) == ["-k", "-T"]
    axes = drawn("figure2", swept)["-k"].axes[0]
    assert axes.get_xscale() == "log"
    assert [line.get_xdata().tolist() for line in axes.lines] == [[16, 256]] * 3
    points = drawn("table4", [measured("cifar100/KD", natural=0.3, pgd7=0.1), measured("cifar100/ARD")])
    assert points[""].axes[0].get_ylabel() == "robust accuracy, pgd7"
    assert drawn("table4", [measured("cifar100/KD")]) == {}
    assert list(drawn("mine", [measured("k/1.2.3", natural=0.3, worst=0.1)])) == [""]


def test_means_and_spreads_stand_beside_the_paper_s():
    line = measured("ARD", natural=0.5, worst=0.2)._replace(theirs=[79.49, 51.21], costs=[1e14, 1.1e14])
    line.measured.append({**line.measured[0], "natural": measured("", natural=0.6).measured[0]["natural"]})
    table = beside("claim", [line, Line("KD", [], [])])
    ours = ["55.00 ± 7.07", "20.00 ± 0.00", "2", "105"]
    assert [cell.text for cell in table.rows[0]] == ["ARD", *ours, "79.49", "51.21"]
    assert [cell.text for cell in table.rows[1]] == ["KD", "–", "–", "–", "–", "–", "–"]


def test_a_mean_is_of_runs_on_the_same_images(tmp_path):
    shares = [(0.3, {}), (0.5, dict(n=100)), (0.32, {}), (0.9, dict(data="stl10"))]
    for i, (share, of) in enumerate(shares):
        make(tmp_path, f"a-{i}", [entry("natural", 0.8, **of), entry("pgd20", share, "8/255", **of)])
    (line,) = lines_of([Row("claim", "ARD", [tmp_path / f"a-{i}" for i in range(4)])])
    cells = beside("claim", [line]).rows[0]
    assert [cell.whole for cell in cells[1:4]] == ["80.00 ± 0.00", "31.00 ± 1.41", "2 of 4 on the same images"]


def test_a_row_s_older_runs_stay_whatever_other_rows_are_of(tmp_path):
    """Of these it is not known which images they were evaluated on."""
    for name, share, of in (("a-0", 0.3, {}), ("a-1", 0.5, dict(data_sha256="h")), ("b", 0.2, dict(data_sha256="g"))):
        make(tmp_path, name, [entry("natural", 0.8, **of), entry("pgd20", share, "8/255", **of)])
    a, _ = lines_of([Row("x", "A", [tmp_path / "a-0", tmp_path / "a-1"]), Row("x", "B", [tmp_path / "b"])])
    assert a.mean("pgd20").mean == 0.4


def test_a_number_that_an_audit_doubts_says_so():
    swept = [measured(cell, natural=0.6, pgd20=0.3) for cell in ("k/16", "k/64")]
    assert [line.get_linestyle() for line in drawn("figure2", swept)["-k"].axes[0].lines] == ["-", "-"]
    swept[0].measured[0]["pgd20"] = swept[0].measured[0]["pgd20"]._replace(row=dict(verdict="SUSPECT"))
    assert [line.get_linestyle() for line in drawn("figure2", swept)["-k"].axes[0].lines] == ["-", "--"]
    line = measured("ARD", natural=0.5, worst=0.2)
    line.measured[0]["worst"] = line.measured[0]["worst"]._replace(row=dict(verdict="SUSPECT"))
    assert [cell.note for cell in beside("claim", [line]).rows[0][:3]] == ["", "", "unverified"]


def test_worst_cases_of_unlike_attacks_are_neither_averaged_nor_drawn():
    line = measured("ARD", natural=0.5, pgd20=0.3, worst=0.3)
    line.measured.append(measured("", natural=0.6, pgd20=0.3, margin20=0.25, worst=0.25).measured[0])
    cells = dict(
        zip([column.name for column in beside("claim", [line]).columns], beside("claim", [line]).rows[0], strict=True)
    )
    assert (cells["natural"].text, cells["worst"].text) == ("55.00 ± 7.07", "–")
    assert drawn("claim", [line])[""].axes[0].get_ylabel() == "robust accuracy, pgd20"
