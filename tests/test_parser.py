"""What the command line says of itself, and numbers as it reads and writes them."""

import contextlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from gacd import assess, methods
from gacd.cli import COMMANDS, main
from gacd.parser import Ratio, plain


@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"train {m}" for m in methods.names(teacher=False))])
def test_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: gacd")
    assert max(map(len, out.splitlines())) <= 80


def test_help_of_evaluate_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--help"])
    out = capsys.readouterr().out
    usage, *lines = out.splitlines()
    assert usage == "usage: gacd evaluate SOURCE [options]"
    assert 24 <= len(lines) < 50
    options = set(inspect.signature(assess.evaluate).parameters) - {"source"}
    assert options == {line.split()[0][2:].replace("-", "_") for line in lines if line.startswith("  --")}
    said = " ".join(out.split())
    assert "--eps NUMBER ... radii in pixel units; several give a curve. 8/255 if absent, in L2 0.5." in said
    assert "--attacks TEXT ..." in said and "(default: fgsm pgd20 margin20)" in said
    assert "--data TEXT" in said and "--n INT only" in said and "--norm {Linf,L2}" in said


@pytest.mark.parametrize("method", methods.names(teacher=True))
def test_help_of_a_method(method, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["distill", method, "--help"])
    out = capsys.readouterr().out
    assert "--teacher" in out
    assert "epochs" in out
    if "--eps" in out:
        assert "default: 8/255" in " ".join(out.split())


def test_help_lists_and_typos_do_not_wait_for_torch():
    lines = "import sys; from gacd.cli import main; argvs = [[], ['--help'], ['train'], ['distill', '--help'], ['tran']"
    code = f"{lines}, ['train', 'pgdta'], ['train', 'kd', '--out', 'x'], ['-V']]; [main(argv) for argv in argvs]; "
    code += "sys.exit(sum(name in sys.modules for name in ('torch', 'numpy', 'jsonargparse', 'rich')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("gacd: error:") == done.stderr.count("\n") == 3


def test_ratio():
    assert float(Ratio("8/255")) == 8 / 255
    assert [str(Ratio(v)) for v in ("8/255", 8 / 255, 0.1, "5e-4", 1, 0, "0.031")] == [
        "8/255", "8/255", "0.1", "0.0005", "1", "0", "0.031"
    ]  # fmt: skip
    assert plain(dict(a=8 / 255, b=[1 / 255, 0.5], c=Path("x"), d=None, e=5 / 6)) == dict(
        a="8/255", b=["1/255", 0.5], c="x", d=None, e=5 / 6
    )
    for wrong in ("1/2/3", "8/0", "x", "/"):
        with pytest.raises(ValueError, match=r"."):
            Ratio(wrong)
