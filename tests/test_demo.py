"""The demo: a shell script of real commands that goes on where it stopped; its sentences follow the numbers."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest

from gacd import commands, methods
from gacd import demo as module
from gacd.cli import HOMES
from gacd.demo import demo, findings
from gacd.parser import Parser
from gacd.recipe import expand
from gacd.records import Measured, Run
from gacd.sections import Section
from gacd.training import fit

RECIPE = Path(module.__file__).parent / "recipes" / "demo.sh"


@pytest.mark.parametrize("argv", expand(RECIPE, OUT="o u t")[0], ids=lambda argv: " ".join(argv[:2]))
def test_every_line_parses(argv):
    command, *rest = argv
    parser = Parser(f"gacd {command}", "")
    if command in ("train", "distill"):
        method, *rest = rest
        assert method in methods.names(teacher=command == "distill")
        cls = methods.load(method)
        parser.add(cls, group="method")
        parser.add(commands.train, group="run", skip={"method", "method_options", "fit_options"})
        parser.add(fit, group="training")
    else:
        parser.add(getattr(importlib.import_module(f"gacd.{HOMES.get(command, 'commands')}"), command))
    values = parser.read(rest)
    assert (values.get("out") or values["source"]).startswith("o u t/")


def test_the_recipe_is_the_same_as_a_shell_script(tmp_path):
    gacd = tmp_path / "gacd"
    gacd.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"; printf '\\n'\n")
    gacd.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": "o u t"}
    run = subprocess.run(["sh", RECIPE], env=environment, capture_output=True, text=True, check=True)
    assert [line.split("\0")[:-1] for line in run.stdout.splitlines()] == expand(RECIPE, OUT="o u t")[0]


def line(name, accuracy, n=359, **options):
    run = Run(name, Path("demo", name), dict(epochs=8, steps=5) | options, "resnet8-x0.5", 20_000)
    pgd20 = Measured("digits", n, "pgd20", "Linf", 0.15, accuracy, {})
    run.measured = [Measured("digits", n, "natural", "", 0.0, 0.97, {}), pgd20]
    return run


def section(**robust):
    robust = dict(standard=0.0, teacher=0.8, kd=0.1, ard=0.7, pgdat=0.7, gacd=0.6) | {"gacd-aft": 0.7} | robust
    return Section("digits", [line(name, share) for name, share in robust.items()])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (
            0.70,
            0.71,
            "does not beat ARD (71.0%) under attack; the difference is within the 95% intervals of 359 images",
        ),
        (0.71, 0.70, "is more robust than ARD (70.0%) under attack; the difference is within the 95% intervals"),
        (0.70, 0.70, "does not beat ARD (70.0%)"),
        (0.50, 0.80, "GACD+AFT (50.0%) does not beat ARD (80.0%) under attack."),
        (0.80, 0.50, "GACD+AFT (80.0%) is more robust than ARD (50.0%) under attack."),
    ],
)
def test_sentences_follow_the_numbers(ours, theirs, expected):
    said = " ".join(findings(section(**{"gacd-aft": ours, "ard": theirs})))
    assert expected in said


def test_the_best_student_is_named_and_the_teacher_is_none():
    assert "The most robust student here is that of KD: 75.0%" in " ".join(findings(section(kd=0.75)))


def test_a_number_in_doubt_wins_nothing():
    doubted = section(gacd=0.88, pgdat=0.75)
    doubted.runs[-2].measured[-1].row["verdict"] = "SUSPECT"
    said = " ".join(findings(doubted))
    assert "The most robust student here is that of plain adversarial training: 75.0%" in said
    assert "GACD (88.0% (unverified)) is more robust than ARD (70.0%) under attack; an audit doubts that" in said


def test_sentences_are_of_the_most_images():
    again = section()
    fewer = [m._replace(n=10, accuracy=1.0) for m in again.runs[0].measured]
    again.runs[0].measured = [*fewer, *again.runs[0].measured]
    assert "On 359 test images" in " ".join(findings(again))


def test_passes_include_the_start():
    runs = [line("gacd", 0.6), line("gacd-aft", 0.7, init="demo/gacd"), line("kd", 0.1, steps=0)]
    assert [module.passes(run, runs) for run in runs] == [48, 96, 8]


def test_the_demo_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """A miniature of every line; then one evaluation is killed between its radii, and only it is done again."""
    lines = []
    for argv in expand(RECIPE, OUT=str(tmp_path))[0]:
        quick = "--n 40 --attacks fgsm pgd2" if argv[0] == "evaluate" else "--epochs 1 --val-steps 1"
        lines.append([*argv, *quick.split(), *(["--steps", "1"] if "--steps" in argv else [])])
    monkeypatch.setattr(module, "expand", lambda path, OUT: (lines, []))
    demo(out=str(tmp_path))
    out = capsys.readouterr().out
    assert out.count(" s\n") == len(lines)
    page = (tmp_path / "report.html").read_text()
    for sentence in ("On 40 test images", "GACD+AFT", "under attack; ", "What each cost"):
        assert sentence in page
        assert sentence in " ".join(out.split())
    assert page.count("<image ") == 5 * 6
    results = tmp_path / "kd" / "results.json"
    content = json.loads(results.read_text())
    content["results"] = [row for row in content["results"] if row.get("eps", "0.1") == "0.1"]
    results.write_text(json.dumps(content))
    monkeypatch.setattr(module.cli, "dispatch", (called := []).append)
    demo(out=str(tmp_path))
    assert called == [argv for argv in lines if argv[:2] == ["evaluate", str(tmp_path / "kd")]]
