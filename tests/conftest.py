"""Fixtures of several files."""

import pytest
from students import network, save

from gacd import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def taught(tmp_path_factory, digits):
    """teacher, a (taught by it), b (--init a, so taught by it too)."""
    root = tmp_path_factory.mktemp("runs")
    save(root / "teacher", network("resnet8-x0.5", 0, digits), digits, method="pgdat")
    save(root / "a", network("resnet8-x0.25", 1, digits), digits, teacher=str(root / "teacher"))
    save(root / "b", network("resnet8-x0.25", 2, digits), digits, init=str(root / "a"), method="pgdat", teacher=None)
    return root
