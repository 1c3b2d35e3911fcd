"""Recipes: every line parses; a miniature of Table 1 runs to its end, and what fails or is stopped is said."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from test_docs import StopHere, parse_and_stop
from test_recipe import finish

from gacd import cli, processes
from gacd.cli import main
from gacd.errors import InputError
from gacd.paper import PAPER
from gacd.recipe import RECIPES, Task, expand

NAMES = sorted(path.stem for path in RECIPES.glob("*.sh") if path.stem not in ("common", "demo"))
PRESETS = sorted((RECIPES / "presets").glob("*.sh"))
MINIATURE = """
RESNET18_T=resnet8-x0.5 RESNET18=resnet8-x0.25 WRN34_T=wrn-10-1 WRN34=wrn-10-1 MNV2=mobilenetv2-x0.1
quick="--batch-size 400 --precision 32 --val-steps 1 --epochs 1"
TEACHER="nfgsm $quick" AFT="pgdat $quick --steps 1"
KD="kd $quick" ARD="ard $quick --steps 1" GACD="gacd $quick --steps 1" MNV2_RATE=
EVALUATE="--attacks pgd1 margin1 --n 50"
KD_EPOCHS= ARD_EPOCHS= GACD_EPOCHS= AFT_EPOCHS=
"""


def lines(name, preset):
    return expand(RECIPES / f"{name}.sh", OUT="o u t", PRESET=str(preset), SEEDS="0 1")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", NAMES)
def test_every_line_parses(name, preset, monkeypatch):
    monkeypatch.setattr(cli.Parser, "read", parse_and_stop)
    commands, rows = lines(name, preset)
    assert len(commands) >= 10
    assert len({row[:2] for row in rows}) == len(rows)
    for argv in commands:
        with pytest.raises(StopHere):
            cli.dispatch(argv)
    made = {argv[argv.index("--out") + 1] for argv in commands if "--out" in argv}
    absent = {str(run) for row in rows for run in row.runs} - made
    assert all(preset.stem == "small" and run.endswith("-stl10") for run in absent)  # there is no STL-10 here


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_cell_of_the_paper_has_a_row(preset):
    paper = json.loads(PAPER.read_text())
    for table in paper:
        cells = {row.cell for row in lines(table, preset)[1] if row.table == table}
        assert set(paper[table]["cells"]) <= cells, table


def test_the_paper_s_networks_are_the_paper_s():
    """A cell's run lies in a folder of its data, its teacher and its student."""
    published = {"ResNet-18": "resnet18", "WRN-34-10": "wrn-34-10", "MobileNetV2": "mobilenetv2"} | {
        "ResNet-56": "resnet56", "WRN-40-2": "wrn-40-2", "ResNet-32": "resnet32", "WRN-16-2": "wrn-16-2"
    }  # fmt: skip
    method = {"KD": "kd", "ARD": "ard", "GACD": "gacd", "GACD+AFT": "gacd-aft"}
    for table, data in dict(table1="cifar10", table2="cifar100").items():
        rows = lines(table, RECIPES / "presets/paper.sh")[1]
        assert len(rows) == 24
        for row in rows:
            teacher, student, trained = row.cell.split("/")
            half = "-x0.5" if (data, student) == ("cifar100", "MobileNetV2") else ""
            where = Path("o u t", data, published[teacher], published[student] + half, f"{method[trained]}-0")
            assert list(row.runs) == [where]


def test_the_paper_s_tables_are_the_paper_s():
    paper = json.loads(PAPER.read_text())
    assert {name: len(paper[name]["cells"]) for name in ("table1", "table2", "table3", "table4")} == dict(
        table1=24, table2=24, table3=4, table4=8
    )
    assert paper["table1"]["cells"]["WRN-34-10/MobileNetV2/KD"] == [92.49, 5.46]
    assert paper["table2"]["cells"]["WRN-40-2/MobileNetV2/ARD"] == [49.09, 20.58]
    text = (Path(__file__).parents[2] / "shared/paper/gacd.txt").resolve()
    if not text.is_file():
        pytest.skip("the paper's text is not here")
    numbers = text.read_text()
    for name in ("table1", "table2", "table3", "table4"):
        missed = [v for pair in paper[name]["cells"].values() for v in pair if f"{v:.2f}".rstrip("0") not in numbers]
        assert not missed, name


def test_each_job_has_one_of_the_gpus_given(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    seen = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: seen.append(env["CUDA_VISIBLE_DEVICES"]))
    for given in ("4,5", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        for slot in range(3):
            processes.Process(Task([], None, [], []), tmp_path / "log", slot, 3)
    assert seen == ["4", "5", "4", "0", "1", "0"]


def test_a_run_that_is_at_work_elsewhere_is_tried_again(tmp_path, monkeypatch):
    codes = [75, 75, 0]

    class Child:
        def __init__(self, *args, **options):
            self.returncode = codes.pop(0)

        def poll(self):
            return self.returncode

    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setattr(processes, "PAUSE", 0.1)
    assert processes.run([Task(["train"], None, [], [])], tmp_path, 1, Console(quiet=True)) == []
    assert not codes


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """Table 1's own recipe on digits, with a preset of tiny networks, without its MobileNets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "tiny.sh").write_text(MINIATURE)
    recipe = (RECIPES / "table1.sh").read_text().replace("cifar10", "digits")
    left_out = (
        'pair "$RESNET18_T" "$WRN34"',
        'pair "$RESNET18_T" "$MNV2"',
        'pair "$WRN34_T"',
        'teacher digits "$WRN34_T"',
    )
    kept = [line for line in recipe.splitlines() if not line.startswith(left_out)]
    (tmp_path / "mine.sh").write_text("\n".join(kept) + "\n")
    return tmp_path


def test_a_miniature_of_table_1(miniature, capsys):
    command = ["reproduce", "./mine.sh", "--preset", "./tiny.sh", "--jobs", "2"]
    assert main([*command, "--dry-run", "true"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert len(planned) == 11
    assert planned[0].startswith("gacd train nfgsm ")
    assert not (miniature / "runs").exists()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "Table 1" in out
    assert "52.75" in out
    table = list(csv.DictReader((miniature / "runs/tiny/table1.csv").read_text().splitlines()))
    ours = json.loads((miniature / "runs/tiny/digits/resnet8-x0.5/resnet8-x0.25/ard-0/results.json").read_text())
    natural = next(row["accuracy"] for row in ours["results"] if row["attack"] == "natural")
    row = next(row for row in table if row[""] == "ResNet-18 / ResNet-18 / ARD")
    assert float(row["natural mean"]) == pytest.approx(100 * natural)
    assert (row["paper: natural"], row["paper: pgd20"]) == ("79.49", "51.21")
    assert main([*command, "--dry-run", "true"]) == 0
    assert capsys.readouterr().out == ""


def test_a_failure_stops_only_what_needs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "gacd train standard --data nowhere --model resnet8 --out a\ngacd evaluate a\ngacd check standard\n"
    (tmp_path / "mine.sh").write_text(text + "row mine a a\nrow mine b b\n")
    finish("b", ["natural", "pgd20"])
    assert main(["reproduce", "mine.sh", "--out", "o"]) == 1
    captured = capsys.readouterr()
    assert "2 of 3 commands failed or lack what failed: o/logs" in captured.err
    assert "nowhere" in (tmp_path / "o/logs/000.log").read_text()
    assert not (tmp_path / "o/logs/001.log").exists()
    assert "randomness" in (tmp_path / "o/logs/002.log").read_text()
    assert "b,50,,50,,1" in (tmp_path / "o/mine.csv").read_text()  # the table of what there is


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rm -rf /tmp/nothing", "rm: not found"),
        ("gacd train $UNSET_VARIABLE", "UNSET_VARIABLE"),
        ("if", "unexpected"),
        ("exit 3", "exit code 3"),
        ("gacd", "a bare `gacd`"),
        ("row table1 x", "`row TABLE CELL RUN...`"),
    ],
)
def test_a_recipe_that_is_none(tmp_path, text, reason):
    (tmp_path / "mine.sh").write_text(f"set -eu\n{text}\n")
    with pytest.raises(InputError, match=reason):
        expand(tmp_path / "mine.sh")


def test_wrong_names(capsys):
    assert main(["reproduce", "table9"]) == 1
    assert "no such recipe: table9 (one of ablation, claim" in capsys.readouterr().err
    assert main(["reproduce", "table1", "--preset", "huge"]) == 1
    assert "no such preset: huge (one of paper, small" in capsys.readouterr().err
    assert main(["reproduce", "table1", "--jobs", "0"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_what_runs(tmp_path, number):
    (tmp_path / "mine.sh").write_text(
        "gacd train standard --data digits --model resnet8-x0.25 --epochs 5000 --out a\ngacd evaluate a\n"
    )
    heard = f"import signal; signal.signal({int(number)}, signal.SIG_DFL)"  # under nohup hang-ups are ignored
    code = f"import sys; {heard}; from gacd.__main__ import run; run()"
    command = [sys.executable, "-c", code, "reproduce", "mine.sh", "--out", "o"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    log, deadline = tmp_path / "a/metrics.jsonl", time.monotonic() + 60
    try:
        while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        assert b"stopped, saved" in process.communicate(timeout=60)[1]
    finally:
        process.terminate()
    assert process.returncode == 128 + number
    assert (tmp_path / "a/checkpoints/last.pt").exists()
    assert "stopped, saved: a" in (tmp_path / "o/logs/000.log").read_text()
