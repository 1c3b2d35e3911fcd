"""A run directory: what it goes on with, what a classifier in it is of, and what is never lost silently."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from students import network, save

from gacd import checkpoint
from gacd.cli import main
from gacd.recipe import expand, makes
from gacd.runs import ended, story

QUICK = "--data digits --batch-size 400 --precision 32 --val-steps 1".split()  # noqa: SIM905
NEW = [*QUICK, "--model", "resnet8-x0.25"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def last_error(capsys):
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_a_run_goes_on_with_its_own_images_teacher_and_method_alone(digits, tmp_path, capsys):
    save(tmp_path / "t", network("resnet8-x0.5", 1, digits), digits)
    argv = ["distill", "kd", "--teacher", "t/checkpoints/best.pt", *NEW, "--epochs", "1", "--out", "run"]
    assert main(argv) == 0
    last = tmp_path / "run/checkpoints/last.pt"
    state = checkpoint.read(last)
    checkpoint.write(last, state | dict(data_sha256="another"))
    assert main(argv) == 1
    assert "the training images are not what it was started with: run (another --out)" in last_error(capsys)
    checkpoint.write(last, state | dict(method=state["method"] | {"student.fc.weight": torch.zeros(3, 3)}))
    assert main(argv) == 1
    assert "its method has changed since: run: " in last_error(capsys)
    checkpoint.write(last, state)
    save(tmp_path / "t", network("resnet8-x0.5", 2, digits), digits)
    assert main(argv) == 1
    assert "the teacher is not what it was started with: run (another --out)" in last_error(capsys)
    save(tmp_path / "t", network("resnet8-x0.5", 1, digits), digits)
    assert main(argv) == 0
    assert main([str(tmp_path / word) if word.startswith("t/") else word for word in argv]) == 0  # one place
    assert main([*argv, "--teacher", "t"]) == 2


def test_a_classifier_goes_with_the_weights_that_it_is_of():
    options = ["train", "standard", *NEW, "--epochs", "2", "--lr", "0.3", "--out"]
    assert main([*options, "a"]) == 0
    assert main(["probe", "a", "--weight-decays", "0.1"]) == 0
    assert checkpoint.open_source("a").weights == "probe"
    assert main([*options, "a"]) == 0  # finished: nothing better comes
    assert checkpoint.open_source("a").weights == "probe"
    state = checkpoint.read(Path("a/checkpoints/last.pt"))  # of a run that was stopped before it was as good as it got
    for best in (0.0, 2.0):  # and of one that does not become better than it was
        run = Path(f"best-{best}")
        shutil.copytree("a", run)
        stopped = state | dict(step=state["step"] - 1, best=dict(val_natural=best))
        checkpoint.write(run / "checkpoints/last.pt", stopped)
        assert main([*options, str(run)]) == 0
        assert checkpoint.open_source(str(run)).weights == "best"


def test_features_without_a_classifier_are_said_and_not_evaluated(digits, tmp_path, monkeypatch, capsys):
    save(tmp_path / "t", network("resnet8-x0.5", 1, digits), digits)
    argv = ["distill", "gacd", "--teacher", "t/checkpoints/best.pt", *NEW, "--epochs", "1", "--steps", "1"]
    argv += ["--k", "50", "--out", "g"]
    with monkeypatch.context() as patch:
        patch.setattr("gacd.commands.fit_head", lambda *args, **options: 1 / 0)  # stopped there
        assert main(argv) == 70
    capsys.readouterr()
    assert main(["evaluate", "g", "--attacks", "fgsm"]) == 1
    assert "there is no trained classifier to evaluate: g (gacd probe g)" in last_error(capsys)
    assert main(["train", "standard", "--init", "g", *QUICK, "--epochs", "1", "--out", "c"]) == 0
    assert "--init: its features are trained, its classifier is not" in " ".join(capsys.readouterr().err.split())
    assert checkpoint.open_source("c").has_classifier
    assert main(["probe", "g", "--weight-decays", "0.5"]) == 0
    assert main(argv) == 0  # and the classifier that was chosen stays
    opened = checkpoint.open_source("g")
    assert opened.has_classifier
    assert [row["weight_decay"] for row in opened.record["front"]] == [0.5]
    assert main(["probe", "g", "--head", "teacher", "--steps", "1"]) == 0
    assert checkpoint.open_source("g").record["head"] == "teacher"
    last = tmp_path / "g/checkpoints/last.pt"
    checkpoint.write(last, checkpoint.read(last) | dict(data_sha256="another"))
    assert main(["probe", "g", "--head", "student"]) == 1
    assert "the training images are not those of the run's bank: g (--head linear takes any)" in last_error(capsys)


def test_finished_weights_are_not_trained_over(tmp_path, capsys):
    argv = ["train", "standard", *NEW, "--epochs", "1", "--out", "a"]
    assert main(argv) == 0
    best = (tmp_path / "a/checkpoints/best.pt").read_bytes()
    assert main(["probe", "a", "--weight-decays", "0.1", "--steps", "1"]) == 0
    (tmp_path / "a/checkpoints/last.pt").unlink()
    assert main([*argv[:-2], "--lr", "0.01", "--out", "a"]) == 1
    assert "the run is finished, and its checkpoints/last.pt is gone: a (another --out)" in last_error(capsys)
    assert (tmp_path / "a/checkpoints/best.pt").read_bytes() == best


def test_a_run_goes_on_without_the_one_that_set_its_cost(capsys):
    assert main(["train", "standard", *NEW, "--epochs", "4", "--out", "a"]) == 0
    argv = ["train", "pgdat", "--steps", "1", *NEW, "--cost-of", "a", "--milestones", "15", "--out", "b"]
    assert main(argv) == 0
    shutil.rmtree("a")
    assert main(argv) == 0
    assert main([*argv, "--cost-of", "elsewhere"]) == 2
    assert "cost_of a -> elsewhere: " in last_error(capsys)


def test_a_run_without_a_checkpoint_to_go_on_from_takes_its_cost_anew(tmp_path):
    for name, epochs in (("a", "4"), ("dear", "8")):
        assert main(["train", "standard", *NEW, "--epochs", epochs, "--out", name]) == 0
    argv = ["train", "standard", *NEW, "--out", "b", "--cost-of"]
    assert main([*argv, "dear"]) == 0
    (tmp_path / "b/checkpoints/last.pt").unlink()  # it was killed after a validation, before it was saved
    (tmp_path / "b/checkpoints/previous.pt").unlink(missing_ok=True)
    told = {name: value for name, value in story(tmp_path / "b").items() if name != "seconds"}
    (tmp_path / "b/run.json").write_text(json.dumps(told))
    assert main([*argv, "a"]) == 0
    assert story(tmp_path / "b")["cost"]["epochs"] == 4


def test_a_checkpoint_may_be_started_from_wherever_it_lies(tmp_path):
    assert main(["train", "standard", *NEW, "--epochs", "1", "--out", "a"]) == 0
    (tmp_path / "x/checkpoints").mkdir(parents=True)
    shutil.copy("a/checkpoints/best.pt", "x/checkpoints")
    assert main(["train", "standard", "--init", "x", *QUICK, "--epochs", "1", "--out", "b"]) == 0


def test_a_record_that_is_none_is_an_empty_one(digits):
    model = network("resnet8-x0.25", 0, digits)
    payload = dict(model=model.config(), weights=model.state_dict(), record=[1])
    checkpoint.write(Path("a/checkpoints/best.pt"), payload)
    assert checkpoint.open_source("a").record == {}


def test_a_cut_row_loses_no_other_second(tmp_path):
    rows = [dict(step=None, seconds=0.0), dict(step=1, seconds=40.0), dict(step=2, seconds=100.0)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "timing.jsonl").write_text("\n".join([*lines[:2], lines[1][:9] + lines[1], lines[2]]))
    ended(tmp_path)
    assert story(tmp_path)["seconds"] == 100


def test_an_average_that_never_moves_is_refused(capsys):
    assert main(["train", "standard", *NEW, "--ema", "1", "--out", "a"]) == 2
    assert "ema must be from 0 to 0.999999: 1" in last_error(capsys)


def test_a_recipe_s_words_may_be_joined(tmp_path):
    recipe = tmp_path / "mine.sh"
    recipe.write_text("gacd train pgdat --out=a --lr=0.1\ngacd evaluate a\n")
    commands, _ = expand(recipe)
    assert [str(makes(argv)) for argv in commands] == ["a", "a/results.json"]
