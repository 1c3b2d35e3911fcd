"""Fixtures of several files."""

import os

import pytest
import torch
from sounds import EPS, trained
from students import network, save

from gacd import data
from gacd.audit import Audit, Finding

# Networks trained here have the bits of one thread, whatever starts pytest; so do those of processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


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


@pytest.fixture(scope="module")
def sound(digits):
    """A small network trained on adversarial images for a second."""
    return trained(digits, "resnet8-x0.25", EPS, epochs=3)


@pytest.fixture
def images(digits):
    """Sixty test digits and their labels."""
    return data.pixels(digits.test.images[:60]), digits.test.labels[:60]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on digits, "t" in the current folder."""
    monkeypatch.chdir(tmp_path)
    images = data.load("digits")
    save(tmp_path / "t", network("resnet8-x0.5", 0, images), images)
    return tmp_path / "t"


@pytest.fixture
def find(monkeypatch):
    """Puts a finding in the place of all audits."""

    def audits_find(outcome, says="9 images"):
        finding = Finding("black box", outcome, says)
        monkeypatch.setattr("gacd.assess.audit", lambda *_, **__: Audit([finding]))

    return audits_find
