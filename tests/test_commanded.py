"""Broken networks and kills as the command meets them, which runs attacks before its audits."""

import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest
from kills import ARGV, evaluated, of_evaluations
from students import network, save
from test_witness import packs

from gacd.cli import main
from gacd.journal import Journal


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "t", network("resnet8-x0.25", 0, digits), digits)


def test_an_effect_that_comes_only_once_is_seen(monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    Path("nets.py").write_text(
        "import broken\nfrom gacd import checkpoint\ndef make():\n"
        "    return broken.forwards.FreezesItself(checkpoint.load('t')).eval()\n"
    )
    assert main(["evaluate", "./nets.py:make", *ARGV[2:6], "--attacks", "pgd2", "--out", "o"]) == 4
    assert "is given: mode and side effects" in capsys.readouterr().err
    assert not Path("o/results.json").exists()


def test_evaluations_killed_at_random_moments_leave_the_same_files():
    """`benchmarks/trust.py` does it to forty."""
    kills, differ = of_evaluations(2)
    assert kills > 0 and differ == 0


def test_an_attack_in_stages_says_how_it_goes(capsys):
    assert main([*ARGV[:6], "--attacks", "margin4x2", "--eps", "0.02", "--precision", "32", "--device", "cpu"]) in (
        0,
        3,
    )
    said = " ".join("".join(capsys.readouterr()).split())
    assert "adversarial images are searched for in float32, judged in float32" in said
    assert re.search(r"margin4x2, 1 of 2: [\d.]+% \([\d.]+%-[\d.]+%\) of 60 images so far", said)


def dying(notes, *argv):
    """The command in a process that is killed once it has noted that many verdicts."""
    real, left = Journal.note, iter(range(notes))

    def note(self, *found):
        real(self, *found)
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.note = note
    evaluated(*argv)


def test_the_command_killed_again_and_again_leaves_the_same_files():
    def ends(notes, where):
        process = multiprocessing.get_context("fork").Process(target=dying, args=(notes, *ARGV, "--out", where))
        process.start()
        process.join()
        return process.exitcode

    assert ends(10**6, "whole") == 0
    kills = 0
    while (code := ends(kills % 5, "killed")) == -signal.SIGKILL:
        assert list(Path("killed").glob(".evaluation-*/*.pt"))
        kills += 1
    assert code == 0 and kills >= 5
    names = ["results.json", *(pack.name for pack in packs(Path("whole")))]
    assert len(names) == 3
    for name in names:
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()
