"""Figures: every run once, a row per run and kind."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.cbook import STEP_LOOKUP_MAP

from gacd import figures


def test_figures_draw_every_run_once():
    names = [f"run {i}" for i in range(12)]
    points = {name: figures.Point(0.5 + i / 30, 0.5 - i / 30, 0.0, 1.0) for i, name in enumerate(names)} | {
        "none": None
    }
    drawn = figures.svg(figures.scatter(points, "Linf 8/255"), "p", "title")
    assert set(re.findall(r'id="p-run(\d+)"', drawn)) == {str(i) for i in range(12)}
    assert "none" not in "".join(ElementTree.fromstring(drawn).itertext())
    for share in (True, False):
        lines = {name: [(0.0, 1.0), (1.0, i / 12)] for i, name in enumerate(names)} | {"none": []}
        drawn = figures.svg(figures.curves(lines, "x", "y", share=share), "c", "title")
        texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
        assert sorted(text for text in texts if text.startswith("run")) == sorted(names)


def test_pictures_have_a_row_per_run_and_kind(tmp_path):
    x = np.random.default_rng(0).random((4, 3, 8, 8))
    figure = figures.pictures(x, {"a": figures.Picture(x, list("1234"), list("1294"))})
    assert len(figure.axes) == 3 * 4
    assert [axes.get_title() for axes in figure.axes[8:]] == ["1", "2", "3 → 9", "4"]
    figures.png(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_pareto_front_leaves_out_what_is_beaten():
    assert figures.pareto([(0.9, 0.1), (0.8, 0.3), (0.8, 0.2), (0.7, 0.3), (0.5, 0.5)]) == [
        (0.5, 0.5),
        (0.8, 0.3),
        (0.9, 0.1),
    ]


@pytest.mark.parametrize("teacher", [[], [(0.95, 0.7)]])
def test_no_run_lies_beyond_the_front_but_one_that_beats_all(teacher):
    shown = [(0.9, 0.1), (0.8, 0.3), (0.6, 0.2), (0.5, 0.5), *teacher]
    points = {str(i): figures.Point(*point, 0.0, 1.0) for i, point in enumerate(shown)}
    (axes,) = figures.scatter(points, "Linf 8/255").axes
    (front,) = (line for line in axes.lines if line.get_gid() == "front")
    x, y = STEP_LOOKUP_MAP[front.get_drawstyle()](*map(np.array, front.get_data()))
    assert list(zip(x, y, strict=True)) == [(0.5, 0.5), (0.5, 0.3), (0.8, 0.3), (0.8, 0.1), (0.9, 0.1)]


def test_shortened_names_stay_apart():
    names = [f"gacd-temperature{t}-k16384-seed0" for t in (0.1, 0.2)]
    assert figures.shortened([*names, "ard"], 20) == ["gacd-tempe…384-seed0 (1)", "gacd-tempe…384-seed0 (2)", "ard"]
