"""`gacd demo`: the recipe demo.sh line by line, then a table, a page, and what they do and do not show."""

import contextlib
import shlex
import sys
import time
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from gacd import cli
from gacd.errors import Suspect
from gacd.recipe import RECIPES, expand, missing
from gacd.records import Measured, Run, collect
from gacd.report import write
from gacd.sections import Line, Section, percent, sections

TITLES = {
    "standard": "standard training",
    "teacher": "the teacher",
    "pgdat": "plain adversarial training",
    "kd": "KD",
    "ard": "ARD",
    "gacd": "GACD",
    "gacd-aft": "GACD+AFT",
}


def demo(*, out: str = "demo") -> None:
    """Trains, distils, attacks and compares small networks on scikit-learn's digits; a stopped demo goes on.

    Args:
        out: folder of the runs, of report.html, and of demo.log with all that the commands say.
    """
    screen, folder = Console(file=sys.stdout, highlight=False), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    lines, _ = expand(RECIPES / "demo.sh", OUT=out)
    todo = [task.argv for task in missing(lines)]
    for i, argv in enumerate(lines):
        if argv not in todo:
            continue
        run = Path(argv[argv.index("--out") + 1] if "--out" in argv else argv[1])
        label = f"{i + 1:2}/{len(lines)}  {' '.join(argv[: 2 if '--out' in argv else 1])} → {run}"
        began = time.perf_counter()
        with open(folder / "demo.log", "a") as log, screen.status(label):
            print("\n$ gacd", shlex.join(argv), file=log, flush=True)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                try:
                    cli.dispatch(argv)
                except Suspect as doubt:  # its results are written
                    print(doubt)
        screen.print(f"{label}  {time.perf_counter() - began:.1f} s", markup=False, soft_wrap=True)
    runs = [run for run in collect([out]) if run.name in TITLES]  # whatever else lies there
    section = next(section for section in sections(runs) if section.data == "digits")
    said = findings(section)
    screen.print(table(section))
    for sentence in said:
        screen.print(sentence, markup=False)
    write(folder / "report.html", runs, title="Robust distillation on handwritten digits", remarks=said)
    screen.print(f"The page: {folder / 'report.html'}", markup=False)


def table(section: Section) -> Table:
    """The page's headline table, for a terminal of 80 columns."""
    shown = Table("", "natural", *section.attacks, "worst", "95 % interval", box=SIMPLE, padding=0)
    for column in shown.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for line in section.lines:
        shares = [line.natural, *(line.attacks.get(name) for name in section.attacks), line.worst]
        shown.add_row(title(line), *map(accuracy, shares), between(line))
    if any(m.suspect for line in section.lines for m in line.attacks.values()):
        shown.caption = "?: an unverified upper bound; results.json says why"
    return shown


def findings(section: Section) -> list[str]:
    """What the numbers say, in sentences made from them, whichever way they fall."""
    lines = {run.name: line for run in section.runs if (line := section.line(run))}
    standard, teacher = lines["standard"], lines["teacher"]
    best = max((line for name, line in lines.items() if name != "teacher"), key=lambda line: (sure(line), robust(line)))
    _, eps = section.threat or ("", 0)
    larger = (teacher.run.parameters or 0) / (standard.run.parameters or 1)
    cost = ", ".join(f"{title(line)} {passes(line.run, section.runs)}" for line in section.lines)
    return [
        f"On {standard.n} test images, the student trained without attacks classifies {natural(standard)} rightly, and "
        f"{share(standard)} once an attacker may change every pixel by {eps}. The robust teacher, with "
        f"{larger:.1f} times the parameters, keeps {share(teacher)} "
        f"(naturally {natural(teacher)}). The most robust student here is that of {title(best)}: {share(best)} under "
        f"attack (95% interval {between(best)}), naturally {natural(best)}.",
        *(" ".join(compared(lines[name], lines[peer]) for peer in ("ard", "pgdat")) for name in ("gacd-aft", "gacd")),
        f"What each cost, in forward and backward passes per training image: {cost}. Whoever distils has the "
        "teacher's to pay as well.",
        "One seed, tiny networks, 8 x 8 pixels: this shows that the pieces work together, and nothing about which "
        "method is best on other images. Hyper-parameters come from a few trials on validation images; GACD had most.",
    ]


def compared(a: Line, b: Line) -> str:
    """Whether a is more robust than b, and whether so few images can tell."""
    (a_low, a_high), (b_low, b_high) = (line.worst.interval if line.worst else (0.0, 1.0) for line in (a, b))
    verdict = "is more robust than" if robust(a) > robust(b) else "does not beat"
    overlap = a_low <= b_high and b_low <= a_high
    caveat = f"; the difference is within the 95% intervals of {a.n} images and not conclusive" if overlap else ""
    caveat = caveat if sure(a) and sure(b) else "; an audit doubts that, so nothing follows"
    return f"{title(a)} ({share(a)}) {verdict} {title(b)} ({share(b)}) under attack{caveat}."


def passes(run: Run, runs: list[Run]) -> int:
    """Forward and backward passes per training image, those of the run it started from included."""
    own = int(run.options["epochs"]) * (1 + int(run.options.get("steps", 0)))
    init = run.options.get("init")
    return own + sum(passes(start, runs) for start in runs if init and Path(init).resolve() == start.path.resolve())


def accuracy(m: Measured | None) -> str:
    return f"{percent(m.accuracy, m.n)}{'?' if m.suspect else ''}" if m else ""


def title(line: Line) -> str:
    return TITLES.get(line.run.name, line.run.name)


def robust(line: Line) -> float:
    return line.worst.accuracy if line.worst else 0.0


def sure(line: Line) -> bool:
    """Whether no audit doubts its worst case."""
    return bool(line.worst and not line.worst.suspect)


def share(line: Line) -> str:
    return f"{percent(robust(line), line.n)}%{'' if sure(line) else ' (unverified)'}"


def natural(line: Line) -> str:
    return f"{percent(line.natural.accuracy, line.n)}%" if line.natural else "?"


def between(line: Line) -> str:
    return " – ".join(percent(bound, line.n) for bound in line.worst.interval) if line.worst else ""
