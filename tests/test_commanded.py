"""Broken networks and kills as the command meets them, which runs attacks before its audits."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from students import network, save
from test_witness import evaluated, packs

from gacd.cli import main
from gacd.journal import Journal

ARGV = ["evaluate", "t", "--data", "digits", "--n", "60", "--attacks", "pgd4", "margin4", "--precision", "32"]
ARGV += ["--chunk", "8", "--eps", "8/255", "0.02", "--device", "cpu"]


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


def dying(notes, *argv):
    """The command in a process that is killed once it has noted that many verdicts."""
    torch.set_num_threads(1)
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
