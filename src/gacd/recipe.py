"""Recipes: shell scripts of `gacd ...` lines, what of them is missing, and what each line makes and reads."""

import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gacd import checkpoint, results
from gacd.errors import InputError
from gacd.evaluation import STANDARD
from gacd.runs import story

RECIPES = Path(__file__).parent / "recipes"
# In the place of the shell's own: what a recipe would run is printed, each word ended by a NUL, each line by "\n".
PRINTED = r"""
gacd() { printf 'gacd\0'; printf '%s\0' "$@"; printf '\n'; }
row() { printf 'row\0'; printf '%s\0' "$@"; printf '\n'; }
. "$RECIPE"
"""


class Row(NamedTuple):
    """A line of a table: which table, which of the paper's cells, and the runs, one per seed."""

    table: str
    cell: str
    runs: list[Path]


class Task(NamedTuple):
    """A command of a recipe.

    Attributes:
        argv: without its "gacd".
        makes: the run or file that is its result; None: something else.
        reads: what earlier commands make and this one needs.
        counts: runs of which it needs the cost alone.
    """

    argv: list[str]
    makes: Path | None
    reads: list[Path]
    counts: list[Path]

    @property
    def all_reads(self) -> list[Path]:
        return [*self.reads, *self.counts]


def expand(path: Path, **variables: str) -> tuple[list[list[str]], list[Row]]:
    """A recipe's commands, each without its "gacd", and its rows.

    The shell itself reads the recipe, with `gacd` and `row` printing their words and no program found by
    name. It is a script all the same: only for ones that are trusted.

    Args:
        path: a shell script.
        variables: what it finds in its environment.

    Raises:
        InputError: it is no such script.
    """
    environment = variables | dict(PATH="/nonexistent", RECIPE=str(path.resolve()), RECIPES=str(RECIPES))
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", PRINTED], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise InputError("cannot read recipe", f"{path}: {error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError("the recipe fails", f"{path}: {reason}", "it may hold shell words, `gacd` and `row` alone")
    lines = [line.split("\0") for line in done.stdout.split("\0\n")[:-1]]
    commands = [words for kind, *words in lines if kind == "gacd"]
    rows = [Row(words[0], words[1], list(map(Path, words[2:]))) for kind, *words in lines if kind == "row"]
    return [words for i, words in enumerate(commands) if words not in commands[:i]], rows


def missing(commands: Sequence[list[str]]) -> list[Task]:
    """The tasks to run: those without a result, and what these need and does not exist; in the recipe's order."""
    tasks: list[Task] = []
    for argv in commands:
        known = {task.makes for task in tasks}
        pairs = [(before, Path(word)) for before, word in itertools.pairwise(argv)]
        words = [(before, path) for before, path in pairs if before != "--out" and path in known]
        reads = [path for before, path in words if before != "--cost-of"]
        tasks.append(Task(argv, _makes(argv), reads, [path for before, path in words if before == "--cost-of"]))
    read = {path for task in tasks for path in task.all_reads}
    needed: set[Path | None] = set()
    counted: set[Path | None] = set()
    chosen = []
    for task in reversed(tasks):
        asked = task.makes not in read or (task.makes in needed and not _exists(task.makes))
        asked = asked or (task.makes in counted and not _finished(task.makes))
        if asked and not _done(task):
            chosen.append(task)
            needed |= set(task.reads)
            counted |= set(task.counts)
    return chosen[::-1]


def script(name: str, folder: str) -> Path:
    """A recipe or preset by name, or a file."""
    packaged = RECIPES / folder / f"{name}.sh"
    if name.replace("_", "").isalnum() and packaged.is_file() and name != "common":
        return packaged
    if Path(name).is_file():
        return Path(name).resolve()
    known = ", ".join(sorted(path.stem for path in (RECIPES / folder).glob("*.sh") if path.stem != "common"))
    raise InputError("no such recipe" if not folder else "no such preset", name, f"one of {known}, or a file of yours")


def _makes(argv: list[str]) -> Path | None:
    """A run for train, distill and probe; a file for the others."""
    out = Path(argv[argv.index("--out") + 1]) if "--out" in argv[:-1] else None
    if argv[0] == "evaluate":
        return (out or Path(argv[1])) / "results.json"
    if argv[0] == "analyze":
        return (out or Path("analysis")) / "analysis.json"
    return out or (Path(argv[1]) if argv[0] == "probe" else None)


def _done(task: Task) -> bool:
    """Whether a task's result exists, whole."""
    if task.makes is None or not task.makes.exists():
        return False
    if task.argv[0] == "evaluate":
        words = task.argv[task.argv.index("--attacks") + 1 :] if "--attacks" in task.argv else list(STANDARD)
        end = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        rows: list[dict[str, Any]] = results.read(task.makes.parent)["results"]
        return {*words[:end]} <= {row.get("attack") for row in rows}
    if task.argv[0] in ("train", "distill"):
        return _exists(task.makes) and _finished(task.makes)
    return _exists(task.makes)


def _exists(path: Path | None) -> bool:
    """Whether what a task makes can be read by others: for a run, its weights, complete."""
    if path is None or not path.is_dir():
        return path is not None and path.is_file()
    try:
        return checkpoint.weights_of(path).stem == "probe" or _finished(path)
    except InputError:
        return False


def _finished(path: Path | None) -> bool:
    return path is not None and story(path).get("seconds") is not None
