"""The command evaluate: what its audits find is not taken back, what it has judged is not lost."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from students import save

from gacd import checkpoint, data, models
from gacd.audit import FAILED, Audit, Finding
from gacd.cli import main
from gacd.journal import Journal

ARGV = ["evaluate", "t", "--n", "60", "--attacks", "fgsm", "pgd4", "--precision", "32"]


@pytest.mark.parametrize(("says", "kept"), [(f"{FAILED}, a full memory", True), ("the gradient is reversed", False)])
def test_what_was_judged_outlives_an_audit_that_could_not_be_carried_out(run, find, says, kept):
    """And no other: who mends a broken network asks anew."""
    find("invalid", says)
    assert main(ARGV) == 4
    assert not (run / "results.json").exists()
    assert bool(list(run.glob(".evaluation-*/*.pt"))) == kept
    find("passed")
    assert main(ARGV) == 0
    assert not list(run.glob(".evaluation-*"))
    assert len(json.loads((run / "results.json").read_text())["results"]) == 4


def test_what_was_judged_at_other_radii_outlives_it_too(run, find, monkeypatch):
    def audits_find(*_, eps=0, **__):
        return Audit([Finding("black box", *(("invalid", FAILED) if eps == 0.2 else ("passed", "")))])

    monkeypatch.setattr("gacd.assess.audit", audits_find)
    argv = [*ARGV, "--eps", "0.1", "0.2"]
    assert main(argv) == 4
    assert len(list(run.glob(".evaluation-*/000000-0.pt"))) == 2
    find("passed")
    assert main(argv) == 0
    assert not list(run.glob(".evaluation-*"))


def test_an_attack_that_others_beside_it_beat_by_far_is_suspect_in_its_own_entry(run, find, capsys):
    """Whether its loss is blinded, as cross-entropy's by large logits, or its steps are too few."""
    argv = ["evaluate", "t", "--n", "60", "--precision", "32", "--eps", "0.1", "--attacks", "fgsm"]
    find("passed")
    for audits in ("full", "quick"):
        assert main([*argv, "margin1", "margin20", "pgd2", "--audits", audits]) == 0
        rows = {row["attack"]: row for row in json.loads((run / "results.json").read_text())["results"]}
        more = rows["pgd2"]["correct"] - rows["worst"]["correct"]
        assert more > 10 and rows["margin20"]["correct"] == rows["worst"]["correct"]
        doubt = f"suspect: beside other attacks: they beat {more} more of 60 images (count the worst case)"
        assert (rows["pgd2"]["verdict"], rows["pgd2"]["doubts"]) == ("SUSPECT", [doubt])
        for name in ("fgsm", "margin1", "margin20", "worst"):  # a single step is known to be weak
            assert (rows[name]["verdict"], rows[name]["doubts"]) == ("TRUSTED", [])
        assert f"pgd2 at eps 0.1 is SUSPECT: {doubt}" in " ".join(capsys.readouterr().out.split())


def test_it_is_so_whichever_was_evaluated_first(run, find):
    argv = ["evaluate", "t", "--n", "60", "--precision", "32", "--eps", "0.1", "--attacks"]
    find("passed")

    def found():
        rows = json.loads((run / "results.json").read_text())["results"]
        return {row["attack"]: (row["verdict"], len(row["doubts"])) for row in rows if "verdict" in row}

    main([*argv, "pgd2"])
    assert found() == {"pgd2": ("TRUSTED", 0)}
    main([*argv, "margin20"])
    assert found() == {"pgd2": ("SUSPECT", 1), "margin20": ("TRUSTED", 0)}
    assert main([*argv, "pgd2"]) == 3
    assert found() == {"pgd2": ("SUSPECT", 1), "margin20": ("TRUSTED", 0)}
    main([*argv[:3], "59", *argv[4:], "pgd2"])  # other images
    assert found()["pgd2"] == ("TRUSTED", 0)


def test_other_classes_than_the_source_s_are_said(run, find, capsys):
    find("passed")
    best = run / "checkpoints/best.pt"
    payload = checkpoint.read(best)
    for classes, warned in ((list("0123456789"), False), (list("9876543210"), True)):
        checkpoint.write(best, payload | dict(record=payload["record"] | dict(classes=classes)))
        assert main(ARGV) == 0
        assert ("t was made for other classes than digits, or another order" in capsys.readouterr().err) == warned


def test_each_radius_and_attack_counts_once_and_exactly(run, find):
    find("passed")
    assert main([*ARGV[:-2], "fgsm", "--eps", "0.1234561", "0.1234562", "0.1234561", *ARGV[-2:]]) == 0
    rows = json.loads((run / "results.json").read_text())["results"]
    assert sorted(row["eps"] for row in rows if row["attack"] == "fgsm") == ["0.1234561", "0.1234562"]
    assert {row["step_size"] for row in rows if row["attack"] == "pgd4"} == {"0.030864025", "0.03086405"}


def test_numbers_of_earlier_versions_are_replaced(run, find):
    """They wrote steps with six digits, and other numbers of them."""
    find("passed")
    argv = [*ARGV[:3], "60", "--attacks", "pgd4", "square5", "--eps", "0.1234571", "--precision", "32"]
    assert main(argv) == 0
    content = json.loads((run / "results.json").read_text())
    for row in content["results"][1:3]:
        row |= dict(step_size="0.0308643") if row["attack"] == "pgd4" else dict(steps=7)
    (run / "results.json").write_text(json.dumps(content))
    assert main(argv) == 0
    assert len(json.loads((run / "results.json").read_text())["results"]) == 4


def test_audits_that_were_not_carried_out_are_in_the_entries(run, find):
    find("skipped")
    assert main(ARGV) == 0
    rows = json.loads((run / "results.json").read_text())["results"]
    assert [row.get("skipped") for row in rows] == [None, *[["black box"]] * 3]


def test_a_teacher_is_refused_where_it_cannot_be_used(run, find, capsys):
    find("passed")
    save(run.parent / "other", models.build("resnet8-x0.25", 3, [0.3], [0.4]), data.load("digits"))
    assert main([*ARGV, "--teacher", "t"]) == 2
    assert main([*ARGV, "--teacher", "other", "--audits", "full"]) == 1
    said = capsys.readouterr().err
    assert "only full audits transfer attacks: --teacher t (--audits full)" in said
    assert "the teacher knows 3 classes, digits has 10: other" in said
    assert not (run / "results.json").exists()


def test_what_can_be_mistaken_is_said(run, find, capsys):
    """More outputs than classes; a folder whose test part is split off, or is all there is; another norm's radius."""
    find("passed")
    save(run.parent / "more", models.build("resnet8-x0.25", 12, [0.3], [0.4]), data.load("digits"))
    assert main(["evaluate", "more", *ARGV[2:]]) == 0
    assert "12 outputs for 10 classes: output i must be class i of 0, 1, 2, 3, 4, ..." in capsys.readouterr().err
    for label in "ab":
        (run.parent / "photos" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), 20 * i).save(run.parent / "photos" / label / f"{i}.png")
    argv = ["evaluate", "t", "--data", "photos", "--attacks", "pgd2", "--norm", "L2", "--precision", "32"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "of 20 images split off, the same for every seed" in said and "validation" not in said
    Path("photos").rename("test")
    Path("photos").mkdir()
    Path("test").rename("photos/test")
    assert main(argv) == 0
    assert "these images can only be evaluated on" in capsys.readouterr().out
    rows = json.loads((run / "results.json").read_text())["results"]
    assert {row["eps"] for row in rows if row["data"] == "photos" and row["attack"] == "pgd2"} == {"0.5"}


def test_an_interrupted_evaluation_says_whether_it_goes_on(run, find, monkeypatch, capsys):
    find("passed")
    real = Journal.note

    def interrupted(self, *args):
        real(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "note", interrupted)
        assert main(ARGV) == 130
        assert "stopped, saved: t (the same command goes on from here)" in capsys.readouterr().err
        Path("weights.pt").write_bytes(b"")
        torch.save(checkpoint.load("t").state_dict(), "weights.pt")
        assert main(["evaluate", "resnet8-x0.5:weights.pt", "--data", "digits", *ARGV[2:]]) == 130
        assert capsys.readouterr().err.strip().endswith("gacd: error: interrupted")
    shown = []
    monkeypatch.setattr("gacd.outcome.show", lambda rows, seconds, say: shown.append(seconds))
    assert main(ARGV) == 0
    assert shown[0].keys() == {"natural", "pgd4"}  # how long the first attack took is not known


def test_one_killed_at_its_second_radius_goes_on_there(run, find, monkeypatch, capsys):
    find("passed")
    real, judged = Journal.note, []

    def noted(self, attack, stage, where, *rest):
        real(self, attack, stage, where, *rest)
        judged.append(len(where))
        if len({*run.glob(".evaluation-*")}) == 2 and stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "note", noted)
    argv, stop = [*ARGV, "--eps", "0.1", "0.2"], True
    assert main(argv) == 130
    assert "stopped, saved: t" in capsys.readouterr().err
    before, stop = sum(judged), False
    assert main(argv) == 0
    once = sum(judged)
    assert not list(run.glob(".evaluation-*"))
    judged.clear()
    assert main(argv) == 0
    assert once == sum(judged) and before > once / 2, "no image is judged again"


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
