"""A training that was stopped passes for none that has ended; what a run was told is used by what reads it."""

import json
from pathlib import Path

import pytest
from students import network, save

from gacd import checkpoint, cost
from gacd.cli import main
from gacd.prepare import schedule_notes
from gacd.runs import data_dir_of, unfinished

SAYS = "its training has not ended"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(capsys):
    out, err = capsys.readouterr()
    return " ".join((out + err).split())


def test_a_stopped_training_is_said_wherever_its_weights_are_used(digits, capsys):
    new = ["--model", "resnet8-x0.25", "--data", "digits", "--batch-size", "400", "--epochs", "2", "--val-steps", "0"]
    assert main(["train", "standard", *new, "--out", "a"]) == 0
    whole = cost.spent(Path("a"))
    assert whole > 0
    uses = [
        ["evaluate", "a", "--n", "20", "--attacks", "fgsm"],
        ["export", "a", "--out", "a.safetensors"],
        ["train", "standard", "--init", "a", "--data", "digits", "--epochs", "1", "--batch-size", "400", "--out", "b"],
        ["report", "a", "--formats", "md"],
    ]
    codes = [main(argv) for argv in uses]
    assert SAYS not in said(capsys)
    told = json.loads(Path("a/run.json").read_text())
    told.pop("seconds")
    Path("a/run.json").write_text(json.dumps(told))
    Path("b").rename("c")
    for argv, code in zip(uses, codes, strict=True):
        assert main(argv) == code
        assert f"a: {SAYS}" in said(capsys)
    assert cost.spent(Path("a")) is None
    assert json.loads(Path("c/run.json").read_text())["cost"]["before"] == pytest.approx(whole)
    assert json.loads(Path("b/run.json").read_text())["cost"]["before"] is None
    assert main(["train", "standard", *new, "--cost-of", "a", "--out", "d"]) == 1
    assert f"{SAYS}: a/run.json (--epochs says how long to train)" in said(capsys)


def test_the_run_s_own_place_of_data_sets_is_where_they_are_looked_for(digits, tmp_path, monkeypatch):
    run, asked = tmp_path / "t", []
    save(run, network("resnet8-x0.25", 0, digits), digits, data_dir=str(tmp_path))
    assert data_dir_of(checkpoint.open_source("t"), "cifar10") is None  # it is not there: $GACD_DATA, or ./data
    (tmp_path / "cifar-10-batches-py").mkdir()

    def load(name, *, data_dir=None, size=None):
        asked.append(data_dir)
        return digits

    monkeypatch.setattr("gacd.data.load", load)
    argv = ["evaluate", "t", "--data", "cifar10", "--n", "20", "--attacks", "fgsm"]
    main(argv)
    main([*argv, "--data-dir", "other"])
    main(["export", "t", "--data", "cifar10", "--onnx", "t.onnx"])
    assert asked == [str(tmp_path), "other", str(tmp_path)]
    (run / "config.yaml").write_text("{")  # a note and a default are worth no error
    (run / "run.json").write_text(json.dumps(dict(format=1)))
    assert data_dir_of(checkpoint.open_source("t"), "cifar10") is None
    assert unfinished(run) == [f"{run}: {SAYS}, these are its weights so far (None epochs were asked for)"]


def test_a_learning_rate_that_never_falls_is_said():
    options = dict(schedule="multistep", milestones=[100, 150], epochs=2)
    (note,) = schedule_notes(options)
    assert "milestones 100 150 are not reached in 2 epochs: the learning rate never falls" in note
    for other in (dict(epochs=101), dict(schedule="cosine"), dict(milestones=None)):
        assert schedule_notes(options | other) == []
