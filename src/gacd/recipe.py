"""Recipes: shell scripts of `gacd ...` lines, what of them is missing, and what each line makes and reads."""

import itertools
import json
import math
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gacd import checkpoint, records, results
from gacd.attacks.loop import RADII
from gacd.attacks.names import parse_attack
from gacd.cli import COMMANDS, command_parser, training_parser
from gacd.data import same
from gacd.errors import GacdError, InputError, UsageError
from gacd.parser import Ratio, plain
from gacd.runs import FREE, PLACES, check_options, finished

RECIPES = Path(__file__).parent / "recipes"
PROBE = Path("checkpoints/probe.pt")
# In the place of the shell's own: what a recipe would run is printed, each word ended by a NUL, each line by "\n". What
# the recipe itself prints goes elsewhere.
PRINTED = r"""
exec 3>&1 >&2
gacd() { printf 'gacd\0' >&3; printf '%s\0' "$@" >&3; printf '\n' >&3; }
row() { printf 'row\0' >&3; printf '%s\0' "$@" >&3; printf '\n' >&3; }
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

    def needs(self, other: "Task") -> bool:
        """Whether it reads what an earlier command makes."""
        return other is not self and other.makes in [*self.reads, *self.counts]


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
    commands = [_apart(words) for kind, *words in lines if kind == "gacd"]
    said = [words for kind, *words in lines if kind == "row"]
    if not all(map(any, commands)) or not all(words[2:] for words in said):
        raise InputError("the recipe fails", f"{path}: a bare `gacd`, or a `row` that is not `row TABLE CELL RUN...`")
    rows = [Row(table, cell, list(map(Path, runs))) for table, cell, *runs in said]
    return [words for i, words in enumerate(commands) if words not in commands[:i]], rows


def missing(commands: Sequence[list[str]]) -> list[Task]:
    """The tasks to run: those without a result, what these need and does not exist, and what is measured of that.

    They come in the recipe's order. What measures a run that is trained anew is run again too: its old numbers are of
    other weights.
    """
    tasks: list[Task] = []
    for argv in commands:
        known = {task.makes for task in tasks if task.makes}
        pairs = [(before, Path(word)) for before, word in itertools.pairwise(argv)]
        reads = [made for before, path in pairs if before not in ("--out", "--cost-of") for made in _read(path, known)]
        counts = [path for before, path in pairs if before == "--cost-of" and path in known]
        tasks.append(Task(argv, makes(argv), reads, counts))
    chosen, before = _chosen(tasks, []), None
    while chosen != before:
        anew = {task.makes for task in chosen if task.argv[0] in ("train", "distill", "probe")}
        again = [t for t in tasks if t in chosen or (t.argv[0] in ("evaluate", "analyze") and anew & {*t.reads})]
        chosen, before = _chosen(tasks, again), chosen
    return chosen


def _chosen(tasks: Sequence[Task], again: Sequence[Task]) -> list[Task]:
    """Those to run again, those without a result, and what these need and does not exist."""
    read = {path for task in tasks for path in [*task.reads, *task.counts]}
    needed: set[Path | None] = set()
    counted: set[Path | None] = set()
    chosen = []
    for task in reversed(tasks):
        asked = task.makes not in read or (task.makes in needed and not _exists(task.makes))
        asked = asked or (task.makes in counted and not finished(task.makes))
        if task in again or (asked and not _done(task)):
            chosen.append(task)
            needed |= set(task.reads)
            counted |= set(task.counts)
    return chosen[::-1]


def check(commands: Sequence[list[str]]) -> None:
    """Refuses commands that could not be read, and options other than those that a run was started with; paths may be.

    Raises:
        UsageError: names the command, or the run and the options.
    """
    made: set[Path | None] = set()
    for argv in commands:
        configs = [Path(word) for before, word in itertools.pairwise(argv) if before == "--config"]
        if any(file.parent in made and not file.exists() for file in configs):  # of an earlier line's run
            argv = [word for before, word in zip(["", *argv], argv, strict=False) if "--config" not in (before, word)]
        made.add(makes(argv))
        try:
            values = _parsed(argv)
        except GacdError as error:
            raise UsageError("a line of the recipe is wrong", f"gacd {shlex.join(argv)}: {error}") from None
        except SystemExit:  # of --help
            raise UsageError("a line of the recipe makes nothing", f"gacd {shlex.join(argv)}") from None
        out = makes(argv) if argv[0] in ("train", "distill") else None
        if out and (out / "config.yaml").exists():
            typed = {word[2:].split("=")[0].replace("-", "_") for word in argv[2:] if word.startswith("--")}
            free = FREE | PLACES | {"out"} | ({"epochs", "milestones"} if "cost_of" in typed else set())
            free |= {"precision"} if values["precision"] == "auto" else set()
            check_options(out, {name: values[name] for name in typed & values.keys()}, free)


def _parsed(argv: list[str]) -> dict[str, Any]:
    """A command's options as YAML would keep them."""
    command, *words = argv
    if command in ("train", "distill"):
        if not words:
            raise UsageError("which method?", command)
        return plain(training_parser(command, words[0]).read(words[1:]))
    if command not in COMMANDS:
        raise UsageError("unknown command", command)
    values = command_parser(command)[1].read(words)
    for attack in values["attacks"] if command == "evaluate" else ():
        parse_attack(attack)
    return plain(values)


def script(name: str, folder: str) -> Path:
    """A recipe or preset by name, or a file."""
    packaged = RECIPES / folder / f"{name}.sh"
    if name.replace("_", "").isalnum() and packaged.is_file() and name != "common":
        return packaged
    if Path(name).is_file():
        return Path(name).resolve()
    known = ", ".join(sorted(path.stem for path in (RECIPES / folder).glob("*.sh") if path.stem != "common"))
    raise InputError("no such recipe" if not folder else "no such preset", name, f"one of {known}, or a file of yours")


def _read(path: Path, known: set[Path]) -> list[Path]:
    """What of the known a word names: itself or else what it lies in, and the classifier that a run was given later."""
    nearest = next((made for made in (path, *path.parents) if made in known), None)
    return [made for made in (nearest, path / PROBE) if made in known]


def _apart(words: list[str]) -> list[str]:
    """--out=RUN as two words, as the others are."""
    return [part for word in words for part in (word.split("=", 1) if re.match(r"--[\w-]+=", word) else [word])]


def makes(argv: list[str]) -> Path | None:
    """A run for train, distill and probe; a file for the others, and for a probe that gives a run its classifier."""
    out = Path(argv[argv.index("--out") + 1]) if "--out" in argv[:-1] else None
    if argv[0] == "evaluate":
        return (out or Path(*argv[1:2])) / "results.json"
    if argv[0] == "analyze":
        return (out or Path("analysis")) / "analysis.json"
    return out or (Path(*argv[1:2]) / PROBE if argv[0] == "probe" else None)


def _done(task: Task) -> bool:
    """Whether a task's result exists, whole."""
    if task.makes is None or not task.makes.exists():
        return False
    if task.argv[0] == "evaluate":
        return _evaluated(task.makes.parent, task.argv[1:])
    if task.argv[0] in ("train", "distill"):
        return _exists(task.makes) and finished(task.makes)
    return _exists(task.makes) and (task.argv[0] != "analyze" or _analysed(task.makes))


def _analysed(file: Path) -> bool:
    """Whether an analysis is of the weights that its runs' results are of, as far as these say."""
    try:
        sources = [(Path(s["source"]), s["sha256"]) for s in json.loads(file.read_text())["sources"].values()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    known = {path: {m.row.get("sha256") for m in records.read(path, "").measured} for path, _ in sources}
    return all(sha256 in known[path] or not known[path] for path, sha256 in sources)


def _evaluated(folder: Path, argv: list[str]) -> bool:
    """Whether results of the weights that are there hold every attack as it is asked for, on as many images."""
    asked = command_parser("evaluate")[1].read(argv)
    radii = asked["eps"] or [RADII[asked["norm"]]]
    found = [m for m in records.read(folder, "").measured if m.norm == asked["norm"]]
    found = [m for m in found if asked["data"] is None or same(asked["data"], m.data)]
    whole = [m for m in found if m.n == min(asked["n"] or m.split, m.split) and _as_asked(asked, m)]
    return {(a, Ratio(eps)) for a in asked["attacks"] for eps in radii} <= {(m.attack, m.eps) for m in whole}


def _as_asked(asked: dict[str, Any], m: records.Measured) -> bool:
    """Whether an entry was made with the options that an evaluation asks for; older entries lack some."""
    inherited = any(map(results.inherits, m.row.get("doubts") or []))
    if asked["audits"] == "full" and (m.row.get("audits") != "full" or inherited):
        return False
    if any(asked[name] is not None and m.row.get(name, asked[name]) != asked[name] for name in ("seed", "chunk")):
        return False
    step = asked["step_size"] or m.eps / 4
    taken = m.row.get("step_size") if m.attack != "fgsm" else None  # whose step is the radius
    return taken is None or math.isclose(Ratio(taken), step, rel_tol=1e-4)  # older entries have six digits


def _exists(path: Path | None) -> bool:
    """Whether what a task makes can be read by others: for a run, its weights, complete."""
    if path is None or not path.is_dir():
        return path is not None and path.is_file()
    try:
        return checkpoint.weights_of(path).stem == "probe" or finished(path)
    except InputError:
        return False
