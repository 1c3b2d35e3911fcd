"""The demo: its recipe is a shell script of real commands, it goes on where it stopped, and its sentences follow the numbers."""

import re
import subprocess
from pathlib import Path

import pytest

from gacd import demo as module
from gacd import commands, methods
from gacd.cli import Parser
from gacd.demo import compared, demo, findings, recipe, table
from gacd.report import Line, Measured, Run, Section
from gacd.training import fit

RECIPE = Path(module.__file__).parent / "recipes" / "demo.sh"


@pytest.mark.parametrize("argv", recipe("demo", OUT="o u t"), ids=" ".join)
def test_every_line_parses(argv):
    command, *rest = argv
    parser = Parser(f"gacd {command}", "")
    if command in ("train", "distill"):
        method, *rest = rest
        assert method in methods.names(teacher=command == "distill")
        cls = methods.load(method)
        parser.add(cls, group="method", owner=cls.__init__)
        parser.add(commands.train, group="run", skip={"method", "method_options", "fit_options"})
        parser.add(fit, group="training")
    else:
        parser.add(getattr(commands, command))
    values = parser.read(rest)
    assert (values.get("out") or values["source"]).startswith("o u t/")


def test_the_recipe_is_the_same_as_a_shell_script(tmp_path):
    gacd = tmp_path / "gacd"
    gacd.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"; printf '\\n'\n")
    gacd.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": "o u t"}
    run = subprocess.run(["sh", RECIPE], env=environment, capture_output=True, text=True, check=True)
    assert [line.split("\0")[:-1] for line in run.stdout.splitlines()] == recipe("demo", OUT="o u t")
