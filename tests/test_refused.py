"""What does not fit together is told in one line before anything is lost; and numbers are shown for what they are."""

import json
import signal
from pathlib import Path

import pytest
import torch
from students import network
from test_groups import run as told_run

from gacd import checkpoint, data
from gacd.cli import main
from gacd.errors import InputError, UsageError
from gacd.groups import grouped, over_seeds
from gacd.methods import load
from gacd.parser import Parser
from gacd.prepare import check_teacher, student
from gacd.recipe import expand
from gacd.records import Measured, Run
from gacd.reproduce import Line, beside
from gacd.runs import config, ended, story
from gacd.sections import Section

QUICK = ["--data", "digits", "--model", "resnet8-x0.25", "--precision", "32"]
QUICK += ["--epochs", "2", "--batch-size", "400", "--val-steps", "1"]


def reordered(images):
    """A network's record of the same classes, in another order."""
    return checkpoint.Opened(network("resnet8-x0.25", 0, images), "best", record=dict(classes=images.classes[::-1]))


def test_classes_in_another_order_are_no_teacher_s_and_cost_init_its_head(digits):
    opened = reordered(digits)
    with pytest.raises(InputError, match="or in another order: t"):
        check_teacher(opened, "t", digits)
    head = opened.model.head.weight.clone()
    made, notes = student(None, opened, digits)
    assert "or in another order: trunk kept, head made afresh" in notes[-1]
    assert not torch.equal(made.head.weight, head)


def test_a_batch_norm_needs_two_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "standard", *QUICK, "--batch-size", "1", "--out", "run"]) == 2
    assert "two images a process: --batch-size 1" in capsys.readouterr().err


def test_what_a_recipe_prints_is_no_command(tmp_path):
    recipe = tmp_path / "mine.sh"
    recipe.write_text('for s in 0 1; do echo "seed $s"; gacd train pgdat --out a-$s; printf x; row t c a-$s; done\n')
    commands, rows = expand(recipe)
    assert commands == [["train", "pgdat", "--out", f"a-{s}"] for s in (0, 1)]
    assert [row.runs for row in rows] == [[Path(f"a-{s}")] for s in (0, 1)]


@pytest.mark.parametrize("name", ["./mine:Mine", ":Mine", "methods_of_mine.bad:Mine"])
def test_a_method_that_cannot_be_imported(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "methods_of_mine").mkdir()
    (tmp_path / "methods_of_mine/bad.py").write_text("this is no Python\n")
    with pytest.raises(InputError, match="cannot import method"):
        load(name)


def test_an_option_needs_a_type():
    def untyped(*, scale=1.0):
        """Of a method of one's own."""

    with pytest.raises(UsageError, match=r"an option needs a type: .*untyped: scale"):
        Parser("gacd", "").add(untyped)


def test_an_option_of_one_s_own_method_has_a_name_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("epochs", "config"):
        Path("mine.py").write_text(f"""from gacd.methods.standard import Standard
class Mine(Standard):
    def __init__(self, student, *, {name}: int = 1):
        super().__init__(student)
""")
        assert main(["train", "./mine.py", *QUICK, "--out", "run"]) == 2
        assert (
            f"two options have one name: gacd train ./mine.py: {name} (rename the method's)" in capsys.readouterr().err
        )


def test_a_training_that_is_stopped_before_its_first_row_took_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["train", "standard", *QUICK, "--epochs", "1", "--out", "run"]
    monkeypatch.setattr("gacd.runs.Stopping.agreed", lambda self, save: (save, signal.SIGTERM))
    assert main(argv) == 143
    rows = [json.loads(line) for line in Path("run/timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [None, 1] and rows[0]["seconds"] < rows[1]["seconds"]


def test_a_training_took_as_long_as_its_resumes_together(tmp_path):
    rows = [(None, 0.1), (5, 4), (10, 5), (None, 0.1), (15, 7), (None, 0.0), (20, 9)]
    (tmp_path / "timing.jsonl").write_text("".join(f'{{"step": {json.dumps(s)}, "seconds": {t}}}\n' for s, t in rows))
    ended(tmp_path)
    assert story(tmp_path)["seconds"] == round(4.9 + 6.9 + 9)


def test_options_that_would_do_nothing_and_files_that_say_nothing(tmp_path, capsys):
    assert main(["probe", str(tmp_path), "--head", "teacher", "--lr", "0.1"]) == 2
    assert "class means are not trained: --head teacher" in capsys.readouterr().err
    assert main(["evaluate", "resnet8:none", "--data", "digits", "--seed", str(2**64)]) == 2
    assert "seed must be from" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_bytes("lr: 1".encode("utf-16"))
    with pytest.raises(InputError, match="no readable config"):
        config(tmp_path)


def test_a_folder_has_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    assert [data.spelled(name) for name in ("cifar10", "a/", "./a", "a//b", "./none")] == [
        "cifar10", "a", "a", "a/b", "./none"
    ]  # fmt: skip


def test_a_folder_by_another_path_is_the_run_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    record = dict(data="photos", size=24)
    for name in (None, "photos", "./photos/", str(tmp_path / "photos")):
        assert data.resolve(name, None, record) == ("photos", 24)
    assert data.resolve("cifar10", None, record) == ("cifar10", None)
    (tmp_path / "cifar10").mkdir()  # a folder of that name is another thing
    folder = str(tmp_path / "cifar10")
    assert data.resolve(folder, None, dict(data="cifar10", size=24))[0] == folder
    assert [data.same(name, "cifar10") for name in ("cifar10", folder, None)] == [True, False, False]


def test_epochs_of_a_run_that_is_not_finished_are_not_stretched():
    rows = [dict(step=10 * i, epoch=10 * i // 40, loss=1.0) for i in (1, 2, 3)]
    rows += [dict(step=40, epoch=0, val_natural=0.5), dict(step=50, epoch=1, loss=0.5)]
    curve = Run("a", Path("a"), {}, "resnet8", log=rows).curve("loss")
    assert curve == [(0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (1.25, 0.5)]


def measured(attack, share, **row):
    return Measured("c", 1000, attack, "Linf", 0.03, share, row)


def test_a_mean_says_of_how_many_and_whether_it_is_to_be_believed():
    both = {"natural": measured("natural", 0.8), "pgd20": measured("pgd20", 0.4), "worst": measured("worst", 0.4)}
    more = both | {"cascade": measured("cascade", 0.3)}
    more.pop("worst")
    table = beside("claim", [Line("x", [both, both], []), Line("y", [more, both], [])])
    names = [column.name for column in table.columns]
    x, y = (dict(zip(names, row, strict=True)) for row in table.rows)
    assert (x["worst"].values[0], y["worst"].values) == (40.0, ())
    assert (x["pgd20"].note, y["cascade"].note) == ("", "of 1")
    runs = [told_run(f"a-{seed}", seed, 0.4) for seed in (0, 1)]
    runs[1].measured[1] = measured("pgd20", 0.5, verdict="SUSPECT")
    (row,) = over_seeds(Section("c", runs), grouped(runs)).rows
    assert [cell.note for cell in row[4:7]] == ["", "unverified", "unverified"]
