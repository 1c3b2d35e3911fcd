"""The mutants of tests/mutated/: every one still applies, and the script that runs them tells caught from survived."""

import os
import subprocess
import sys

import mutants
import pytest

FOUND = mutants.mutants()


def test_each_changes_code_that_stands_once_into_other_code_that_compiles():
    assert len(set(map(str, FOUND))) == len(FOUND) >= 50
    assert len({mutant[:3] for mutant in FOUND}) == len(FOUND)
    changed = set()
    for mutant in FOUND:
        text = (mutants.ROOT / "src/gacd/attacks" / mutant.file).read_text()
        assert text.count(mutant.old) == 1, mutant
        code = text.replace(mutant.old, mutant.new)
        assert code not in (text, *changed), mutant
        compile(code, mutant.file, "exec")
        changed.add(code)
    files = {path.name for path in (mutants.ROOT / "src/gacd/attacks").glob("*.py")}
    assert {mutant.file for mutant in FOUND} == files


def test_the_tests_that_catch_them_are_there():
    for test in {test for mutant in FOUND for test in mutant.tests}:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (mutants.ROOT / "tests" / file).read_text() or not name, test


def test_two_of_them_are_caught():
    command = [sys.executable, "tests/mutants.py", "--only", "project(x"]
    done = subprocess.run(
        command, cwd=mutants.ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 2 and all("caught by test_attacks.py::test_" in line for line in lines)
    assert last.startswith("2 of 2 mutants caught")


@pytest.mark.parametrize(
    ("old", "outcomes", "says"),
    [
        ("MOMENTUM = 0.75", [None, None], "SURVIVED"),
        ("MOMENTUM = 0.75", ["a"], "caught by a"),
        ("MOMENTUM = 0.75", [None, "b"], "caught by b (not the test named)"),
        ("MOMENTUM = 0.5", [], "DID NOT APPLY"),
        ("self", [], "DID NOT APPLY"),
    ],
)
def test_what_becomes_of_a_mutant_is_said(monkeypatch, old, outcomes, says):
    def run_tests(source, tests):
        assert "MOMENTUM = 0.25" in (source / "gacd/attacks/apgd.py").read_text()
        return outcomes.pop(0)

    monkeypatch.setattr(mutants, "run_tests", run_tests)
    noticed, line = mutants.judge(mutants.Mutant("apgd.py", old, "MOMENTUM = 0.25", ["test_apgd.py::test_few_classes"]))
    assert says in line
    assert noticed == ("caught" in says)
    assert not outcomes
