"""The command evaluate: what its audits find is not taken back, what it has judged is not lost."""

import json
from pathlib import Path

import pytest
import torch
from students import network, save
from test_witness import packs

from gacd import checkpoint, data, witness
from gacd.audit import Audit, Finding
from gacd.cli import main

ARGV = ["evaluate", "t", "--n", "60", "--attacks", "fgsm", "pgd2", "--precision", "32"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = data.load("digits")
    save(tmp_path / "t", network("resnet8-x0.5", 0, images), images)
    return tmp_path / "t"


@pytest.fixture
def find(monkeypatch):
    """Puts a finding in the place of all audits."""

    def audits_find(outcome):
        finding = Finding("black box", outcome, "9 images")
        monkeypatch.setattr("gacd.assess.audit", lambda *_, **__: Audit([finding]))

    return audits_find


def verdicts(run):
    rows = json.loads((run / "results.json").read_text())["results"]
    found = {(row["verdict"], row["audits"], *row["doubts"]) for row in rows if "verdict" in row}
    assert {witness.read(pack).about["verdict"] for pack in packs(run)} == {verdict for verdict, *_ in found}
    return found


def test_quick_audits_do_not_take_back_what_full_ones_found(run, find, capsys):
    find("suspect")
    assert main([*ARGV, "--audits", "full"]) == 3
    assert verdicts(run) == {("SUSPECT", "full", "suspect: black box: 9 images")}
    find("passed")
    for _ in range(2):
        assert main(ARGV) == 3
        assert verdicts(run) == {("SUSPECT", "full", "suspect: earlier, full audits: black box: 9 images")}
    assert "SUSPECT" in capsys.readouterr().err
    assert main([*ARGV, "--seed", "1"]) == 0  # other numbers
    assert main([*ARGV, "--audits", "full"]) == 0
    assert main(ARGV) == 0
    assert {verdict for verdict, *_ in verdicts(run)} == {"TRUSTED"}
    said = capsys.readouterr().out
    assert "TRUSTED: 1 quick audits passed" in said and "every attack here follows cross-entropy" in said
    assert main([*ARGV[:6], "margin2"]) == 0
    assert "cross-entropy" not in capsys.readouterr().out


def test_what_was_judged_outlives_an_audit_that_could_not_be_carried_out(run, find):
    find("invalid")
    assert main(ARGV) == 4
    assert not (run / "results.json").exists()
    assert list(run.glob(".evaluation-*/*.pt"))
    find("passed")
    assert main(ARGV) == 0
    assert not list(run.glob(".evaluation-*"))
    assert len(json.loads((run / "results.json").read_text())["results"]) == 4


def test_other_classes_than_the_source_s_are_said(run, find, capsys):
    find("passed")
    best = run / "checkpoints/best.pt"
    payload = checkpoint.read(best)
    for classes, warned in ((list("0123456789"), False), (list("9876543210"), True)):
        checkpoint.write(best, payload | dict(record=payload["record"] | dict(classes=classes)))
        assert main(ARGV) == 0
        assert ("t was made for other classes than digits, or another order" in capsys.readouterr().err) == warned


def test_wrong_devices_and_hostile_names_are_a_clean_line(run, capsys):
    assert main([*ARGV, "--devices", "0"]) == 2
    assert main([*ARGV, "--eps", "8/255", "8"]) == 1
    assert main([*ARGV, "--compile", "true", "--device", "cpu"]) == 2
    torch.save({"\x1b[31mevil\x07": torch.ones(3)}, "x.pt")
    assert main(["evaluate", "resnet8-x0.25:x.pt", "--data", "digits"]) == 1
    said = capsys.readouterr().err
    assert "devices must be from 1 to 1e+09: 0" in said and "evil" in said
    assert "torch.compile slows attacks on a CPU: --compile true" in said
    assert said.count("\n") == 4 and not set(said) & {"\x1b", "\x07"}
    assert not list(Path().glob("t/results.json"))
