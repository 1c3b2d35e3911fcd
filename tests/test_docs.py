"""README and docs: every command line parses, every Python block runs."""

import re
import shlex
from pathlib import Path

import pytest

from gacd import cli, methods

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines():
    for page in PAGES:
        text = page.read_text()
        for line in re.findall(r"^    (gacd .+)$", text, re.M) + re.findall(r"`(gacd [a-z]+ [^`]*)`", text):
            yield pytest.param(line.split("#")[0].strip(), id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_command_line_parses(line, tmp_path, monkeypatch):
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S)
    (tmp_path / "mine.py").write_text(block[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.Parser, "read", parse_and_stop)
    with pytest.raises(StopHere):
        cli.dispatch(shlex.split(line)[1:])


class StopHere(Exception):
    """Raised in the place of running a parsed command."""


def parse_and_stop(parser, argv):
    """In the place of Parser.read. A line in running text may leave out what is required."""
    full = list(argv)
    for action in parser.parser._actions:
        if action.required and action.option_strings and action.option_strings[-1] not in argv:
            full += [action.option_strings[-1], "RUN"]
    positionals = [a for a in parser.parser._actions if not a.option_strings]
    if positionals and not argv:
        full = ["RUN"]
    if "--help" not in full:
        parser.parser.parse_args(parser.words(full))
    raise StopHere


def test_readme_example_runs(capsys):
    exec(re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1], {})
    natural, *_ = capsys.readouterr().out.split()
    assert 0 <= float(natural) <= 1


def test_readme_lists_every_method():
    text = (ROOT / "README.md").read_text()
    assert all(f"gacd train {name}" in text or f"gacd distill {name}" in text for name in methods.names())
