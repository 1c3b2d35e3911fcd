"""What an evaluation leaves of those before it, and they of it: doubts, trust, entries of other networks."""

import json

import pytest
from test_assess import ARGV
from test_witness import packs

from gacd import witness
from gacd.audit import FAILED, Audit, Finding
from gacd.cli import main


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


def test_what_other_means_found_lasts_for_the_threat(run, monkeypatch):
    """Square's or a transferred attack's images are beaten whatever the seed: only full audits take that back."""
    found = [Finding("eps ladder", "suspect", "rises"), Finding("planted region", "suspect", "missed")]
    with monkeypatch.context() as patch:
        patch.setattr("gacd.assess.audit", lambda *_, **__: Audit(list(found)))
        assert main([*ARGV, "--audits", "full"]) == 3
    monkeypatch.setattr("gacd.assess.audit", lambda *_, **__: Audit([Finding("one step", "passed", "")]))
    for other in ([], ["--seed", "1"], [], ["--chunk", "7"], ["--seed", "2"]):
        assert main([*ARGV, *other]) == 3
    doubts = [doubt for _, _, *doubts in verdicts(run) for doubt in doubts]
    assert {doubt.rpartition(": ")[0].rpartition(": ")[2] for doubt in doubts} == {"eps ladder", "planted region"}
    rows = json.loads((run / "results.json").read_text())["results"]
    assert not [row for row in rows if row["seed"] and any("eps ladder" in doubt for doubt in row.get("doubts", []))]
    assert main([*ARGV, "--eps", "0.01"]) == 0
    assert main([*ARGV, "--seed", "3", "--audits", "full"]) == 0
    assert main([*ARGV, "--seed", "4"]) == 0


FACTORIES = """
import torch
from gacd import models


class Doubled(torch.nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def made(kind):
    torch.manual_seed(0)
    return kind(models.build("resnet8-x0.25", 10, [0.5], [0.5]))


def plain():
    return made(torch.nn.Sequential)


def doubled():
    return made(Doubled)
"""


def test_factories_of_one_weights_are_two_networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FACTORIES)
    for name in ("plain", "doubled"):
        assert main(["evaluate", f"./nets.py:{name}", "--data", "digits", "--n", "20", "--out", "r"]) in (0, 3)
    rows = json.loads((tmp_path / "r/results.json").read_text())["results"]
    assert len({row["sha256"] for row in rows if row["attack"] == "natural"}) == 2


def test_quick_audits_leave_what_full_ones_trusted(run, find, monkeypatch):
    find("passed")
    for commit, audits in (("abc", "full"), ("def", "quick"), ("abc+", "quick"), (None, "quick")):  # "+": edited since
        monkeypatch.setattr("gacd.results._commit", lambda commit=commit: commit)
        assert main([*ARGV, "--audits", "full"]) == 0
        monkeypatch.setattr("gacd.results._commit", lambda commit=commit: "def2" if commit == "def" else commit)
        assert main(ARGV) == 0
        assert verdicts(run) == {("TRUSTED", audits)}


def test_what_was_trusted_is_suspect_after_invalid_until_evaluated_anew(run, find, capsys):
    for seed, outcome in enumerate(["passed", "suspect"]):
        find(outcome)
        main([*ARGV, "--seed", str(seed), "--audits", "full"])
    find("passed")
    main([*ARGV, "--eps", "0.2", "--witnesses", "0"])
    find("invalid", FAILED)
    assert main(ARGV) == 4
    find("invalid")
    assert main(ARGV) == 4
    said = capsys.readouterr().out
    assert said.count("SUSPECT now") == 1 and "SUSPECT now: 6 entries of t/results.json" in said
    rows = [row for row in json.loads((run / "results.json").read_text())["results"] if "verdict" in row]
    found = {(row["seed"], row["eps"], row["audits"], *row["doubts"]) for row in rows}
    assert {row["verdict"] for row in rows} == {"SUSPECT"}
    assert found == {
        (0, "8/255", "quick", "invalid: black box: 9 images"),
        (1, "8/255", "full", "suspect: black box: 9 images"),
        (0, "0.2", "quick", "invalid: black box: 9 images"),
    }
    find("passed")
    assert main(ARGV) == 0


@pytest.mark.parametrize("radii", [("0.1", "0.2"), ("0.2", "0.1")])
def test_invalid_at_one_radius_makes_all_suspect(run, monkeypatch, radii):
    def audits_find(*_, eps=0, **__):
        return Audit([Finding("black box", "invalid" if eps == 0.2 else "passed", "9 images")])

    monkeypatch.setattr("gacd.assess.audit", audits_find)
    assert main([*ARGV, "--eps", *radii]) == 4
    rows = [row for row in json.loads((run / "results.json").read_text())["results"] if "verdict" in row]
    assert {(row["eps"], row["verdict"]) for row in rows} == {("0.1", "SUSPECT")}
