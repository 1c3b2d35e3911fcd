"""An analysis' figures."""

import numpy as np

from gacd import plots


def test_figures_name_classes_only_where_they_can_be_read():
    r = np.eye(3)
    rows = [plots.Pair("a", r, r / 2, 0.1), plots.Pair("b", r, -r, 0.2)]
    figure = plots.correlations(rows, "teacher", ["x", "y", "a very long class name"], 0.5)
    grid = figure.axes[:6]
    assert [t.get_text() for t in grid[0].get_yticklabels()] == ["x", "y", "a very long c…"]
    assert [ax.get_title() for ax in grid[3:]] == ["teacher", "b", "difference, mean size 0.200"]
    assert [ax.images[0].get_clim() for ax in grid[:3]] == [(-1, 1), (-1, 1), (-0.5, 0.5)]
    assert not plots.correlations(rows, "teacher", None, 0.5).axes[0].get_yticklabels()
